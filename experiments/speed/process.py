"""Whole processes: a cold `clearn run` on SplitDigits, and the memory of PermutedMNIST.

    python experiments/speed/process.py

Bars: start to finish <= 15 s on 2 cores; peak memory of PermutedMNIST with 10 tasks <= the raw
data + 300 MiB over a process that has imported the same packages and trained on one task's
worth of random data. PermutedMNIST needs MNIST under $CLEARN_DATA and is left out without it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import keep

MEMORY = """
import json, resource, sys
import torch
from clearn.nets import build_net
from clearn.run import Run, Training
from clearn.strategies import Naive
from clearn.stream import Stream
from clearn.streams import PermutedMNIST
if sys.argv[1] == "floor":
    x = torch.randint(0, 256, (100, 1, 28, 28), dtype=torch.uint8)
    y = torch.arange(10).repeat(10)
    stream = Stream.from_arrays(x, y, x, y, num_tasks=10, scenario="domain", split="instances")
else:
    stream = PermutedMNIST(num_tasks=10)
net = build_net("MLP", stream)
Run(Naive(net), stream, training=Training(batch_size=64)).fit()
print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))
"""


def cold_run(folder: Path) -> tuple[float, float]:
    command = [sys.executable, "-m", "clearn", "run", "--strategy", "ER", "--stream", "SplitDigits"]
    started = time.perf_counter()
    subprocess.run(
        [*command, "--folder", str(folder)], check=True, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
    return seconds, metrics["train_seconds"]


def peak_mib(kind: str) -> float:
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, kind], check=True, capture_output=True, text=True
    )
    return float(done.stdout.splitlines()[-1])


with tempfile.TemporaryDirectory() as temporary:
    runs = [cold_run(Path(temporary) / str(index)) for index in range(6)][1:]
bench = "clearn run, ER on SplitDigits, defaults, cold process"
keep(bench, "start to finish", [run[0] for run in runs], "s", bar="<= 15 s on 2 cores")
keep(bench, "training alone", [run[1] for run in runs], "s")

root = os.environ.get("CLEARN_DATA")
if root and (Path(root) / "MNIST").is_dir():
    raw = 70_000 * 28 * 28 / 2**20
    bench = "PermutedMNIST, 10 tasks, peak resident memory"
    floor, full = ([peak_mib(kind) for _ in range(3)] for kind in ("floor", "PermutedMNIST"))
    keep(bench, "same imports, 100 random images", floor, "MiB")
    keep(bench, "PermutedMNIST", full, "MiB")
    extra = [a - b for a, b in zip(full, floor, strict=True)]
    keep(bench, "difference", extra, "MiB", bar=f"<= {raw:.0f} + 300 MiB")
else:
    print("PermutedMNIST: left out, no MNIST under $CLEARN_DATA")
