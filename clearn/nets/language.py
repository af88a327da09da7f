"""Frozen language models of transformers, into which soft prompts go as embeddings.

Shapes: B batch, L tokens of a text, R rows of a prompt, V rows of the vocabulary, E width of the
embeddings, D features. E is D in all models but a few (ELECTRA, ALBERT).
"""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from clearn.errors import UserError
from clearn.tokens import MINILM, TokenPreprocess, model_path

if TYPE_CHECKING:
    from clearn.preprocess import Preprocess

# What is left to a text at the least: a special token at either end, and one between them.
_ROOM = 3

# Which take a mask of four dimensions as it is, since transformers 5.0. From one of two dimensions
# transformers makes such a mask, but it first looks whether anything is masked at all, and so a
# step of other models waits for the device.
_MASKED_BY_US = {
    "albert", "bert", "camembert", "distilbert", "electra", "mt5", "roberta", "t5", "xlm-roberta",
}  # fmt: skip


class FrozenLM(nn.Module):
    """A language model that never changes: features of texts, with or without a soft prompt.

    BERT's kind of encoder reads [CLS], the prompt, the rest of the text, in positions 0, 1, ...;
    features are the mean of its last hidden states over all of them, padding left out. T5's kind
    reads the prompt before the text, and features are the decoder's last hidden state where it
    has to write its first token, or where `write` says.

    The model stands outside the module tree: it has no parameters to train, is always in eval
    mode, moves with the module, and is in no `state_dict`. A checkpoint holds its `fingerprint`
    in its place, so that a run goes on with the same model or not at all.

    Args:
        model: An encoder, or an encoder-decoder with an output layer; it is frozen.
        name: For messages.
        pad_id: Stands behind the end of short texts; the model's own when missing.
        sep_id: Ends each of the two texts of a pair; None for models that do not number them.

    Attributes:
        kind: encoder or t5.
        num_features: D; of T5's kind times the number of places that `write` names.
        window: Positions the model has for prompt and text; None where there is no limit.

    Raises:
        UserError: The model is of neither kind; a prompt leaves no room for a text; a state
            belongs to another model.
    """

    fingerprint: Tensor
    written: Tensor
    places: Tensor

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str = "model",
        pad_id: int | None = None,
        sep_id: int | None = None,
    ) -> None:
        super().__init__()
        config = cast("Any", model.config)
        self.name = name
        self.kind: Literal["encoder", "t5"] = _kind(model, name)
        self.num_features: int = config.hidden_size
        self.window = _window(model)
        self.pad_id: int = config.pad_token_id if pad_id is None else pad_id
        self.sep_id = sep_id
        self._outside = (model.requires_grad_(False).eval(),)  # in a tuple: not a submodule
        self.register_buffer("fingerprint", torch.tensor(_checksum(model)))
        if self.kind == "t5":
            self.write([()])

    @property
    def model(self) -> Any:
        """The model of transformers."""
        return self._outside[0]

    @property
    def embeddings(self) -> Tensor:
        """A row for each token of the vocabulary, `[V, E]`."""
        return cast("Tensor", self.model.get_input_embeddings().weight)

    @property
    def start_id(self) -> int:
        """The token with which the decoder begins: padding where the config does not say."""
        config = self.model.config
        start = getattr(config, "decoder_start_token_id", None)
        return cast("int", config.pad_token_id if start is None else start)

    @property
    def has_types(self) -> bool:
        """Whether the model numbers the two texts of a pair."""
        return self.kind == "encoder" and getattr(self.model.config, "type_vocab_size", 0) > 1

    def use_tokens(self, preprocess: Preprocess) -> None:
        """Read texts as this preprocess has made them: its `pad_id` and `sep_id` count from now on.

        Raises:
            UserError: It makes no tokens, or those of another model.
        """
        if not isinstance(preprocess, TokenPreprocess):
            raise UserError(
                f"net.name: transformers/{self.name} takes the tokens of texts, and the examples "
                "of this stream are none; take a stream of texts, or another net"
            )
        tokenizer = preprocess.tokenizer
        if tokenizer != self.name:
            raise UserError(
                f"stream.tokenizer: {tokenizer} does not go with net.name transformers/{self.name}"
                f"; set stream.tokenizer to {self.name}, or net.name to transformers/{tokenizer}"
            )
        if preprocess.vocab_size > len(self.embeddings):
            raise UserError(
                f"stream.tokenizer: {tokenizer} has {preprocess.vocab_size} tokens, and the model "
                f"of that name has embeddings for {len(self.embeddings)}; give a folder in which "
                "the two belong together"
            )
        self.pad_id, self.sep_id = preprocess.pad_id, preprocess.sep_id

    def write(self, beginnings: Sequence[Sequence[int]]) -> None:
        """Take features where the decoder has written these tokens, those of all side by side.

        Args:
            beginnings: One or more; one of no tokens is where the first is to be written.
        """
        given = [tuple(beginning) for beginning in beginnings]
        # A decoder that reads the longest passes by those with which it begins.
        longest = [b for b in given if not any(o != b == o[: len(b)] for o in given)]
        length = 1 + max(map(len, longest))
        written = torch.full((len(longest), length), self.start_id)
        for row, beginning in zip(written, longest, strict=True):
            row[1 : 1 + len(beginning)] = torch.tensor(beginning, dtype=row.dtype)
        places = [
            next(row * length + len(b) for row, o in enumerate(longest) if o[: len(b)] == b)
            for b in given
        ]
        device = self.fingerprint.device
        self.register_buffer("written", written.to(device), persistent=False)
        self.register_buffer("places", torch.tensor(places, device=device), persistent=False)
        self.num_features = len(given) * self.model.config.hidden_size

    def forward(self, ids: Tensor, prompt: Tensor | None = None) -> Tensor:
        """Features `[B, D]`.

        No graph is kept unless the prompt needs a gradient.

        Args:
            ids: Tokens with the special ones, padded at the end, `[B, L]`. Where prompt and text
                are longer than the window the text loses tokens, though never its last one.
            prompt: Embeddings `[R, E]`, the same for all rows.
        """
        ids = self._fit(ids, 0 if prompt is None else len(prompt))
        needed = prompt is not None and prompt.requires_grad and torch.is_grad_enabled()
        with torch.set_grad_enabled(needed):
            return self._features(ids, prompt)

    def room(self, rows: int) -> int | None:
        """Positions that a prompt of so many rows leaves to a text; None where there is no limit.

        Raises:
            UserError: They are too few.
        """
        if self.window is None:
            return None
        room = self.window - rows
        if room < _ROOM:
            raise UserError(
                f"prompt: {rows} rows leave {max(0, room)} of the {self.window} positions of "
                f"transformers/{self.name} to the text; expected at most {self.window - _ROOM} rows"
            )
        return room

    def loses(self, ids: Tensor, rows: int) -> Tensor:
        """Which texts `[B, L]` lose tokens to a prompt of so many rows: bool `[B]`."""
        room = self.room(rows)
        beyond = ids[:, ids.shape[1] if room is None else room :]
        return (beyond != self.pad_id).any(1)

    def _fit(self, ids: Tensor, rows: int) -> Tensor:
        """The texts, cut to what a prompt leaves of the window; known without looking at them."""
        room = self.room(rows)
        if room is None or ids.shape[1] <= room:
            return ids
        lost = self.loses(ids, rows)[:, None]
        last = ids.gather(1, ((ids != self.pad_id).sum(1, keepdim=True) - 1).clamp(min=0))
        return torch.cat([ids[:, : room - 1], torch.where(lost, last, ids[:, room - 1 : room])], 1)

    def _features(self, ids: Tensor, prompt: Tensor | None) -> Tensor:
        kept = ids != self.pad_id
        rows: Tensor = self.model.get_input_embeddings()(ids)
        types = self._types(ids, kept) if self.has_types else None
        if prompt is not None:
            at = 1 if self.kind == "encoder" else 0
            rows = _insert(rows, at, prompt)
            kept = _insert(kept, at, kept.new_ones(len(prompt)))
            types = None if types is None else _insert(types, at, types.new_zeros(len(prompt)))
        mask = kept
        if self.model.config.model_type in _MASKED_BY_US:
            mask = (~kept)[:, None, None].to(rows.dtype) * torch.finfo(rows.dtype).min
        given = {"inputs_embeds": rows, "attention_mask": mask}
        if self.kind == "t5":
            return self._decode(self.model.get_encoder()(**given).last_hidden_state, mask)
        if types is not None:
            given["token_type_ids"] = types
        hidden: Tensor = self.model(**given).last_hidden_state
        count = kept.sum(1, keepdim=True).clamp(min=1)
        return (hidden * kept.unsqueeze(2)).sum(1) / count

    def _types(self, ids: Tensor, kept: Tensor) -> Tensor:
        """0 for the first text of each row and its [SEP], 1 for the second, int64 `[B, L]`."""
        if self.sep_id is None:
            return torch.zeros_like(ids, dtype=torch.int64)
        ends = ids == self.sep_id
        begun = ends.cumsum(1) - ends.long() > 0
        return (begun & kept).long()

    def _decode(self, states: Tensor, mask: Tensor) -> Tensor:
        batch, many = len(states), len(self.written)
        if many > 1:
            states, mask = states.repeat_interleave(many, 0), mask.repeat_interleave(many, 0)
        decoded = self.model.get_decoder()(
            input_ids=self.written.repeat(batch, 1),
            encoder_hidden_states=states,
            encoder_attention_mask=mask,
            use_cache=False,
        )
        hidden: Tensor = decoded.last_hidden_state
        return hidden.reshape(batch, self.written.numel(), hidden.shape[2])[:, self.places].flatten(
            1
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenLM:
        """Move or convert the model along with the buffers."""
        self.model._apply(fn)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        stored = state_dict.get(prefix + "fingerprint")
        if stored is not None and int(stored) != int(self.fingerprint):
            raise UserError(
                f"net.name: transformers/{self.name} is not the model of this state, for its "
                "weights are other ones; go on with the files with which it was begun"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)


def transformers_builder(name: str) -> Callable[..., nn.Module]:
    """The builder of a frozen language model.

    Raises:
        UserError: transformers is missing.
    """
    if find_spec("transformers") is None:
        raise UserError(
            f"net.name: transformers/{name} needs transformers, which is not installed: "
            'pip install "clearn[text]"'
        )

    def build(input_shape: Sequence[int]) -> nn.Module:
        """A frozen language model of transformers: an encoder of BERT's kind, or one of T5's kind.

        The name is all-minilm-l6-v2 for the encoder that the extra `text` brings, a folder, or a
        name of the hub, which needs the network or the hub's cache. Weights have to be in
        safetensors files, and a model in the library, for no code is loaded with them.

        Args:
            input_shape: `[L]`, of a row of tokens.
        """
        if len(input_shape) != 1:
            raise UserError(
                f"net.name: transformers/{name} takes rows of tokens [L], and the stream's "
                f"examples have shape {list(input_shape)}; take a stream of texts"
            )
        return FrozenLM(load_model(name), name=name)

    return build


def load_model(name: str) -> nn.Module:
    """A model of transformers, in float32.

    Args:
        name: `MINILM`, a folder, or a name of the hub.

    Raises:
        UserError: It cannot be had, or a part of its weights is missing.
    """
    import transformers

    safe: Any = {"trust_remote_code": False}
    folder = model_path(name)
    try:
        with _quiet():
            config = transformers.AutoConfig.from_pretrained(folder, **safe)
            auto: Any = transformers.AutoModel
            if config.is_encoder_decoder:
                auto = transformers.AutoModelForSeq2SeqLM
            model, loaded = auto.from_pretrained(
                folder, config=config, use_safetensors=True, output_loading_info=True, **safe
            )
    except Exception as error:  # files that are no such model make transformers fail in any way
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"net.name: transformers/{name} cannot be loaded ({reason}); give {MINILM}, a folder "
            "with config.json and model.safetensors, or a name of the hub while online"
        ) from error
    # Pooling layers are often left out of a checkpoint, and features do not need them.
    missing = sorted(key for key in loaded["missing_keys"] if "pooler" not in key)
    if missing:
        raise UserError(
            f"net.name: transformers/{name} lacks weights of {type(model).__name__} "
            f"({missing[0]}, {len(missing)} in all); give a folder whose files have all of them"
        )
    return cast("nn.Module", model.float())


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from drawing progress bars and from warning of what is checked here."""
    import transformers

    logging: Any = transformers.utils.logging  # its functions have no annotations
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _kind(model: nn.Module, name: str) -> Literal["encoder", "t5"]:
    """Which of the two kinds a model is of."""
    from transformers import MODEL_FOR_MASKED_LM_MAPPING

    config = cast("Any", model.config)
    if config.is_encoder_decoder and "t5" in config.model_type:
        return "t5"
    takes = inspect.signature(model.forward).parameters
    fills_gaps = type(config) in MODEL_FOR_MASKED_LM_MAPPING
    if (
        fills_gaps
        and not config.is_encoder_decoder
        and {"inputs_embeds", "attention_mask"} <= set(takes)
    ):
        return "encoder"
    raise UserError(
        f"net.name: transformers/{name} is a model of the type {config.model_type}; expected an "
        "encoder of BERT's kind (bert, roberta, mpnet, distilbert, ...) or an encoder-decoder of "
        "T5's kind (t5, mt5, umt5)"
    )


def _window(model: nn.Module) -> int | None:
    """Positions for tokens; RoBERTa's kind of table begins with rows that stand for none."""
    for path, part in model.named_modules():
        if path.endswith("position_embeddings") and isinstance(part, nn.Embedding):
            return part.num_embeddings - (0 if part.padding_idx is None else part.padding_idx + 1)
    return cast("int | None", getattr(model.config, "max_position_embeddings", None))


def _checksum(model: nn.Module) -> int:
    """The same number for the same weights."""
    checksum = 0
    for value in model.state_dict().values():
        checksum = zlib.crc32(value.cpu().contiguous().view(torch.uint8).numpy(), checksum)
    return checksum


def _insert(rows: Tensor, at: int, what: Tensor) -> Tensor:
    """`rows` `[B, L, ...]` with `what` `[R, ...]` before place `at` of each."""
    middle = what.expand(len(rows), *what.shape)
    return torch.cat([rows[:, :at], middle, rows[:, at:]], 1)
