"""Backbones from torchvision and timm, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from clearn.errors import UserError, unknown_name
from clearn.nets.shapes import image_shape
from clearn.nets.weights import SUFFIXES, load_weights, read_tensors

# These return a tuple while training, or classify by a convolution instead of a linear layer.
_UNFIT = {"googlenet", "inception_v3", "squeezenet1_0", "squeezenet1_1"}

# What a model raises on images it was not made for.
_REFUSALS = (RuntimeError, ValueError, AssertionError, ZeroDivisionError)


class External(nn.Module):
    """A model of another library without its classifier, tried on one example when it is made.

    Args:
        name: Of the net, for messages.
        model: Maps images to features.
        input_shape: `[C, H, W]` of the stream.
        channels: What the model takes; examples of one channel are repeated to that many.

    Raises:
        UserError: The model does not take such images.
    """

    def __init__(
        self, name: str, model: nn.Module, input_shape: Sequence[int], channels: int
    ) -> None:
        super().__init__()
        if input_shape[0] not in (1, channels):
            raise UserError(
                f"net.name: {name} takes images with 1 or {channels} channels, and the stream's "
                f"examples have {input_shape[0]}; nets for any number are SmallCNN, LeNet and "
                "ResNet18"
            )
        self.model = model
        self.channels = channels
        self.eval()  # the trial must not count in running statistics
        try:
            with torch.no_grad():
                features = self(torch.zeros(1, *input_shape))
        except _REFUSALS as error:
            raise _unfit(name, input_shape, error) from error
        self.train()
        if features.ndim != 2:
            raise UserError(
                f"net.name: {name} gives features of the shape {list(features.shape)}, not [B, F]"
            )
        self.num_features: int = features.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        """Features `[B, num_features]` of images `[B, C, H, W]`."""
        return cast("Tensor", self.model(x.expand(-1, self.channels, -1, -1)))


def torchvision_builder(name: str) -> Callable[..., nn.Module]:
    """The builder of a classification model of torchvision.

    Raises:
        UserError: There is no model of that name.
    """
    from torchvision import models

    known = set(models.list_models(module=models)) - _UNFIT
    if name not in known:
        raise _unknown_model("torchvision", name, known)

    def build(input_shape: Sequence[int], *, weights: str | None = None) -> nn.Module:
        """A classification model of torchvision; it repeats a single channel to three.

        Args:
            input_shape: `[C, H, W]`.
            weights: Initial weights: DEFAULT or another name that torchvision gives them, which
                needs the network or torch.hub's cache; or a file, .safetensors or .pt, .pth or
                .pth.tar with plain tensors. Missing: drawn at random.
        """
        image_shape(f"torchvision/{name}", input_shape)
        model = models.get_model(name, weights=None)
        linear = [path for path, part in model.named_modules() if isinstance(part, nn.Linear)][-1]
        parent, _, leaf = linear.rpartition(".")
        setattr(model.get_submodule(parent), leaf, nn.Identity())
        if weights is not None:
            from_file = weights.endswith(SUFFIXES)
            state = read_tensors(Path(weights)) if from_file else download(weights)
            load_weights(model, state, weights, gone=[linear])
        return External(f"torchvision/{name}", model, input_shape, channels=3)

    def download(weights: str) -> dict[str, Tensor]:
        choices = models.get_model_weights(name)
        if weights not in choices.__members__:
            raise unknown_name("net.weights", weights, choices.__members__)
        try:
            # Asked for here, and not of get_model, so that nothing is unpickled but tensors.
            return cast(
                "dict[str, Tensor]",
                choices[weights].get_state_dict(progress=False, check_hash=True, weights_only=True),
            )
        except (OSError, RuntimeError) as error:
            raise _not_there(f"torchvision/{name}", weights, error) from error

    return build


def timm_builder(name: str) -> Callable[..., nn.Module]:
    """The builder of a model of timm.

    Raises:
        UserError: timm is missing or has no model of that name.
    """
    try:
        import timm
    except ImportError as error:
        raise UserError(
            f'net.name: timm/{name} needs timm, which is not installed: pip install "clearn[vit]"'
        ) from error
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise _unknown_model("timm", name, timm.list_models())
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise unknown_name(f"net.name: timm/{architecture}", tag, tags)

    def build(
        input_shape: Sequence[int], *, weights: str | None = None, fresh_norm: bool = False
    ) -> nn.Module:
        """A model of timm, made for the number of channels and, where it is fixed, the image size.

        Args:
            input_shape: `[C, H, W]`.
            weights: Initial weights: DEFAULT or a tag that timm gives them (a1_in1k, say), which
                needs the network or the hub's cache; or a file, .safetensors or .pt, .pth or
                .pth.tar with plain tensors, among them those of MoCo v3. Missing: drawn at random.
            fresh_norm: Put a new layer, with weights 1, biases 0 and an epsilon of 1e-5, in the
                place of a transformer's final layer normalisation, as SLCA and TACLE do.
        """
        channels, *size = image_shape(f"timm/{name}", input_shape)
        from_file = weights is not None and weights.endswith(SUFFIXES)
        pretrained = weights is not None and not from_file
        full_name = name
        if pretrained and weights != "DEFAULT":
            if weights not in tags:
                raise unknown_name("net.weights", str(weights), ["DEFAULT", *tags])
            full_name = f"{architecture}.{weights}"
        options: dict[str, Any] = {"num_classes": 0, "in_chans": channels}
        if getattr(timm.get_pretrained_cfg(architecture), "fixed_input_size", False):
            options["img_size"] = tuple(size)
        try:
            model = timm.create_model(full_name, pretrained=pretrained, **options)
        except (OSError, *_REFUSALS) as error:
            if pretrained:
                raise _not_there(f"timm/{name}", str(weights), error) from error
            raise _unfit(f"timm/{name}", input_shape, error) from error
        if weights is not None and from_file:
            layers = cast("dict[str, Any]", model.pretrained_cfg)["classifier"]
            names = [layers] if isinstance(layers, str) else layers
            load_weights(model, read_tensors(Path(weights)), weights, gone=names)
        if fresh_norm:
            model.norm = _like_new(getattr(model, "norm", None), name)
        return External(f"timm/{name}", model, input_shape, channels)

    return build


def _like_new(norm: nn.Module | None, name: str) -> nn.LayerNorm:
    """A layer normalisation of the same size that has learned nothing."""
    if not isinstance(norm, nn.LayerNorm):
        raise UserError(
            f"net.fresh_norm: timm/{name} has no final layer normalisation called norm; leave the "
            "option out, or use a transformer such as timm/vit_base_patch16_224"
        )
    return nn.LayerNorm(norm.normalized_shape)


def _unknown_model(library: str, name: str, known: Iterable[str]) -> UserError:
    near = [f"{library}/{match}" for match in get_close_matches(name, known, n=3, cutoff=0.5)]
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return UserError(f"net.name: '{library}/{name}' is unknown{hint}; see {library}'s own list")


def _not_there(name: str, weights: str, error: Exception) -> UserError:
    return UserError(
        f"net.weights: {weights} of {name} cannot be had ({_one_line(error)}); go online once, or "
        "give a file of weights (.safetensors, .pt or .pth)"
    )


def _unfit(name: str, input_shape: Sequence[int], error: Exception) -> UserError:
    return UserError(
        f"net.name: {name} does not take images of the shape {list(input_shape)} "
        f"({_one_line(error)}); set stream.image_size, or use SmallCNN or ResNet18"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
