"""Tiny language models of transformers, drawn at random, and what they make of texts by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor

from clearn.nets import FrozenLM
from tests.clearn.words import CLS, IDS, PAD, SEP

WINDOW = 20
COMMON = {"vocab_size": len(IDS), "pad_token_id": PAD, "initializer_range": 0.5}
SMALL = {
    **COMMON, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 32, "max_position_embeddings": WINDOW,
}  # fmt: skip
DISTIL = {
    **COMMON, "dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 32,
    "max_position_embeddings": WINDOW,
}  # fmt: skip
AFTER_PAD = {"max_position_embeddings": WINDOW + PAD + 1}  # positions begin behind that of padding
ENCODERS: dict[str, Callable[[], Any]] = {
    "bert": lambda: transformers.BertConfig(**SMALL),
    "roberta": lambda: transformers.RobertaConfig(**(SMALL | AFTER_PAD), type_vocab_size=1),
    "mpnet": lambda: transformers.MPNetConfig(**(SMALL | COMMON | {"pad_token_id": 1})),
    "distilbert": lambda: transformers.DistilBertConfig(**DISTIL),
    "electra": lambda: transformers.ElectraConfig(**SMALL, embedding_size=8),
    "albert": lambda: transformers.AlbertConfig(**SMALL, embedding_size=8),
    "deberta-v2": lambda: transformers.DebertaV2Config(**SMALL),
}
T5 = {
    "vocab_size": 44, "d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 2, "num_heads": 4,
    "pad_token_id": PAD, "decoder_start_token_id": PAD,
}  # fmt: skip
WRITERS: dict[str, Callable[[], Any]] = {
    "t5, as first published": lambda: transformers.T5Config(**T5),
    "t5 1.1": lambda: transformers.T5Config(**T5, tie_word_embeddings=False),
    "mt5": lambda: transformers.MT5Config(**T5),
    "umt5": lambda: transformers.UMT5Config(**T5),
}


def original(config: Any) -> Any:
    """The model of transformers."""
    torch.manual_seed(3)
    writes = config.is_encoder_decoder
    auto = transformers.AutoModelForSeq2SeqLM if writes else transformers.AutoModel
    return auto.from_config(config).eval()


def texts(lengths: Sequence[int], pad: int = PAD) -> Tensor:
    """A text of each length, with special tokens at its ends."""
    generator = torch.Generator().manual_seed(len(lengths))
    ids = torch.full((len(lengths), max(lengths)), pad)
    for row, length in zip(ids, lengths, strict=True):
        row[:length] = torch.randint(2, 40, (length,), generator=generator)
        row[0], row[length - 1] = CLS, SEP
    return ids


def prompt_for(lm: FrozenLM, rows: int = 3) -> Tensor:
    draw = torch.randn(rows, lm.embeddings.shape[1], generator=torch.Generator().manual_seed(1))
    return draw.requires_grad_()


def one_by_one(model: Any, ids: Tensor, pad: int, prompt: Tensor | None = None) -> Tensor:
    """Features of each text by itself, without padding, and with the prompt put in by hand."""
    features = []
    for row in ids:
        row = row[row != pad][None]
        rows = model.get_input_embeddings()(row)
        at = 0 if model.config.is_encoder_decoder else 1
        if prompt is not None:
            rows = torch.cat([rows[:, :at], prompt[None], rows[:, at:]], 1)
        if model.config.is_encoder_decoder:
            start = torch.full((1, 1), PAD)
            out = model(inputs_embeds=rows, decoder_input_ids=start, output_hidden_states=True)
            features.append(out.decoder_hidden_states[-1][:, 0])
        else:
            features.append(model(inputs_embeds=rows).last_hidden_state.mean(1))
    return torch.cat(features)
