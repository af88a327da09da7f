"""A backbone and a head, put together."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from clearn.errors import UserError
from clearn.nets import MLP, GrowingHead, MultiHead, Net, SingleHead


def test_logits_are_the_heads_of_the_backbones_features() -> None:
    net = Net(MLP((5,), hidden=(7,)), MultiHead(7, ((0, 1), (2, 3, 4))))
    x = torch.randn(4, 5)
    assert net.features(x).shape == (4, 7)
    assert net.num_classes == 5
    for task_id in (1, torch.tensor([0, 1, 1, 0])):
        assert torch.equal(net(x, task_id), net.head(net.features(x), task_id))


def test_growing_net_goes_into_a_fresh_one() -> None:
    net = Net(MLP((5,), hidden=(7,)), GrowingHead(7, 6))
    net.begin_task(0, (4, 2), torch.Generator().manual_seed(0))
    fresh = Net(MLP((5,), hidden=(7,)), GrowingHead(7, 6))
    fresh.load_state_dict(net.state_dict())
    x = torch.randn(3, 5)
    assert torch.equal(fresh(x), net(x))


def test_new_rows_are_trained_by_an_optimizer_made_after_the_task_began() -> None:
    net = Net(MLP((5,), hidden=(7,)), GrowingHead(7, 6))
    net.begin_task(0, (0, 1), torch.Generator())
    net.begin_task(1, (2, 3), torch.Generator())
    assert isinstance(net.head, GrowingHead)
    before = net.head.weight.detach().clone()
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    nn.functional.cross_entropy(net(torch.randn(4, 5)), torch.tensor([0, 1, 2, 3])).backward()
    optimizer.step()
    assert (net.head.weight != before).any(dim=1).all()


@pytest.mark.parametrize("label", [-1, 6])
def test_label_out_of_range(label: int) -> None:
    net = Net(MLP((5,), hidden=(7,)), SingleHead(7, 6))
    with pytest.raises(UserError, match=rf"task 1 has class {label}, .* classes 0 to 5"):
        net.begin_task(1, (0, label), torch.Generator())


def test_backbone_must_say_its_features() -> None:
    with pytest.raises(UserError, match="Linear has no integer attribute num_features"):
        Net(nn.Linear(3, 4), SingleHead(4, 2))


def test_head_must_take_them() -> None:
    with pytest.raises(UserError, match="7 features does not fit a head for 8"):
        Net(MLP((5,), hidden=(7,)), SingleHead(8, 2))
