"""A head that trains nothing: classes are words, and a language model says how likely each is.

Shapes: B batch, C classes of the stream, D features at a place, P places, E tokens to choose from.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor, nn

from clearn.errors import UserError
from clearn.nets.heads import Head, TaskMask
from clearn.nets.language import FrozenLM
from clearn.tokens import TokenPreprocess, load_tokenizer

if TYPE_CHECKING:
    from clearn.stream import Stream

_LONGEST = 32  # tokens of a label's name that are looked at

Tokens = tuple[int, ...]


class Choice(NamedTuple):
    """Where names part.

    Attributes:
        before: The tokens that they have in common.
        labels: The classes whose names go on with each token.
    """

    before: Tokens
    labels: Mapping[int, Sequence[int]]


class WordHead(Head):
    """How likely a language model is to write the name of each class, and none but those.

    Names are told apart by their first tokens, whose logits are the model's own. Where names begin
    alike, the log-probability of each later token by which they differ is added, among the tokens
    with which one of them goes on. So a softmax gives the probability of each name when nothing
    else can be written.

    Given a task id, the logits of other tasks' classes are `MASKED`. The rows belong to the frozen
    model and are in no state.

    Args:
        choices: Where the names of classes part that have to be told apart.
        rows: Of the model's output layer, for each token of each choice in order, `[E, D]`.
        num_classes: C.
        classes: Labels of each task.

    Attributes:
        places: What the decoder has written where features are to be taken.
    """

    rows: Tensor
    place: Tensor
    path: Tensor

    def __init__(
        self,
        choices: Sequence[Choice],
        rows: Tensor,
        num_classes: int,
        classes: Sequence[Sequence[int]],
    ) -> None:
        self.places = list(dict.fromkeys(choice.before for choice in choices))
        super().__init__(len(self.places) * rows.shape[1], num_classes)
        place = [self.places.index(choice.before) for choice in choices for _ in choice.labels]
        path = torch.zeros(num_classes, len(rows))
        for edge, labels in enumerate(found for c in choices for found in c.labels.values()):
            path[list(labels), edge] = 1.0
        ends = accumulate(len(choice.labels) for choice in choices)
        self._later = [
            slice(end - len(choice.labels), end)
            for choice, end in zip(choices, ends, strict=True)
            if choice.before
        ]
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("place", torch.tensor(place).to(rows.device), persistent=False)
        self.register_buffer("path", path.to(rows), persistent=False)
        self.mask = TaskMask(num_classes, classes)

    def begin_task(self, index: int, classes: Sequence[int], generator: torch.Generator) -> None:
        """Note which classes the task has; draws nothing."""
        self.mask.register(index, classes)

    def forward(self, features: Tensor, task_id: int | Tensor | None = None) -> Tensor:
        """Logits `[B, C]` of features `[B, P * D]`."""
        parts = features.reshape(len(features), len(self.places), self.rows.shape[1])
        logits = parts @ self.rows.T
        logits = logits.gather(1, self.place.expand(len(logits), 1, -1)).squeeze(1)
        for among in self._later:
            logits[:, among] = logits[:, among].log_softmax(dim=1)
        logits = logits @ self.path.T
        return logits if task_id is None else cast("Tensor", self.mask(logits, task_id))


def word_head(backbone: nn.Module, stream: Stream) -> WordHead:
    """The head for a language model that writes, and the classes' names in a stream.

    The backbone takes its features where the head needs them from then on.

    Raises:
        UserError: The backbone does not write, or two classes have the same name: of one task in
            the task scenario, of the stream in others.
    """
    if not isinstance(backbone, FrozenLM) or backbone.kind != "t5":
        raise UserError(
            "net.head: words needs a language model that writes, an encoder-decoder of T5's kind; "
            "set net.name to transformers/<name of one>, or net.head to multi"
        )
    tokenizer = load_tokenizer(cast("TokenPreprocess", stream.preprocess).tokenizer)
    found = tokenizer.encode(stream.class_names, tokenizer.limit(_LONGEST))
    names = [tuple(name.tolist()) for name in torch.split(found.values, found.lengths.tolist())]
    classes = [task.classes for task in stream.tasks]
    rivals = classes if stream.scenario == "task" else [range(stream.num_classes)]
    choices = []
    for group in rivals:
        _check_apart(group, names, stream.class_names)
        choices += where_they_part({label: names[label] for label in group})
    tokens = torch.tensor([token for choice in choices for token in choice.labels])
    head = WordHead(choices, _output_rows(backbone, tokens), stream.num_classes, classes)
    backbone.write(head.places)
    return head


def where_they_part(names: Mapping[int, Tokens]) -> list[Choice]:
    """The first choice among the names of classes, by label, and where those left part again."""
    found: dict[Tokens, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for label, name in names.items():
        for place, token in enumerate(name):
            found[name[:place]][token].append(label)
    return [
        Choice(before, labels) for before, labels in found.items() if len(labels) > 1 or not before
    ]


def _check_apart(group: Sequence[int], tokens: Sequence[Tokens], names: Sequence[str]) -> None:
    """No two classes of a group have the same tokens."""
    first: dict[Tokens, int] = {}
    for label in group:
        other = first.setdefault(tokens[label], label)
        if other != label:
            raise UserError(
                f"net.head: words cannot tell {names[other]!r} from {names[label]!r}, which have "
                "the same tokens; give the labels different names, or set net.head to multi"
            )


@torch.no_grad()
def _output_rows(lm: FrozenLM, tokens: Tensor) -> Tensor:
    """Rows `[E, D]` whose products with features are the model's logits of these tokens.

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
