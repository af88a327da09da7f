"""Networks: a backbone by name, and a head that fits the scenario."""

from clearn.nets.biasfree import AlexNetNorm, LeNetWide, TinyNet
from clearn.nets.groupresnet import GroupResNet
from clearn.nets.heads import MASKED, GrowingHead, Head, MultiHead, SingleHead, WideHead
from clearn.nets.joined import JoinedHead
from clearn.nets.language import FrozenLM
from clearn.nets.net import Net
from clearn.nets.registry import NETS, build_net, net_builder, net_names
from clearn.nets.resnet import ReducedResNet18, ResNet18
from clearn.nets.small import MLP, LeNet, SmallCNN
from clearn.nets.stable import StableResNet18
from clearn.nets.words import WordHead

__all__ = [
    "MASKED",
    "MLP",
    "NETS",
    "AlexNetNorm",
    "FrozenLM",
    "GroupResNet",
    "GrowingHead",
    "Head",
    "JoinedHead",
    "LeNet",
    "LeNetWide",
    "MultiHead",
    "Net",
    "ReducedResNet18",
    "ResNet18",
    "SingleHead",
    "SmallCNN",
    "StableResNet18",
    "TinyNet",
    "WideHead",
    "WordHead",
    "build_net",
    "net_builder",
    "net_names",
]
