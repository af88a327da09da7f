"""The laboratory of the conformance suite: small runs of a strategy that is watched from inside."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback
from torch import Tensor

from clearn.batch import Batch
from clearn.errors import UserError
from clearn.nets import build_net
from clearn.run import Interrupted, Result, Run, Training
from clearn.seeding import derive_seed
from clearn.semi import Labels
from clearn.strategy import Strategy
from clearn.stream import Stream, Task

TASKS, EPOCHS, STEPS = 3, 2, 6  # steps per epoch; the last batch holds one example

NET: Mapping[str, Any] = {"name": "MLP", "hidden": (32,), "dropout": 0.1}
"""What is trained when nothing else is asked for."""


class Watched(Strategy):
    """Mixed into the strategy under test: looks at it from inside a run."""

    def watch(self) -> None:
        """Start with nothing seen."""
        self.states: list[dict[str, Any]] = []
        self._guarded = False

    def begin_task(self, task: Task) -> None:
        """As the strategy's; must leave training mode on."""
        super().begin_task(task)
        self._check_mode("begin_task")

    def step(self, batch: Batch) -> Tensor:
        """As the strategy's; must return a detached scalar and not wait for the device."""
        with self._no_synchronisation():
            loss = super().step(batch)
        if not isinstance(loss, Tensor) or loss.ndim or loss.requires_grad:
            raise AssertionError(
                "step does not return a detached scalar tensor: end it with `return loss.detach()`"
            )
        self._check_mode("step")
        return loss

    def end_task(self, task: Task) -> None:
        """As the strategy's; the state it leaves is kept for comparisons."""
        super().end_task(task)
        self._check_mode("end_task")
        self.states.append(copy_state(self.state_dict()))

    def _check_mode(self, name: str) -> None:
        if not (self.training and self.net.training):
            raise AssertionError(
                f"{name} leaves the strategy or its net in eval mode: call self.train() before "
                "it returns"
            )

    @contextmanager
    def _no_synchronisation(self) -> Iterator[None]:
        """Refuse to wait for a CUDA device; the first step may, to fill caches."""
        if self.device.type != "cuda" or not self._guarded:
            self._guarded = True
            yield
            return
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        except RuntimeError as error:
            if "synchroniz" not in str(error):
                raise
            raise AssertionError(
                "step makes the host wait for the device (item, float, bool, nonzero, a boolean "
                "index, cpu): compute on the device, and report numbers with self.track"
            ) from error
        finally:
            torch.cuda.set_sync_debug_mode("default")


@dataclass
class Outcome:
    """What a run ended with."""

    strategy: Watched
    result: Result
    states: list[dict[str, Any]]  # after each task, as far as this object learned it


@dataclass(frozen=True)
class Case:
    """One strategy in one scenario with one head on one net."""

    strategy_class: type[Strategy]
    options: dict[str, Any]
    scenario: str
    head: str
    training: dict[str, Any] = field(default_factory=dict)
    other_future: bool = False  # the last task has other inputs
    net_seed: int = 0
    net: Mapping[str, Any] = field(default_factory=lambda: NET)  # its name and options
    input_shape: Sequence[int] = (8,)
    labels_per_class: int | None = None
    other_truth: bool = False  # what is unlabelled is of other classes

    def run(
        self, *, folder: Path | None = None, stop: Stop | None = None, accelerator: str = "cpu"
    ) -> Outcome:
        """A whole run, or one that is stopped; any failure says what was being done."""
        defaults = {"epochs": EPOCHS, "batch_size": 8, "chunk_size": 4}
        # Before the strategy is watched: what Avalanche's import may do is not its doing.
        stream = self._stream()
        with self.saying(), _untouched_globals():
            strategy = self.build()
            run = Run(
                strategy,
                stream,
                training=Training(**(defaults | self.training)),
                folder=folder,
                trainer={"accelerator": accelerator, "callbacks": [stop] if stop else []},
            )
            if stop is None:
                run.fit()
                _check_seed()
            else:
                stop.run = run
                with suppress(Interrupted):
                    run.fit()
        return Outcome(strategy, run.result, strategy.states)

    def build(self) -> Watched:
        """The strategy, as a caller would make it."""
        stream = self._stream()
        options = {**self.net, "head": self.head, "seed": self.net_seed}
        net = build_net(options.pop("name", "MLP"), stream, **options)
        kind = type(self.strategy_class.__name__, (Watched, self.strategy_class), {})
        before = torch.get_rng_state()
        strategy: Watched = kind(net, **self.options)
        if not torch.equal(before, torch.get_rng_state()):
            raise AssertionError(
                "the constructor draws from or seeds torch's global generator: draw in prepare, "
                "from self.generators.get(name)"
            )
        strategy.watch()
        return strategy

    def _stream(self) -> Stream:
        stream = small_stream(
            self.scenario,
            self.input_shape,
            self.other_future,
            images=self.labels_per_class is not None,
        )
        if self.labels_per_class is None:
            return stream
        stream = stream.semi_supervised(Labels(labels_per_class=self.labels_per_class))
        for task in stream if self.other_truth else ():
            assert task.unlabelled is not None
            assert task.unlabelled._truth is not None
            task.unlabelled._truth = task.unlabelled._truth.flip(0)
        return stream

    @contextmanager
    def saying(self) -> Iterator[None]:
        """Begin every message with what was checked."""
        try:
            yield
        except Exception as error:
            plain = isinstance(error, AssertionError | UserError)
            text = str(error) if plain else f"{type(error).__name__}: {error}"
            name = self.strategy_class.__name__
            where = f"{name}, {self.scenario} scenario, {self.head} head"
            raise AssertionError(f"{where}: {text}") from error


