"""Weights in files: read without unpickling anything but tensors, and loaded where all of them fit.

Known kinds: safetensors; what `torch.save(model.state_dict(), file)` writes; and checkpoints with
the tensors below `state_dict` or `model`, among them those of MoCo v3 (Chen et al. 2021), whose two
encoders and predictor lie side by side in one state.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from clearn.errors import UserError

SUFFIXES = (".safetensors", ".pt", ".pth", ".pth.tar")

_INSIDE = ("state_dict", "model")

# MoCo v3 evaluates its base encoder; the momentum encoder is taken where it is alone.
_ENCODERS = ("module.base_encoder.", "module.momentum_encoder.")

_SHOWN = 3


def load_weights(
    module: nn.Module, state: Mapping[str, Tensor], source: str, *, gone: Iterable[str] = ()
) -> None:
    """Give a module these weights, in the type of float that it has.

    Args:
        module: A backbone.
        state: Its weights by name.
        source: What messages call them.
        gone: Layers that have been taken off the module, whose weights in `state` are left out.

    Raises:
        UserError: Names or shapes differ; then the module is not fit for use.
    """
    left_out = tuple(f"{layer}." for layer in gone)
    given = {name: value for name, value in state.items() if not name.startswith(left_out)}
    own = module.state_dict()
    other = [name for name in own if name in given and given[name].shape != own[name].shape]
    fitting = {name: value for name, value in given.items() if name not in other}
    # Not strict, to name all differences at once; torch knows which buffers may be missing.
    missing, unexpected = module.load_state_dict(fitting, strict=False)
    problems = {
        "missing": [name for name in missing if name not in other],
        "unexpected": unexpected,
        "of another shape": [
            f"{name} {list(given[name].shape)} for {list(own[name].shape)}" for name in other
        ],
    }
    if any(problems.values()):
        counts = [
            f"{len(names)} {what} ({_first(names)})" for what, names in problems.items() if names
        ]
        raise UserError(
            f"net.weights: {source} does not fit the net: {', '.join(counts)}; give weights of "
            "this net, made for the same options and stream.image_size"
        )


def read_tensors(file: Path) -> Mapping[str, Tensor]:
    """The tensors in a file, by name; of a checkpoint of MoCo v3 those of its base encoder.

    Raises:
        UserError: The file is missing, damaged, or holds something else.
    """
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"net.weights: cannot read {file} ({error.strerror or error})") from error
    except Exception as error:  # bytes that are no such file make the readers fail in any way
        raise _unreadable(file, error) from error
    return _encoder(_state(content, file))


def _unreadable(file: Path, error: Exception) -> UserError:
    strange = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
    if strange is None:
        return UserError(
            f"net.weights: {file} is not a file of plain tensors ({type(error).__name__}); save "
            "one by torch.save(model.state_dict(), file) or with safetensors"
        )
    return UserError(
        f"net.weights: {file} is not a file of plain tensors: it also holds {strange[1]}, and "
        "unpickling objects can run any code; if you trust it, keep its tensors alone, once: "
        "torch.save(torch.load(file, weights_only=False)['state_dict'], other_file)"
    )


def _state(content: Any, file: Path) -> Mapping[str, Tensor]:
    """The state in what a file holds."""
    if isinstance(content, Mapping):
        for name in _INSIDE:
            if isinstance(content.get(name), Mapping):
                content = content[name]
    if isinstance(content, Mapping) and content:
        names_and_tensors = all(
            isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
        )
        if names_and_tensors:
            return content
    raise UserError(
        f"net.weights: {file} does not map names to tensors, nor does what is in it as "
        f"{' or '.join(_INSIDE)}; save a file that does by torch.save(model.state_dict(), file)"
    )


def _encoder(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The one encoder to use, with its own names, where there are several in a state."""
    for prefix in _ENCODERS:
        found = {
            name.removeprefix(prefix): value
            for name, value in state.items()
            if name.startswith(prefix)
        }
        if found:
            return found
    return state


def _first(names: list[str]) -> str:
    more = ", ..." if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
