"""A killed run loses nothing: what it resumes to is bit-identical to never having been killed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = Path(__file__).with_name("kill_driver.py")


def _drive(folder: Path, kills: int, seed: int) -> list[str]:
    done = subprocess.run(
        [sys.executable, str(DRIVER), str(folder), str(kills), str(seed)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return re.findall(r"(killed|survived), same", done.stdout)


def test_kill_and_resume(tmp_path: Path) -> None:
    outcomes = _drive(tmp_path, 4, seed=0)
    assert len(outcomes) == 4
    assert outcomes.count("killed") >= 2


@pytest.mark.slow
def test_kill_at_twenty_random_moments(tmp_path: Path) -> None:
    outcomes = _drive(tmp_path, 24, seed=1)
    assert len(outcomes) == 24
    assert outcomes.count("killed") >= 20
