"""A GPU for the tests of the CUDA sources, where there is none."""

from __future__ import annotations

import pytest

from clearn.kernels import cuda
from tests.kernels.host import Host


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Host:
    return Host(tmp_path_factory.mktemp("host"))


@pytest.fixture
def host(compiled: Host, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A GPU with one multiprocessor, which has room for two blocks."""
    monkeypatch.setattr(cuda, "_run", compiled.run)
    monkeypatch.setattr(cuda, "_multiprocessors", lambda device: 1)
    monkeypatch.setattr(cuda, "_RESIDENT_THREADS", 512)
    compiled.order = 0
    return compiled
