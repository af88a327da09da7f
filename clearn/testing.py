"""The conformance suite: does a strategy keep the contract of `clearn.Strategy`?

A package that brings a strategy calls it from a test of its own:

    from clearn.testing import check_strategy

    def test_contract():
        check_strategy(MyStrategy, buffer_size=50)

    def test_contract_on_images():
        net = {"name": "ResNet18", "width": 4}
        check_strategy(MyStrategy, scenarios=["task"], net=net, input_shape=(3, 16, 16))
"""

from __future__ import annotations

import io
import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from clearn.errors import UserError, unknown_name
from clearn.laboratory import (
    EPOCHS,
    NET,
    STEPS,
    TASKS,
    Case,
    Outcome,
    Stop,
    Watched,
    copy_state,
    differences,
    name_some,
)
from clearn.run import Result
from clearn.strategy import Strategy

Scenario = Literal["task", "class", "domain"]

_HEADS = {"task": ("multi", "single"), "class": ("single", "growing"), "domain": ("single",)}
_ALLOWED = {
    "task": ("multi", "wide", "single", "growing", "joined"),
    "class": ("single", "growing", "joined"),
    "domain": ("single", "growing"),
}


def check_strategy(
    strategy_class: type[Strategy],
    *,
    scenarios: Sequence[Scenario] = ("task", "class", "domain"),
    heads: Sequence[str] | None = None,
    net: Mapping[str, Any] = NET,
    input_shape: Sequence[int] = (8,),
    labels_per_class: int | None = None,
    **options: Any,
) -> None:
    """Train a strategy on small streams, in a few seconds, and check that it keeps the contract.

    It must learn each task well above chance in each scenario, repeat itself bit by bit under the
    same seed whatever the chunk size and the number of tasks per fit, resume bit by bit in a fresh
    object after a stop inside a task and between tasks, load its state with `weights_only=True`,
    leave global state and the stream's later tasks alone, predict without side effects, report
    bytes as integers, give charts with a number per task or a table of tasks (equal ones in all
    these runs) and, where there is a CUDA device, not wait for it in a step.

    Args:
        strategy_class: What to check.
        scenarios: Those the strategy supports.
        heads: Kinds of head to try, each in the scenarios that allow it; the first is tried in
            depth. Missing: multi and single in the task scenario, single and growing in the class
            scenario, single in the domain scenario.
        net: Name and options of the net to train, as in the `net` part of a config. Missing: an
            MLP with one hidden layer of 32 and dropout.
        input_shape: Of one example; a net for images needs `[C, H, W]`, and most that normalise
            over the batch at least 16x16 pixels, for the last batch of an epoch has one example.
        labels_per_class: Make the streams semi-supervised, with so many labelled examples, and of
            uint8 images; `input_shape` is then `[1 or 3, H, W]`. What the unlabelled ones are of
            must not matter.
        **options: For the strategy's constructor.

    Raises:
        AssertionError: The contract is broken; the message says where and what to do.
        UserError: There is nothing to check: not a strategy, no scenario, or no head for one.
    """
    if not (isinstance(strategy_class, type) and issubclass(strategy_class, Strategy)):
        raise UserError(f"strategy_class: {strategy_class!r} is not a subclass of clearn.Strategy")
    tried = _heads(scenarios, heads)
    if strategy_class.training_step is not Strategy.training_step:
        raise AssertionError(
            f"{strategy_class.__name__} overrides training_step, which belongs to clearn (it loops "
            "over chunks of batches): override step(batch) or loss(batch)"
        )
    cases = {
        name: [
            Case(
                strategy_class,
                options,
                name,
                head,
                net=net,
                input_shape=input_shape,
                labels_per_class=labels_per_class,
            )
            for head in tried[name]
        ]
        for name in scenarios
    }
    for case in chain(*cases.values()):
        _check_learning(case)
    case = cases["class" if "class" in cases else scenarios[0]][0]
    whole = case.run()
    _check_bytes(case, whole.result)
    _check_predict(case, whole.strategy)
    _check_state(case, whole.strategy)
    _check_repetition(case, whole)
    _check_future(case, whole)
    _check_resume(case, whole)
    if labels_per_class is not None:
        _check_labels(case, whole)
    if torch.cuda.is_available():
        case.run(accelerator="gpu")  # `Watched` lets no step wait for the device


