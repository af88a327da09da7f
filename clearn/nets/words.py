"""A head that trains nothing: classes are words, and a language model says how likely each is.

Shapes: B batch, D features, C classes of the stream, T tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clearn.errors import UserError
from clearn.nets.heads import Head, TaskMask
from clearn.nets.language import FrozenLM
from clearn.tokens import TokenPreprocess, load_tokenizer

if TYPE_CHECKING:
    from clearn.stream import Stream

_LONGEST = 32  # tokens of a label's name that are looked at; the first one counts


class WordHead(Head):
    """The language model's own logits of the first token of each label's name.

    Given a task id, the logits of other tasks' classes are `MASKED`. The rows belong to the frozen
    model and are in no state.

    Args:
        rows: Of the model's output layer, one for each class, `[C, D]`.
        classes: Labels of each task.
    """

    rows: Tensor

    def __init__(self, rows: Tensor, classes: Sequence[Sequence[int]]) -> None:
        super().__init__(rows.shape[1], len(rows))
        self.register_buffer("rows", rows, persistent=False)
        self.mask = TaskMask(len(rows), classes)

    def begin_task(self, index: int, classes: Sequence[int], generator: torch.Generator) -> None:
        """Note which classes the task has; draws nothing."""
        self.mask.register(index, classes)

    def forward(self, features: Tensor, task_id: int | Tensor | None = None) -> Tensor:
        """Logits `[B, C]`."""
        logits = F.linear(features, self.rows)
        return logits if task_id is None else cast("Tensor", self.mask(logits, task_id))


def word_head(backbone: nn.Module, stream: Stream) -> WordHead:
    """The head for a language model that writes, and the classes' names in a stream.

    Raises:
        UserError: The backbone does not write, or two classes begin with the same token: of one
            task in the task scenario, of the stream in others.
    """
    if not isinstance(backbone, FrozenLM) or backbone.kind != "t5":
        raise UserError(
            "net.head: words needs a language model that writes, an encoder-decoder of T5's kind; "
            "set net.name to transformers/<name of one>, or net.head to multi"
        )
    tokenizer = load_tokenizer(cast("TokenPreprocess", stream.preprocess).tokenizer)
    found = tokenizer.encode(stream.class_names, tokenizer.limit(_LONGEST))
    tokens = found.values[found.lengths.cumsum(0) - found.lengths].long()
    classes = [task.classes for task in stream.tasks]
    rivals = classes if stream.scenario == "task" else [range(stream.num_classes)]
    for group in rivals:
        _check_apart(group, tokens.tolist(), stream.class_names)
    return WordHead(_output_rows(backbone, tokens), classes)


def _check_apart(group: Sequence[int], tokens: Sequence[int], names: Sequence[str]) -> None:
    """No two classes of a group have the same token."""
    first: dict[int, int] = {}
    for label in group:
        other = first.setdefault(tokens[label], label)
        if other != label:
            raise UserError(
                f"net.head: words cannot tell {names[other]!r} from {names[label]!r}, which begin "
                "with the same token; give the labels names that begin differently, or set "
                "net.head to multi"
            )


@torch.no_grad()
def _output_rows(lm: FrozenLM, tokens: Tensor) -> Tensor:
    """Rows `[C, D]` whose products with features are the model's logits of these tokens.

    Some models of T5's kind scale the features by D ** -0.5 before their output layer. Where that
    is written depends on the kind and on the version of transformers: the model itself is asked.
    """
    layer: Tensor = lm.model.get_output_embeddings().weight
    text = torch.tensor([[1 if lm.pad_id == 0 else 0]], device=layer.device)
    start = torch.full_like(text, lm.start_id)
    logits: Tensor = lm.model(input_ids=text, decoder_input_ids=start).logits[0, 0]
    plain = layer @ lm(text)[0]
    scales = (1.0, lm.num_features**-0.5)
    scale = min(scales, key=lambda scale: float((logits - scale * plain).abs().sum()))
    rows: Tensor = scale * layer[tokens.to(layer.device)]
    return rows
