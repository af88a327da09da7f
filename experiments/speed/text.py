"""Text: a loop over clearn's batches, tokens and all, against a loop over batches made before.

    OMP_NUM_THREADS=1 python experiments/speed/text.py

4 000 texts of 5 to 60 words, cut at 64 tokens, batch 16, in random order. The net is as cheap as a
net on text can be: a frozen table of 64 numbers a token, their mean, and a linear layer that
learns. A language model costs a hundred times as much, and hides what this shows. Bar: >= 0.9x the
texts per second of the loop over batches made before (CPU seconds <= 1.11x). Reading the texts and
making their tokens is timed by itself: without the cache, and from it. Testing goes from short
texts to long ones: 512 texts through MiniLM, 64 at a time, against the same in the order they came
in. The longest of 64 texts has about 64 tokens, a text 34 on average: two thirds of the time is
expected.
"""

from __future__ import annotations

import os
import random
import tempfile

import torch
from harness import interleave
from torch import nn

from clearn.batch import Batch
from clearn.nets.language import transformers_builder
from clearn.stream import Stream
from clearn.tokens import MINILM, load_tokenizer

torch.set_num_threads(1)
COUNT, BATCH, EPOCHS, LIMIT = 4_000, 16, 3, 64
_DRAWS = random.Random(0)
_WORDS = ["the", "film", "was", "not", "very", "good", "markets", "rose", "village", "river"]
ROWS = [
    (" ".join(_DRAWS.choices(_WORDS, k=_DRAWS.randint(5, 60))), index % 4) for index in range(COUNT)
]
TEXTS = [text for text, _ in ROWS]
TOKENIZER = load_tokenizer(MINILM)


def order(epoch: int) -> torch.Tensor:
    return torch.randperm(COUNT, generator=torch.Generator().manual_seed(epoch))


class Net(nn.Module):
    """The mean of a frozen embedding, and a linear layer."""

    def __init__(self, preprocess) -> None:
        super().__init__()
        self.pad = preprocess.pad_id
        self.table = nn.Embedding(preprocess.vocab_size, 64).requires_grad_(False)
        self.layer = nn.Linear(64, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = (x != self.pad).unsqueeze(2)
        return self.layer((self.table(x) * seen).sum(1) / seen.sum(1))


def train(net: Net, batches) -> None:
    optimizer = torch.optim.SGD(net.layer.parameters(), lr=0.1)
    for batch in batches:
        loss = nn.functional.cross_entropy(net(batch.x), batch.y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


with tempfile.TemporaryDirectory() as folder:
    os.environ["CLEARN_CACHE"] = folder
    STREAM = Stream.from_texts(ROWS, ROWS[:8], max_length=LIMIT, num_tasks=1)
    EXAMPLES = STREAM[0].train
    NET = Net(STREAM.preprocess)
    MADE: list[list[Batch]] = [
        list(EXAMPLES.batches(BATCH, order=order(epoch), train=True)) for epoch in range(EPOCHS)
    ]

    def made_before() -> None:
        for batches in MADE:
            train(NET, batches)

    def clearn() -> None:
        for epoch in range(EPOCHS):
            train(NET, EXAMPLES.batches(BATCH, order=order(epoch), train=True))

    def made_alone() -> None:
        for epoch in range(EPOCHS):
            for _ in EXAMPLES.batches(BATCH, order=order(epoch), train=True):
                pass

    MINI_LM = transformers_builder(MINILM)((LIMIT,)).eval()
    TESTED = EXAMPLES.select(torch.arange(512))

    def test(order: torch.Tensor | None) -> None:
        with torch.no_grad():
            for batch in TESTED.batches(64, order=order):
                MINI_LM(batch.x)

    interleave(
        f"text, {COUNT} texts of at most {LIMIT} tokens, batch {BATCH}, mean of embeddings",
        {
            "batches made before": made_before,
            "clearn": clearn,
            "clearn's batches alone": made_alone,
        },
        reference="batches made before",
        bar="clearn <= 1.11 (0.9x the texts per second)",
    )
    interleave(
        f"text, tokens of {COUNT} texts",
        {
            "tokenizer": lambda: TOKENIZER._encode(TEXTS, LIMIT),
            "clearn, from the cache": lambda: TOKENIZER.encode(TEXTS, LIMIT),
        },
        reference="tokenizer",
        rounds=5,
    )
    interleave(
        f"text, testing {len(TESTED)} texts of at most {LIMIT} tokens, MiniLM, batch 64",
        {
            "as they came": lambda: test(None),
            "by length": lambda: test(TESTED.by_length()),
        },
        reference="as they came",
        rounds=5,
    )