def _heads(scenarios: Sequence[str], heads: Sequence[str] | None) -> dict[str, list[str]]:
    """The heads to try in each scenario."""
    if not scenarios or any(name not in _HEADS for name in scenarios):
        raise UserError(f"scenarios: {list(scenarios)} is not valid: expected {', '.join(_HEADS)}")
    if heads is None:
        return {name: list(_HEADS[name]) for name in scenarios}
    for head in heads:
        if head not in _ALLOWED["task"]:
            raise unknown_name("heads", head, _ALLOWED["task"])
    tried = {name: [head for head in heads if head in _ALLOWED[name]] for name in scenarios}
    for name, allowed in tried.items():
        if not allowed:
            raise UserError(
                f"heads: {list(heads)} is not valid for the {name} scenario, which allows "
                f"{', '.join(_ALLOWED[name])}; leave the scenario out of `scenarios`, or name one"
            )
    return tried


def _check_learning(case: Case) -> None:
    result = replace(case, training={"epochs": 5}).run().result
    classes = 2 if case.scenario != "class" else 2 * TASKS
    chance = max(1 / classes, float(result.baseline.mean()))
    learned = float(np.diagonal(result.matrix).mean())
    with case.saying():
        if not learned > (1 + chance) / 2:
            raise AssertionError(
                f"accuracy on the tasks just learned is {learned:.2f}, with chance at {chance:.2f} "
                f"and {(1 + chance) / 2:.2f} expected after 5 epochs: does the loss reach the net, "
                "does begin_task call super().begin_task(task), does configure_optimizers hold the "
                "net's parameters, is lr right? Leave the scenario out of `scenarios` if the "
                "method does not support it"
            )


def _check_bytes(case: Case, result: Result) -> None:
    with case.saying():
        for stored in result.bytes:
            if not stored or any(type(n) is not int or n < 0 for n in stored.values()):
                raise AssertionError(
                    f"bytes_stored returns {stored}: expected integers >= 0 by kind, for example "
                    "super().bytes_stored() | {'masks': t.numel() * t.element_size()}"
                )


@torch.no_grad()
def _check_predict(case: Case, strategy: Watched) -> None:
    """Logits of every row by itself, and nothing else happens."""
    strategy.cpu().eval()
    batch = next(strategy.stream[0].test.batches(32))
    task_id = 0 if case.scenario == "task" else None
    before = copy_state(strategy.state_dict()), copy_state(strategy.generators.state_dict())
    with case.saying():
        first = strategy.predict(batch.x, task_id)
        after = strategy.state_dict(), strategy.generators.state_dict()
        if first.shape != (32, strategy.stream.num_classes):
            raise AssertionError(
                f"predict returns the shape {list(first.shape)} for 32 inputs: expected logits "
                f"[32, {strategy.stream.num_classes}] over all classes of the stream"
            )
        if changed := differences(before, after):
            raise AssertionError(
                f"predict changes {name_some(changed)}: it must leave the state and all "
                "generators as they are"
            )
        halves = torch.cat([strategy.predict(half, task_id) for half in batch.x.chunk(2)])
        if not torch.allclose(first, halves, rtol=1e-3, atol=1e-4):
            raise AssertionError(
                "predict gives an input other logits when it comes with other inputs, or when it "
                "is called again: use the net in eval mode and no statistics of the batch"
            )
    strategy.train()


