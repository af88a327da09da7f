"""What a run made in Python is, in the plain values that its record keeps."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parameter import is_lazy

from clearn.given import full_name

if TYPE_CHECKING:
    from clearn.run.training import Training
    from clearn.strategy import Strategy
    from clearn.stream import Stream

_LOOKED_AT = 8

MADE_IN = "made_in"
"""The field that only descriptions have, and no configuration that `clearn run` takes."""


def describe_run(
    strategy: Strategy,
    stream: Stream,
    training: Training,
    trainer: Mapping[str, Any],
    seed: int,
) -> dict[str, Any]:
    """A description that is equal for equal runs, and differs where an option does.

    Of the trainer's options only plain values count: callbacks may come and go.
    """
    net = strategy.net
    return {
        MADE_IN: "Python",
        "strategy": {"name": full_name(type(strategy))} | strategy.made_with,
        "net": {
            "name": full_name(type(net.backbone)),
            "head": full_name(type(net.head)),
            "parameters": sum(p.numel() for p in net.parameters() if not is_lazy(p)),
        },
        "stream": _describe_stream(stream),
        "training": asdict(training),
        "trainer": {k: v for k, v in trainer.items() if isinstance(v, bool | int | float | str)},
        "seed": seed,
    }


def _describe_stream(stream: Stream) -> dict[str, Any]:
    """Its measures, and a digest of which classes and examples each task has.

    Of the examples themselves a few are looked at, as a net sees them in evaluation.
    """
    digest = hashlib.sha256(repr(stream.original_classes).encode())
    for task in stream:
        digest.update(repr(task.classes).encode())
        for examples in filter(None, (task.train, task.test, task.validation, task.unlabelled)):
            digest.update(examples.labels.numpy().tobytes() + examples.rows.numpy().tobytes())
            few = torch.linspace(0, len(examples) - 1, min(len(examples), _LOOKED_AT)).long()
            for batch in examples.batches(_LOOKED_AT, order=few):
                digest.update(batch.x.contiguous().numpy().tobytes())
    return {
        "name": stream.name,
        "scenario": stream.scenario,
        "tasks": len(stream),
        "classes": len(stream.class_names),
        "examples": sum(len(task.train) for task in stream),
        "digest": digest.hexdigest()[:16],
    }
