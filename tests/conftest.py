"""What every test shares: one thread, no network, and nothing written outside temporary folders."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import settings

if TYPE_CHECKING:
    from clearn.stream import Stream

# Examples are drawn from the test's own source, so that a failure repeats; time is not a property.
settings.register_profile("clearn", deadline=None, derandomize=True, database=None)
settings.load_profile("clearn")

# Read when huggingface_hub is imported; else it tries for most of a minute to reach the network,
# which tests have not.
os.environ["HF_HUB_OFFLINE"] = "1"

LOCAL = ("127.0.0.1", "::1", "localhost")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with the reason, what needs a GPU where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device; none found"))


@pytest.fixture(scope="session", autouse=True)
def _isolated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Caches and tracker folders in a temporary folder, no tracker account, one thread."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLEARN_CACHE", str(home / "cache"))
        for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
            (home / name).mkdir()
            patch.setenv(name, str(home / name))
        for name in [n for n in os.environ if n.startswith("WANDB_") and not n.endswith("_DIR")]:
            patch.delenv(name)
        patch.setenv("NETRC", str(home / "netrc"))  # where wandb looks for a stored login
        patch.setenv("MPLBACKEND", "Agg")
        torch.set_num_threads(1)
        yield


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection that would leave this machine."""

    def guard(connect: Callable[..., Any]) -> Callable[..., Any]:
        def local_only(self: socket.socket, address: Any) -> Any:
            if self.family != socket.AF_UNIX and address[0] not in LOCAL:
                raise OSError(f"the tests use no network, and this one connects to {address}")
            return connect(self, address)

        return local_only

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, guard(getattr(socket.socket, name)))


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder that holds real data sets, from $CLEARN_DATA; the test skips without one."""
    root = os.environ.get("CLEARN_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("needs real data: set CLEARN_DATA to a folder that holds it")
    return Path(root)


@pytest.fixture
def tiny_stream() -> Callable[..., Stream]:
    """Build a stream of separable points: 3 tasks of 2 classes, 16 train and 8 test rows a class.

    Keyword arguments go to `Stream.from_arrays`.
    """

    def build(**options: Any) -> Stream:
        from clearn.stream import Stream

        generator = torch.Generator().manual_seed(0)
        centres = 4 * torch.randn(6, 5, generator=generator)

        def draw(per_class: int) -> tuple[Any, Any]:
            y = torch.arange(6).repeat_interleave(per_class)
            x = centres[y] + torch.randn(len(y), 5, generator=generator)
            return x.numpy(), y.numpy()

        return Stream.from_arrays(*draw(16), *draw(8), **({"num_tasks": 3} | options))

    return build
