"""Small backbones: a multilayer perceptron, LeNet-5 and a small convolutional net."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from clearn.errors import UserError


class MLP(nn.Module):
    """Fully connected layers with ReLU, for inputs of any shape.

    Args:
        input_shape: Of one example.
        hidden: Width of each hidden layer, at least one.
        dropout: Probability of dropping a unit after each hidden layer, in [0, 1).
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        *,
        hidden: Sequence[int] = (256, 256),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not hidden or any(width < 1 for width in hidden):
            raise UserError(f"net.hidden: {list(hidden)} is not valid: expected widths >= 1")
        if not 0 <= dropout < 1:
            raise UserError(f"net.dropout: {dropout} is not valid: expected 0 <= number < 1")
        layers: list[nn.Module] = []
        widths = [math.prod(input_shape), *hidden]
        for fan_in, fan_out in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU(inplace=True)]
            if dropout:
                layers.append(nn.Dropout(dropout))
        self.layers = nn.Sequential(*layers)
        self.num_features = widths[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Features `[B, num_features]`."""
        return cast("Tensor", self.layers(x.flatten(1)))
