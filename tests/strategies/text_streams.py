"""Small streams of made-up texts, and a tiny language model that is drawn at random."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertModel

from clearn.nets import MultiHead, Net
from clearn.nets.language import FrozenLM
from clearn.run import Run, Training
from clearn.strategy import Strategy
from clearn.stream import Stream
from tests.clearn.words import IDS, PAD, SEP, write_tokenizer

TASKS = 4


def texts(per_class: int, seed: int) -> list[tuple[str, int]]:
    """Two classes a task, each with a word of its own among others."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for label in range(2 * TASKS):
        for _ in range(per_class):
            count = int(torch.randint(1, 6, (), generator=generator))
            noise = torch.randint(20, 40, (count,), generator=generator).tolist()
            words = [f"w{label}", *(f"w{number}" for number in noise)]
            order = torch.randperm(len(words), generator=generator).tolist()
            rows.append((" ".join(words[k] for k in order), label))
    return rows


def text_stream(folder: Path, **split: Any) -> Stream:
    """Four tasks of two classes, 10 training and 6 test texts each."""
    options = {"num_tasks": TASKS, "scenario": "task"} | split
    return Stream.from_texts(
        texts(10, 1), texts(6, 2), tokenizer=write_tokenizer(folder), **options
    )


def language_net(stream: Stream) -> Net:
    """A BERT of one layer and 16 features, the same each time, with a head per task."""
    config = BertConfig(
        vocab_size=len(IDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=96,
        pad_token_id=PAD,
        initializer_range=0.5,  # so that words tell texts apart
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = FrozenLM(BertModel(config), name="tiny", pad_id=PAD, sep_id=SEP)
        head = MultiHead(16, [task.classes for task in stream], stream.num_classes)
    return Net(model, head)


def learn(strategy: Strategy, stream: Stream, epochs: int = 2, **options: Any) -> Run:
    """A whole run."""
    training = Training(epochs=epochs, batch_size=6)
    run = Run(
        strategy, stream, training=training, seed=3, trainer={"accelerator": "cpu"}, **options
    )
    run.fit()
    return run
