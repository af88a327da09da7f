"""Language models by name or folder, on streams of texts, and heads of label words."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub import constants as hub
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast

from clearn.errors import UserError
from clearn.laboratory import Stop
from clearn.nets import FrozenLM, WordHead, build_net, net_builder
from clearn.nets.heads import MASKED
from clearn.nets.language import load_model
from clearn.run import Interrupted, Run, Training
from clearn.strategies import Naive
from clearn.stream import Stream
from clearn.tokens import MINILM
from tests.clearn.nets.language_models import (
    ENCODERS,
    WRITERS,
    one_by_one,
    original,
    prompt_for,
    texts,
)
from tests.clearn.words import IDS, PAD, SEP, write_tokenizer


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("CLEARN_CACHE", str(tmp_path / "cache"))


def write_model(folder: Path, config: Any) -> Any:
    model = original(config)
    model.save_pretrained(folder)
    return model


def write_t5_tokenizer(folder: Path) -> None:
    """Words of `IDS`, and one token at the end of a text."""
    tokenizer = Tokenizer(models.WordLevel(IDS, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A [SEP]", pair="$A $B [SEP]", special_tokens=[("[SEP]", SEP)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", eos_token="[SEP]"
    ).save_pretrained(folder)


def text_stream(folder: str, names: Sequence[str] | None = None, **options: Any) -> Stream:
    """Two tasks with two classes each."""
    rows = [(f"w{label} w{number % 7} w9", label) for number in range(12) for label in range(4)]
    stream = Stream.from_texts(
        rows, rows[:16], tokenizer=folder, class_names=names, num_tasks=2, scenario="task",
        max_length=16,
    )  # fmt: skip
    for option, value in options.items():
        setattr(stream.preprocess, option, value)
    return stream


@pytest.fixture
def bert(tmp_path: Path) -> str:
    """A folder with a model and its tokenizer."""
    folder = tmp_path / "bert"
    write_model(folder, ENCODERS["bert"]())
    return write_tokenizer(folder)


@pytest.fixture
def t5(tmp_path: Path) -> str:
    """A folder with a model that writes, and its tokenizer."""
    folder = tmp_path / "t5"
    write_model(folder, WRITERS["t5, as first published"]())
    write_t5_tokenizer(folder)
    return str(folder)


def test_a_net_for_a_stream_of_texts(bert: str, capfd: pytest.CaptureFixture[str]) -> None:
    stream = text_stream(bert)
    capfd.readouterr()
    net = build_net(f"transformers/{bert}", stream, seed=0)
    assert capfd.readouterr() == ("", "")
    lm = net.backbone
    assert isinstance(lm, FrozenLM)
    assert (lm.pad_id, lm.sep_id) == (PAD, SEP)
    batch = next(stream[0].test.batches(5))
    expected = one_by_one(original(ENCODERS["bert"]()), batch.x, PAD)
    torch.testing.assert_close(lm(batch.x), expected, atol=1e-5, rtol=0)
    assert net(batch.x, 0).shape == (5, 4)


def test_weights_are_read_in_float32(tmp_path: Path) -> None:
    original(ENCODERS["bert"]()).half().save_pretrained(tmp_path)
    assert {p.dtype for p in load_model(str(tmp_path)).parameters()} == {torch.float32}


def test_a_resumed_run_goes_on_bit_by_bit(bert: str, tmp_path: Path) -> None:
    def run(folder: str, stop: Stop | None = None) -> Run:
        stream = text_stream(bert)
        strategy = Naive(build_net(f"transformers/{bert}", stream, seed=0), lr=0.1, momentum=0.9)
        trainer = {"callbacks": [] if stop is None else [stop]}
        options = {"training": Training(epochs=2, batch_size=5), "trainer": trainer}
        run = Run(strategy, stream, folder=tmp_path / folder, seed=1, **options)  # type: ignore[arg-type]
        if stop is not None:
            stop.run = run
        return run

    whole = run("whole")
    expected = whole.fit()
    for number, stop in enumerate((Stop(chunk=1), Stop(fit=1))):
        with pytest.raises(Interrupted):
            run(f"part {number}", stop).fit()
        resumed = run(f"part {number}")
        found = resumed.fit()
        assert torch.equal(torch.as_tensor(found.matrix), torch.as_tensor(expected.matrix))
        for name, value in whole.strategy.state_dict().items():
            assert torch.equal(value, resumed.strategy.state_dict()[name])
    size = sum(file.stat().st_size for file in (tmp_path / "whole/checkpoints").iterdir())
    assert size < 2 * 30_000
    parameters = whole.strategy.bytes_stored()["parameters"]
    assert parameters == 4 * 2 * 2 * 17 + 8  # the head and a checksum


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"tokenizer": "other"}, r"other does not go with .* set stream\.tokenizer to .*bert"),
        ({"vocab_size": 45}, "has 45 tokens, and the model of that name has embeddings for 44"),
    ],
)
def test_tokens_of_another_model(bert: str, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        build_net(f"transformers/{bert}", text_stream(bert, **options))


def test_examples_that_are_no_texts(bert: str) -> None:
    for shape in ((6,), (1, 4, 4)):
        x, y = torch.zeros(8, *shape), torch.arange(8) % 2
        stream = Stream.from_arrays(x, y, x, y, num_tasks=1)
        with pytest.raises(UserError, match="take a stream of texts"):
            build_net(f"transformers/{bert}", stream)


def drop(folder: Path) -> None:
    """Take the weights of a layer out of a folder."""
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    state = {name: value for name, value in load_file(file).items() if "layer.1" not in name}
    save_file(state, file, metadata={"format": "pt"})


def pickle_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(original(ENCODERS["bert"]()).state_dict(), folder / "pytorch_model.bin")


def own_code(folder: Path) -> None:
    (folder / "config.json").write_text(
        '{"model_type": "mine", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.M"}}'
    )
    (folder / "code.py").write_text("raise SystemExit('run')")


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (drop, "lacks weights of BertModel .*layer.1.*16 in all"),
        (pickle_weights, "cannot be loaded .*model.safetensors"),
        (own_code, "cannot be loaded"),
        (lambda folder: (folder / "config.json").unlink(), "cannot be loaded"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"junk"), "cannot be loaded"),
        (lambda folder: write_model(folder, transformers.GPT2Config(
            vocab_size=44, n_embd=16, n_layer=1, n_head=4)), "is a model of the type gpt2"),
        (lambda folder: write_model(folder, transformers.BartConfig(
            vocab_size=44, d_model=16, encoder_layers=1, decoder_layers=1)), "of the type bart"),
    ],
    ids=["missing", "pickled", "code", "no config", "junk", "gpt2", "bart"],
)  # fmt: skip
def test_folders_that_hold_something_else(
    damage: Callable[[Path], Any], problem: str, tmp_path: Path
) -> None:
    write_model(tmp_path, ENCODERS["bert"]())
    damage(tmp_path)
    with pytest.raises(UserError, match=problem) as caught:
        net_builder(f"transformers/{tmp_path}")((16,))
    assert str(caught.value).startswith("net.name: transformers/")
    assert "\n" not in str(caught.value)


def test_a_pooling_layer_may_be_missing(tmp_path: Path) -> None:
    model = transformers.BertModel(ENCODERS["bert"](), add_pooling_layer=False).eval()
    model.save_pretrained(tmp_path)
    lm, ids = net_builder(f"transformers/{tmp_path}")((16,)), texts([6, 3])
    torch.testing.assert_close(lm(ids), one_by_one(model, ids, PAD), atol=1e-5, rtol=0)


def test_a_name_that_the_hub_would_have_to_give() -> None:
    with pytest.raises(UserError, match=r"transformers/some/bert cannot be loaded .* while online"):
        net_builder("transformers/some/bert")((16,))


def test_missing_transformers_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r'pip install "clearn\[text\]"'):
        net_builder(f"transformers/{MINILM}")


# Label words


def probabilities_by_hand(model: Any, ids: Tensor, names: Sequence[str]) -> Tensor:
    """Of each name, written token by token by a model that can write but these: `[B, K]`."""
    tokens = [[*(IDS[word] for word in name.split()), SEP] for name in names]
    kept = (ids != PAD).long()
    found = torch.ones(len(ids), len(names))
    for column, name in enumerate(tokens):
        for place, token in enumerate(name):
            may = sorted({o[place] for o in tokens if o[:place] == name[:place]})
            written = torch.tensor([[PAD, *name[:place]]]).expand(len(ids), -1)
            logits = model(input_ids=ids, attention_mask=kept, decoder_input_ids=written).logits
            found[:, column] *= logits[:, -1, may].softmax(dim=1)[:, may.index(token)]
    return found


@pytest.mark.parametrize("kind", WRITERS)
def test_label_words_have_the_models_own_logits(kind: str, tmp_path: Path) -> None:
    model = write_model(tmp_path, WRITERS[kind]())
    write_t5_tokenizer(tmp_path)
    stream = text_stream(str(tmp_path), names=("w7", "w5 w2", "w2", "w7 w1"))
    net = build_net(f"transformers/{tmp_path}", stream, head="words")
    assert isinstance(net.head, WordHead)
    ids = next(stream[1].test.batches(6)).x
    start = torch.full((len(ids), 1), PAD)
    kept = (ids != PAD).long()
    logits = model(input_ids=ids, attention_mask=kept, decoder_input_ids=start).logits[:, 0]
    expected = logits[:, [IDS[word] for word in ("w7", "w5", "w2", "w7")]]
    torch.testing.assert_close(net(ids), expected, atol=1e-5, rtol=1e-5)
    assert expected.std() > 0.01
    for task, others in ((0, slice(2, 4)), (1, slice(0, 2))):
        masked = expected.clone()
        masked[:, others] = MASKED
        torch.testing.assert_close(net(ids, task), masked, atol=1e-5, rtol=1e-5)
    assert not list(net.parameters())
    net.begin_task(1, (2, 3), torch.Generator())
    assert set(net.state_dict()) == {
        "backbone.fingerprint",
        "head.mask.allowed",
    }


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize(
    "names",
    [
        ("w7 w1", "w7 w2", "w3", "w7 w2 w5"),
        ("w1 w2 w3 w4", "w1 w2 w3 w5", "w1 w2", "w6 w2 w3 w4"),
        ("w5", "w5 w5", "w5 w5 w5", "w5 w5 w6"),
    ],
    ids=" | ".join,
)
def test_label_words_that_begin_alike(kind: str, names: tuple[str, ...], tmp_path: Path) -> None:
    model = write_model(tmp_path, WRITERS[kind]())
    write_t5_tokenizer(tmp_path)
    stream = text_stream(str(tmp_path), names=names)
    ids = next(stream[1].test.batches(6)).x
    net = build_net(f"transformers/{tmp_path}", stream, head="words")
    for task, own in ((0, slice(0, 2)), (1, slice(2, 4))):
        expected = probabilities_by_hand(model, ids, names[own])
        found = net(ids, task).softmax(dim=1)[:, own]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    stream.scenario = "class"
    net = build_net(f"transformers/{tmp_path}", stream, head="words")
    expected = probabilities_by_hand(model, ids, names)
    assert expected.std() > 0.01
    torch.testing.assert_close(net(ids).softmax(dim=1), expected, atol=1e-5, rtol=1e-4)
    assert set(net.state_dict()) == {"backbone.fingerprint", "head.mask.allowed"}


def test_a_prompt_learns_from_label_words_that_begin_alike(t5: str) -> None:
    stream = text_stream(t5, names=("w7 w1", "w7 w2", "w3", "w3 w4"))
    net = build_net(f"transformers/{t5}", stream, head="words")
    assert isinstance(net.backbone, FrozenLM)
    batch = next(stream[0].train.batches(24))
    prompt = prompt_for(net.backbone, rows=4)
    optimizer = torch.optim.Adam([prompt], lr=0.1)
    losses = []
    for _ in range(200):
        loss = cross_entropy(net.head(net.backbone(batch.x, prompt), 0), batch.y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0], losses[-1]


def test_label_words_that_are_the_same(t5: str) -> None:
    # Tasks that are told apart at test time may have theirs in common.
    stream = text_stream(t5, names=("w7", "w2", "w7", "w4"))
    build_net(f"transformers/{t5}", stream, head="words")
    stream.scenario = "class"
    with pytest.raises(UserError, match="cannot tell 'w7' from 'w7', which have the same tokens"):
        build_net(f"transformers/{t5}", stream, head="words")


def test_label_words_need_a_model_that_writes(bert: str) -> None:
    with pytest.raises(UserError, match=r"net\.head: words needs a language model that writes"):
        build_net(f"transformers/{bert}", text_stream(bert), head="words")
    with pytest.raises(UserError, match=r"net\.head: words needs a language model that writes"):
        build_net("MLP", text_stream(bert), head="words")
