"""Interleaved timing on one thread, with every measurement kept in results/speed/speed.csv."""

from __future__ import annotations

import csv
import ctypes
import gc
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import numpy as np

TABLE = Path(__file__).parents[2] / "results" / "speed" / "speed.csv"
COLUMNS = [
    "time", "commit", "bench", "variant", "reference", "unit", "n", "p20", "p50", "p80",
    "ratio_p20", "ratio_p50", "ratio_p80", "bar", "device", "threads", "python", "torch",
    "lightning", "avalanche",
]  # fmt: skip
_M_MMAP_THRESHOLD = -3  # of malloc.h


def interleave(
    bench: str,
    variants: Mapping[str, Callable[[], object]],
    *,
    reference: str,
    rounds: int = 9,
    bar: str = "",
) -> None:
    """Run every variant once per round, and keep CPU seconds and ratios to the reference.

    One round first is thrown away. A ratio is formed within a round, so that a machine that
    slows down slows down both.

    Args:
        bench: Name of the measurement.
        variants: Functions to time, by name; each makes all it needs afresh.
        reference: The variant the others are divided by.
        rounds: Rounds that count.
        bar: What is asked for, in words.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for counted in [False] + [True] * rounds:
        for name, function in variants.items():
            gc.collect()
            started = time.process_time()
            function()
            elapsed = time.process_time() - started
            if counted:
                seconds[name].append(elapsed)
    for name, values in seconds.items():
        ratios = np.divide(values, seconds[reference])
        keep(bench, name, values, "CPU s", ratios=ratios, reference=reference, bar=bar)


def keep(
    bench: str,
    variant: str,
    values: list[float],
    unit: str,
    *,
    ratios: np.ndarray | None = None,
    reference: str = "",
    bar: str = "",
) -> None:
    """Append one row to the table and print it."""
    p20, p50, p80 = np.percentile(values, [20, 50, 80])
    quotients = ["", "", ""] if ratios is None else np.percentile(ratios, [20, 50, 80]).round(4)
    row = {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "bench": bench,
        "variant": variant,
        "reference": reference,
        "unit": unit,
        "n": len(values),
        "p20": round(p20, 5),
        "p50": round(p50, 5),
        "p80": round(p80, 5),
        "ratio_p20": quotients[0],
        "ratio_p50": quotients[1],
        "ratio_p80": quotients[2],
        "bar": bar,
        "device": _processor(),
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "python": platform.python_version(),
        "torch": version("torch"),
        "lightning": version("lightning"),
        "avalanche": version("avalanche-lib"),
    }
    new = not TABLE.exists()
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    with TABLE.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(row)
    ratio = f"  x{quotients[1]} of {reference}" if reference and reference != variant else ""
    print(f"{bench}: {variant}: {p50:.4g} {unit} (n={len(values)}){ratio}  [{bar}]", flush=True)


def peak_mib(function: Callable[[], object], *, in_use: bool) -> float:
    """Peak of this process's memory during a call, above what is resident before, in MiB.

    By the kernel's high-water mark, which is reset before; on Linux with glibc only. Best asked
    once, in a process of its own that has made the same call on something much smaller, so that
    what torch loads on first use does not count.

    Args:
        function: What to measure.
        in_use: What is in use, by a malloc that hands back at once what is freed; else what malloc
            takes by default, which keeps some of it and cannot reuse all.
    """
    if in_use:  # blocks of 64 KiB and more are mapped one by one, and unmapped when they are freed
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 2**16)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    before = _resident_mib("VmRSS")
    function()
    return _resident_mib("VmHWM") - before


def _resident_mib(what: str) -> float:
    """What the kernel counts for this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(what)) / 1024


def _commit() -> str:
    def git(*words: str) -> str:
        command = ["git", "-C", str(TABLE.parents[2]), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    # The table itself changes with every row and says nothing about the code.
    changed = git("status", "--porcelain", "--", ".", ":!results")
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
