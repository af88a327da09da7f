"""A tokenizer of a few words, and folders of texts, made by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from clearn.examples import Examples

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = [f"w{number}" for number in range(40)]
IDS = {word: number for number, word in enumerate([*WORDS, *SPECIAL])}  # so that [PAD] is not 0
PAD, CLS, SEP = IDS["[PAD]"], IDS["[CLS]"], IDS["[SEP]"]


def write_tokenizer(folder: Path, window: int = 32, **config: Any) -> str:
    """A word of `WORDS` is a token, between [CLS] and [SEP]; other words are unknown."""
    tokenizer = Tokenizer(models.WordLevel(IDS, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    tokenizer.enable_truncation(5)  # what a file may ask for, and is not to be done
    tokenizer.enable_padding(length=9)
    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=window,
        **{**names, "pad_token": "[PAD]", **config},
    ).save_pretrained(folder)
    return str(folder)


def ids(*texts: str) -> list[int]:
    """The tokens of a text or pair that need not be truncated."""
    found = [CLS]
    for text in texts:
        found += [*(IDS.get(word.lower(), IDS["[UNK]"]) for word in text.split()), SEP]
    return found


def rows(label: int, count: int, words: int, first: int = 0) -> list[dict[str, Any]]:
    """`count` texts of one label, all different: `w<label>`, some more words, and a number."""
    return [
        {"text": f"w{label} {'w9 ' * (index % words)}n{first + index}", "label": label}
        for index in range(count)
    ]


def write_task(
    folder: Path,
    counts: Sequence[tuple[int, int]],
    names: Sequence[str] | None = None,
    tables: str = ".",
) -> None:
    """A task with so many training and test texts of each label, those of all labels mixed."""
    (folder / tables).mkdir(parents=True, exist_ok=True)
    names = names or [f"{folder.name} {label}" for label in range(len(counts))]
    (folder / "labels.json").write_text(json.dumps(dict(enumerate(names))), encoding="utf-8")
    for place, part in enumerate(("train", "test")):
        found = [row for label, pair in enumerate(counts) for row in rows(label, pair[place], 7)]
        found.sort(key=lambda row: row["text"].split()[-1])
        for row in found:
            row["text"] += f" {part} {folder.name} {tables}"
        lines = "".join(json.dumps(row) + "\n" for row in found)
        (folder / tables / f"{part}.jsonl").write_text(lines, encoding="utf-8")


def unpadded(examples: Examples, batch_size: int = 3) -> Iterator[tuple[list[int], int]]:
    """Tokens without what rows are filled up with, and labels."""
    for batch in examples.batches(batch_size):
        assert batch.raw.dtype == torch.int32
        assert batch.x.dtype == torch.int64
        assert torch.equal(batch.x, batch.raw.long())
        for row, label in zip(batch.raw.tolist(), batch.y.tolist(), strict=True):
            length = len(row) - row[::-1].index(SEP)
            assert set(row[length:]) <= {PAD}
            yield row[:length], label
