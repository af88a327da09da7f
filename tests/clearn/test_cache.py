"""The file of decoded images: whole, or not there."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from clearn import cache
from clearn.cache import cache_folder, decode_once
from clearn.errors import UserError
from clearn.images import Images
from tests.clearn.pictures import ArraySource


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLEARN_CACHE", str(tmp_path))
    return tmp_path / "images"


def whole(folder: Path) -> Path:
    (path,) = folder.glob("*.npy")
    return path


def test_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path
    for value in (None, ""):
        monkeypatch.delenv("CLEARN_CACHE", raising=False)
        if value is not None:
            monkeypatch.setenv("CLEARN_CACHE", value)
        assert cache_folder() == Path.home() / ".cache" / "clearn"


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("count", [1, 64, 65, 1000])
def test_decodes_once_and_in_order(folder: Path, count: int, workers: int) -> None:
    source = ArraySource.random(count, key="k", size=3)
    first = decode_once(Images(source), workers=workers)
    assert torch.equal(first, source.data)
    decoded = source.decoded
    assert decoded == count + 1  # and once more for the shape
    again = decode_once(Images(source), workers=workers)
    assert torch.equal(again, source.data)
    assert source.decoded == decoded + 1
    assert np.array_equal(np.load(whole(folder), allow_pickle=False), source.data)
    assert not list(folder.glob("*.partial"))


def test_what_is_written_to_the_tensor_does_not_reach_the_file() -> None:
    source = ArraySource.random(4, key="k")
    decode_once(Images(source), workers=1).zero_()
    assert torch.equal(decode_once(Images(source), workers=1), source.data)


def test_other_keys_and_sizes_have_other_files(folder: Path) -> None:
    for key, size in (("a", None), ("b", None), ("a", 4)):
        decode_once(Images(ArraySource.random(3, key=key), size), workers=1)
    assert len(list(folder.glob("*.npy"))) == 3


def test_images_without_a_key_stay_in_memory(folder: Path) -> None:
    source = ArraySource.random(200)
    assert torch.equal(decode_once(Images(source), workers=2), source.data)
    assert not folder.exists()


def truncated(data: bytearray) -> bytearray:
    return data[:-1]


def longer(data: bytearray) -> bytearray:
    return data + b"\0"


def empty(data: bytearray) -> bytearray:
    return bytearray()


def zeros(data: bytearray) -> bytearray:
    return bytearray(len(data))


def flipped_pixel(data: bytearray) -> bytearray:
    data[200] ^= 1
    return data


def flipped_header(data: bytearray) -> bytearray:
    data[30] ^= 1
    return data


def flipped_checksum(data: bytearray) -> bytearray:
    data[-1] ^= 1
    return data


def hole(data: bytearray) -> bytearray:
    data[300:400] = bytes(100)
    return data


@pytest.mark.parametrize(
    "damage",
    [truncated, longer, empty, zeros, flipped_pixel, flipped_header, flipped_checksum, hole],
)
def test_damaged_file_is_made_again(folder: Path, damage: object) -> None:
    source = ArraySource.random(10, key="k")
    decode_once(Images(source), workers=1)
    path = whole(folder)
    good = path.read_bytes()
    path.write_bytes(damage(bytearray(good)))  # type: ignore[operator]
    assert path.read_bytes() != good
    decoded = source.decoded
    assert torch.equal(decode_once(Images(source), workers=1), source.data)
    assert source.decoded >= decoded + 10
    assert path.read_bytes() == good


def test_failure_while_decoding_leaves_nothing(folder: Path) -> None:
    class Fails(ArraySource):
        def __getitem__(self, index: int) -> torch.Tensor:
            if index == 70:
                raise UserError("image: a.png cannot be read")
            return super().__getitem__(index)

    source = Fails(ArraySource.random(100).data, key="k")
    with pytest.raises(UserError, match=r"a\.png cannot be read"):
        decode_once(Images(source), workers=2)
    assert not list(folder.glob("*.npy"))
    assert not list(folder.glob("*.partial"))


SLOW = """
import sys, time
from pictures import ArraySource
from clearn.cache import decode_once
from clearn.images import Images

class Slow(ArraySource):
    def __getitem__(self, index):
        time.sleep(0.002)
        return super().__getitem__(index)

source = Slow.random(400, key="k")
print("ready", flush=True)
sys.stdin.readline()
data = decode_once(Images(source), workers=2)
assert data.equal(source.data)
print(source.decoded)
"""


def start() -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW],
        cwd=Path(__file__).parent,  # where pictures.py is
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_two_processes_decode_once_between_them(folder: Path) -> None:
    both = [start(), start()]
    for process in both:
        go(process)
    decoded = sorted(int(process.communicate()[0]) for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert decoded == [1, 401]  # one decodes an image for the shape, the other all of them
    assert len(list(folder.glob("*.npy"))) == 1


def test_killed_process_leaves_nothing_that_is_taken_for_whole(folder: Path) -> None:
    process = start()
    go(process)
    deadline = time.monotonic() + 30
    # Killed when some of the data is in the file and some is not.
    while not any(path.stat().st_size > 128 for path in folder.glob("*.partial")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not list(folder.glob("*.npy"))
    source = ArraySource.random(400, key="k")
    assert torch.equal(decode_once(Images(source), workers=2), source.data)
    assert not list(folder.glob("*.partial"))


def test_folder_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CLEARN_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cache: .*npy cannot be used: .*\$CLEARN_CACHE") as caught:
        decode_once(Images(ArraySource.random(3, key="k")), workers=1)
    assert "\n" not in str(caught.value)


def test_full_disk(folder: Path) -> None:
    source = ArraySource.random(1000, key="k")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(UserError, match="cannot be used: File too large; free 0 MiB there"):
            decode_once(Images(source), workers=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(folder.glob("*.npy"))
    assert not list(folder.glob("*.partial"))
    assert torch.equal(decode_once(Images(source), workers=1), source.data)


def test_long_decoding_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ticks = iter(range(0, 1000, 4))
    monkeypatch.setattr(cache.time, "monotonic", lambda: next(ticks))
    decode_once(Images(ArraySource.random(1000)), workers=1)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("decoding images: 512 of 1000, ")
    assert lines[0].endswith(" s left")
    decode_once(Images(ArraySource.random(10)), workers=1)
    assert capsys.readouterr().err == ""
