"""Decoding against Pillow and torchvision, one image at a time."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from clearn.errors import UserError
from clearn.images import ImageFiles, Images
from tests.clearn.pictures import ArraySource, write_pictures


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "1"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).convert(mode)
    name = "a.tif" if mode == "CMYK" else "a.png"
    picture.save(tmp_path / name)
    decoded = ImageFiles(tmp_path, [name])[0]
    assert decoded.shape == (3, 9, 7)
    assert np.array_equal(decoded.permute(1, 2, 0), np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("size", [(12, 10), (9, 30), (5, 4), (8, 8)])
def test_resize_and_centre_crop_are_torchvisions(tmp_path: Path, size: tuple[int, int]) -> None:
    source = write_pictures(tmp_path, 2, size=size, name="class/{}.jpg")
    theirs = v2.Compose([v2.PILToTensor(), v2.Resize(8, antialias=True), v2.CenterCrop(8)])
    images = Images(source, 8)
    assert images.shape == (3, 8, 8)
    for index, name in enumerate(source.names):
        # As tensors: Pillow's own resize rounds otherwise.
        expected = theirs(Image.open(tmp_path / name))
        assert torch.equal(images[[index]][0], expected)


def test_images_of_one_size_need_no_size() -> None:
    source = ArraySource.random(5)
    images = Images(source)
    assert torch.equal(images[[4, 0, 0]], source.data[[4, 0, 0]])
    assert images[[]].shape == (0, 3, 8, 8)


def test_images_of_several_sizes_need_one(tmp_path: Path) -> None:
    write_pictures(tmp_path, 1, name="a{}.png")
    write_pictures(tmp_path, 1, name="b{}.png", size=(7, 7))
    source = ImageFiles(tmp_path, ["a0.png", "b0.png"])
    with pytest.raises(UserError, match=r"image_size: image 1 is \(3, 7, 7\) and image 0 is"):
        Images(source)[[0, 1]]
    assert Images(source, 6)[[0, 1]].shape == (2, 3, 6, 6)


def test_broken_and_missing_files_are_named(tmp_path: Path) -> None:
    source = write_pictures(tmp_path, 1)
    (tmp_path / "0.png").write_bytes((tmp_path / "0.png").read_bytes()[:60])
    with pytest.raises(UserError, match=r"image: .*0\.png cannot be read: "):
        source[0]
    missing = ImageFiles(tmp_path, ["gone.png"])
    for use in (missing.key, lambda: missing[0]):
        with pytest.raises(UserError, match=r"image: .*gone\.png cannot be read: .*No such file"):
            use()


def test_key_changes_with_names_content_size_and_subset(tmp_path: Path) -> None:
    source = write_pictures(tmp_path / "a", 3)
    same = write_pictures(tmp_path / "b", 3)
    for name in source.names:
        status = (tmp_path / "a" / name).stat()
        os.utime(tmp_path / "b" / name, ns=(status.st_atime_ns, status.st_mtime_ns))
    base = Images(source, 8).key()
    assert base == Images(same, 8).key()
    others = [
        Images(source, 9).key(),
        Images(source).key(),
        Images(ImageFiles(source.root, source.names[:2]), 8).key(),
        Images(ImageFiles(source.root, source.names[::-1]), 8).key(),
    ]
    os.utime(tmp_path / "a" / "1.png", ns=(0, 0))
    others.append(Images(source, 8).key())
    assert len({base, *others}) == 6


def test_no_key_of_the_source_no_key_of_its_images() -> None:
    assert Images(ArraySource.random(1), 4).key() is None


@pytest.mark.parametrize("image_size", [0, -3])
def test_size_is_checked(image_size: int) -> None:
    with pytest.raises(UserError, match=f"image_size: {image_size} is not valid"):
        Images(ArraySource.random(1), image_size)


def test_no_images() -> None:
    with pytest.raises(UserError, match="images: there are none"):
        Images(ArraySource.random(0))
