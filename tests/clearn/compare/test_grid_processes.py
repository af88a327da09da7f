"""Comparisons in real processes that are stopped, killed, or run side by side."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.test_docs import blocks
from tests.test_house import ROOT

pytestmark = pytest.mark.slow

# Runs of a second or so, with many progress events in it.
EXPERIMENT = {
    "title": "Tiny",
    "baseline": "Naive",
    "seeds": [0, 1],
    "streams": {"SplitDigits": {"scenario": "class", "keep_tasks": 3}},
    "strategies": {"Naive": {}, "ER": {"buffer_size": 20}},
    "net": {"name": "MLP", "hidden": [16]},
    "training": {"epochs": 8, "batch_size": 16, "chunk_size": 1},
}
SCRIPT = """
import sys
from pathlib import Path
from clearn.compare import run_experiment
from clearn.errors import UserError
path, folder, jobs = sys.argv[1:]
try:
    run_experiment(Path(path), jobs=int(jobs), folder=Path(folder))
except UserError as error:
    sys.exit(f"UserError: {error}")
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""
NAMES = {f"{name}/SplitDigits/order0-seed{seed}" for name in ("Naive", "ER") for seed in (0, 1)}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("experiment") / "tiny.yaml"
    path.write_text(yaml.safe_dump(EXPERIMENT, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def start(tiny: Path) -> Callable[..., subprocess.Popen[str]]:
    def start(folder: Path, jobs: int = 2) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(tiny), str(folder), str(jobs)],
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return start


@pytest.fixture(scope="module")
def expected(
    start: Callable[..., subprocess.Popen[str]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """The numbers of an undisturbed comparison, one run at a time."""
    folder = tmp_path_factory.mktemp("whole")
    assert ended(start(folder, jobs=1))[0] == 0
    return numbers(folder)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors


def numbers(results: Path) -> dict[str, str]:
    """The accuracy matrix of each finished record."""
    return {
        str(path.parent.relative_to(results / "runs")): (path.parent / "matrix.csv").read_text()
        for path in sorted(results.rglob("metrics.json"))
    }


def until_training(process: subprocess.Popen[str], folder: Path) -> list[Path]:
    """Wait for runs that have begun and not ended; returns their records."""
    while process.poll() is None:
        begun = {path.parent for path in folder.rglob("status.json")}
        training = begun - {path.parent for path in folder.rglob("metrics.json")}
        if training:
            return sorted(training)
        time.sleep(0.02)
    pytest.fail(f"ended before a run was seen: {ended(process)}")


def children(process: subprocess.Popen[str]) -> list[int]:
    """The processes that learn, by their ids."""
    text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [
        pid
        for pid in map(int, text.split())
        if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def test_two_processes_on_one_experiment(
    start: Callable[..., subprocess.Popen[str]], expected: dict[str, str], tmp_path: Path
) -> None:
    both = [start(tmp_path / "out") for _ in range(2)]
    outcomes = [ended(process) for process in both]
    assert [code for code, _ in outcomes] == [0, 0], outcomes
    assert set(expected) == NAMES
    assert numbers(tmp_path / "out") == expected
    assert "4 of 4 runs finished" in (tmp_path / "out/table.md").read_text()
    for _, errors in outcomes:
        assert "failed" not in errors


@pytest.mark.parametrize(
    ("way", "module", "result"),
    [
        ("submit", "submitit", lambda jobs: [job.result() for job in jobs]),
        ("on_ray", "ray", lambda jobs: sys.modules["ray"].get(jobs)),
    ],
)
def test_the_ways_onto_a_cluster_that_the_docs_show(
    way: str,
    module: str,
    result: Callable[[Any], list[Path]],
    tiny: Path,
    expected: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On this machine: submitit starts processes where there is no SLURM, Ray a cluster of one."""
    pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    page: dict[str, Any] = {}
    exec("\n".join(blocks(ROOT / "docs/comparing.md", "python")), page)
    experiment = Path(shutil.copy(tiny, tmp_path))
    if module == "ray":
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)  # else Ray counts the devices
        sys.modules["ray"].init(num_cpus=8, num_gpus=2, include_dashboard=False)
    folder = tmp_path / "results/tiny"
    assert [path.resolve() for path in result(page[way](experiment, 2))] == [folder] * 2
    assert numbers(folder) == expected
    assert "4 of 4 runs finished" in (folder / "table.md").read_text()


@pytest.mark.parametrize(
    ("signum", "to_all"), [(signal.SIGTERM, False), (signal.SIGINT, True)], ids=["term", "ctrl-c"]
)
def test_a_stopped_comparison_goes_on(
    start: Callable[..., subprocess.Popen[str]],
    expected: dict[str, str],
    tmp_path: Path,
    signum: int,
    to_all: bool,
) -> None:
    out = tmp_path / "out"
    process = start(out)
    until_training(process, out)
    if to_all:  # as Ctrl-C in a terminal does
        os.killpg(process.pid, signum)
    else:
        process.send_signal(signum)
    code, errors = ended(process)
    assert code == 1
    assert f"Interrupted: stopped by {signal.Signals(signum).name}" in errors
    assert "Traceback" not in errors
    assert len(numbers(out)) < 4
    assert list(out.rglob("*.ckpt"))
    assert ended(start(out))[0] == 0
    assert numbers(out) == expected


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds children below /proc")
def test_a_killed_worker_costs_one_run(
    start: Callable[..., subprocess.Popen[str]], expected: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = start(out, jobs=1)
    (record,) = until_training(process, out)
    (worker,) = children(process)
    os.kill(worker, signal.SIGKILL)
    code, errors = ended(process)
    assert code == 1
    name = str(record.relative_to(out / "runs"))
    assert f"UserError: 1 of 4 runs failed: {name}: its process died with exit code -9" in errors
    assert set(numbers(out)) == NAMES - {name}
    assert "3 of 4 runs finished" in (out / "table.md").read_text()
    assert ended(start(out))[0] == 0
    assert numbers(out) == expected


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds children below /proc")
def test_workers_end_with_their_parent(
    start: Callable[..., subprocess.Popen[str]], expected: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = start(out)
    until_training(process, out)
    workers = children(process)
    assert len(workers) == 2
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline, "the workers went on without their parent"
        time.sleep(0.02)
    assert len(numbers(out)) < 4
    assert ended(start(out))[0] == 0
    assert numbers(out) == expected