def _check_state(case: Case, strategy: Watched) -> None:
    file = io.BytesIO()
    with case.saying():
        torch.save(strategy.state_dict(), file)
        file.seek(0)
        try:
            torch.load(file, weights_only=True)
        except Exception as error:
            raise AssertionError(
                "state_dict does not load with torch.load(..., weights_only=True): keep tensors, "
                "numbers, strings, lists and dicts in it"
            ) from error


def _check_repetition(case: Case, whole: Outcome) -> None:
    variants: list[tuple[Case, str]] = [
        (
            case,
            "a second run with the same seed ends with other {}: draw from self.generators only "
            "(not from random, numpy or the clock), and keep state in the object, not in its "
            "class or module",
        ),
        (
            replace(case, training={"chunk_size": 1}),
            "with training.chunk_size 1 the run ends with other {}: count in step, and use no "
            "batch_idx and no Lightning hook that is called per chunk",
        ),
        (
            replace(case, training={"evaluate_every": TASKS}),
            "with all tasks in one Lightning fit the run ends with other {}: use begin_task and "
            "end_task in place of Lightning's hooks, and change nothing in predict",
        ),
    ]
    for variant, message in variants:
        torch.rand(5), random.random(), np.random.rand()
        _compare(variant, whole, variant.run(), message)


def _check_future(case: Case, whole: Outcome) -> None:
    other = replace(case, other_future=True).run()
    changed = differences(whole.states[:-1], other.states[:-1])
    with case.saying():
        if changed:
            raise AssertionError(
                f"examples of the last task change {name_some(changed)} after the tasks before it: "
                "use the task at hand and what was stored, not later tasks of self.stream"
            )


def _check_labels(case: Case, whole: Outcome) -> None:
    other = replace(case, other_truth=True).run()
    changed = differences(whole.strategy.net.state_dict(), other.strategy.net.state_dict())
    if not np.array_equal(whole.result.matrix, other.result.matrix, equal_nan=True):
        changed.append("accuracies")
    with case.saying():
        if changed:
            raise AssertionError(
                f"the classes of unlabelled examples change {name_some(changed)}: use what "
                "task.unlabelled.correct returns for reports only"
            )


def _check_resume(case: Case, whole: Outcome) -> None:
    """Stopped in task 1, and a fresh object, whose net was initialised otherwise, goes on."""
    stops = {
        "inside a task": Stop(chunk=STEPS * EPOCHS + STEPS + 2),
        "between tasks": Stop(fit=2),
    }
    case = replace(case, training={"chunk_size": 1})
    for moment, stop in stops.items():
        with tempfile.TemporaryDirectory() as folder:
            case.run(folder=Path(folder), stop=stop)
            try:
                resumed = replace(case, net_seed=1).run(folder=Path(folder))
            except AssertionError as error:
                raise AssertionError(
                    f"{error} (when resuming after a stop {moment}: allocate what state_dict "
                    "holds in the constructor or in prepare, in its final shape)"
                ) from error
        message = f"stopped {moment} and resumed, the run ends with other {{}}: {_RESUME_ADVICE}"
        _compare(case, whole, resumed, message)


_RESUME_ADVICE = (
    "keep all that is needed to go on in register_buffer, parameters or get_extra_state, and let "
    "examples() depend on its arguments and that state only"
)


def _compare(case: Case, whole: Outcome, other: Outcome, message: str) -> None:
    changed = differences(whole.states[-1], other.states[-1])
    for row, left, right in zip(
        range(TASKS), whole.result.matrix, other.result.matrix, strict=True
    ):
        if not np.isnan(right).all() and not np.array_equal(left, right, equal_nan=True):
            changed.append(f"accuracies after task {row}")
    left, right = whole.result.charts, other.result.charts
    names = dict.fromkeys([*left, *right])
    # As text, in which a NaN equals a NaN.
    changed += [f"charts()[{k!r}]" for k in names if repr(left.get(k)) != repr(right.get(k))]
    with case.saying():
        if changed:
            raise AssertionError(message.format(name_some(changed)))