class Stop(Callback):
    """Asks a run to stop, as a signal would, at the given chunk or at the end of the given fit."""

    run: Run

    def __init__(self, *, chunk: int = 0, fit: int = 0) -> None:
        self._chunks_left = chunk
        self._fits_left = fit

    def on_train_batch_end(self, *args: Any) -> None:
        """Count a chunk."""
        self._chunks_left -= 1
        if self._chunks_left == 0:
            self.run.stop(signal.SIGTERM, None)

    def on_train_end(self, *args: Any) -> None:
        """Count a fit."""
        self._fits_left -= 1
        if self._fits_left == 0:
            self.run.stop(signal.SIGTERM, None)


def small_stream(
    scenario: str,
    input_shape: Sequence[int] = (8,),
    other_future: bool = False,
    images: bool = False,
) -> Stream:
    """Three tasks of two classes, well apart, with 41 train and 32 test examples each.

    Args:
        scenario: Of the stream.
        input_shape: Of one example.
        other_future: The inputs of the last task have another sign.
        images: Of uint8, with a colour for each class, so that a part shows what the whole is.
    """
    generator = torch.Generator().manual_seed(0)
    size = (input_shape[0], 1, 1) if images else input_shape
    centres = 4 * torch.randn(2 * TASKS, *size, generator=generator)

    def draw(per_class: int) -> tuple[Tensor, Tensor]:
        y = torch.arange(2 * TASKS).repeat_interleave(per_class)
        return centres[y] + torch.randn(len(y), *input_shape, generator=generator), y

    (x, y), (x_test, y_test) = draw(21), draw(16)
    if other_future:
        x[y >= 2 * TASKS - 2] *= -1
        x_test[y_test >= 2 * TASKS - 2] *= -1
    if images:
        x, x_test = ((128 + 16 * values).clamp(0, 255).byte() for values in (x, x_test))
    kept = torch.arange(len(y)) % 42 != 0  # leaves a batch of one example at the end of an epoch
    return Stream.from_arrays(x[kept], y[kept], x_test, y_test, num_tasks=TASKS, scenario=scenario)


@contextmanager
def _untouched_globals() -> Iterator[None]:
    before = _globals()
    yield
    changed = [name for name, value in _globals().items() if value != before[name]]
    if changed:
        raise AssertionError(
            f"the strategy changes global state ({', '.join(changed)}): draw from self.generators, "
            "and use settings of torch in a `with` block"
        )


def _globals() -> dict[str, object]:
    name, keys, *rest = np.random.get_state()
    return {
        "Python's generator": random.getstate(),
        "NumPy's generator": (name, np.asarray(keys).tobytes(), rest),
        "torch's default type": torch.get_default_dtype(),
        "torch's grad mode": torch.is_grad_enabled(),
        "torch's deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "torch's number of threads": torch.get_num_threads(),
        "torch's matmul precision": torch.get_float32_matmul_precision(),
        "cuDNN's settings": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
    }


def _check_seed() -> None:
    if torch.initial_seed() != derive_seed(0, "global"):
        raise AssertionError(
            "the strategy seeds torch's global generator: the run has seeded it; draw from "
            "self.generators.get(name)"
        )


def copy_state(value: Any) -> Any:
    """A copy that later changes do not reach."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {key: copy_state(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copy_state(item) for item in value)
    return value


def differences(a: Any, b: Any, name: str = "") -> list[str]:
    """Names of the leaves in which two nested states differ."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        same = a.shape == b.shape and a.dtype == b.dtype and _equal(a.cpu(), b.cpu())
        return [] if same else [name]
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return [name]
    if isinstance(a, dict) and isinstance(b, dict):
        return [
            leaf
            for key in [*a, *(key for key in b if key not in a)]
            for leaf in differences(a.get(key), b.get(key), str(key))
        ]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        pairs = zip(a, b, strict=True)
        return [leaf for left, right in pairs for leaf in differences(left, right, name)]
    same = a == b or (a != a and b != b)  # a NaN is as good as another
    return [] if type(a) is type(b) and same else [name]


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether all numbers are, a NaN being as good as another."""
    if torch.equal(a, b):
        return True
    return a.is_floating_point() and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)


def name_some(changed: Sequence[str]) -> str:
    """The first three of them, in words."""
    different = list(dict.fromkeys(changed))
    more = f" and {len(different) - 3} more" if len(different) > 3 else ""
    return ", ".join(different[:3]) + more
