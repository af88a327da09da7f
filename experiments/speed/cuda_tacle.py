"""A whole run of TACLE on CUDA: ten tasks, a ViT-B/16 at 224 pixels.

    python experiments/speed/cuda_tacle.py

Ten tasks of ten classes of random images: a pool of 64 images a class, 4 of them labelled, 10 test
images a class; 3 epochs with one of warm-up, and the published batches of 40 labelled and 128 pool
images. Steps, class statistics, alignment and the tests after each task are in it, in float32 and
in bfloat16 by autocast. What the images show does not matter here: on a GPU all strong views pass.

Rows: images of the pool per second of training, each of which is seen as a weak and a strong view,
and the peak of what torch has allocated. Needs the extra `vit`; without a CUDA device nothing is
measured.
"""

from __future__ import annotations

import torch
from harness import keep

from clearn import Run, Training, build_net
from clearn.semi import Labels
from clearn.strategies import TACLE
from clearn.stream import Stream

TASKS, CLASSES, IMAGES, TESTED, EPOCHS = 10, 10, 64, 10, 3


def images(per_class: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random images `[N, 3, side, side]` and their labels."""
    y = torch.arange(TASKS * CLASSES).repeat(per_class)
    generator = torch.Generator().manual_seed(per_class)
    x = torch.randint(256, (len(y), 3, side, side), dtype=torch.uint8, generator=generator)
    return x, y


def run(name: str, side: int, trainer: dict[str, object]) -> float:
    """Images of the pool per second of training."""
    (x, y), (x_test, y_test) = images(IMAGES, side), images(TESTED, side)
    stream = Stream.from_arrays(x, y, x_test, y_test, num_tasks=TASKS)
    stream = stream.semi_supervised(Labels(labels_per_class=4))
    net = build_net(name, stream, head="joined", seed=0)
    strategy = TACLE(net, warm_up=1, milestones=[2])
    training = Training(epochs=EPOCHS, batch_size=128)
    metrics = Run(strategy, stream, training=training, trainer=trainer).fit().metrics
    return len(y) * EPOCHS / metrics["train_seconds"]


def main() -> None:
    if not torch.cuda.is_available():
        print("cuda_tacle: no CUDA device; nothing is measured")
        return
    what = f"TACLE, ViT-B/16 at 224 pixels, {TASKS} tasks, {torch.cuda.get_device_name()}"
    for precision in ("32-true", "bf16-mixed"):
        torch.cuda.reset_peak_memory_stats()
        options = {"accelerator": "cuda", "devices": 1, "precision": precision}
        rate = run("timm/vit_base_patch16_224", 224, options)
        keep(f"{what}: pool", precision, [rate], "images/s")
        peak = torch.cuda.max_memory_allocated() / 2**30
        keep(f"{what}: memory", precision, [peak], "GiB")


if __name__ == "__main__":
    main()
