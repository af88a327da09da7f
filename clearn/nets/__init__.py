"""Networks: a backbone by name, and a head that fits the scenario."""

from clearn.nets.biasfree import AlexNetNorm, LeNetWide, TinyNet
from clearn.nets.groupresnet import GroupResNet
from clearn.nets.heads import MASKED, GrowingHead, Head, MultiHead, SingleHead, WideHead
from clearn.nets.joined import JoinedHead
from clearn.nets.net import Net
from clearn.nets.registry import NETS, build_net, net_builder, net_names
from clearn.nets.resnet import ReducedResNet18, ResNet18
from clearn.nets.small import MLP, LeNet, SmallCNN
from clearn.nets.stable import StableResNet18

__all__ = [
    "MASKED",
    "MLP",
    "NETS",
    "AlexNetNorm",
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
    "build_net",
    "net_builder",
    "net_names",
]
