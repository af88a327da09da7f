"""What both ways of pre-training share: images, the loop, its checkpoint, probes and files.

The 200 classes of TinyImageNet, in order of their WordNet ids, are split in two halves: those in
even places (0, 2, ...) are trained on here, those in odd places (1, 3, ...) are left to streams.

Shapes: N images, B of a batch, F features, C classes.
"""

from __future__ import annotations

import io
import json
import math
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from clearn.datasets import tiny_imagenet
from clearn.environment import environment
from clearn.errors import UserError
from clearn.files import write_atomic
from clearn.nets import net_builder
from clearn.nets.weights import load_weights, read_tensors
from clearn.preprocess import Preprocess
from clearn.prototypes import Prototypes
from clearn.seeding import derive_seed
from clearn.sources import Source
from clearn.store import BUDGET_GIB, Store

IMAGE_SIZE = 32
NET = "GroupResNet"
LABELLED = 25  # images of a class that probes learn from
LARGEST = 6_000_000  # bytes of a file of weights that is kept
BATCH = 500  # of images that nothing is learned from

Maker = Callable[[nn.Module, int, Preprocess], nn.Module]
"""Makes a learner of a backbone with F features, the number of classes and the preprocessing. It
has `loss(raw [B, ...], y [B], generator)`; the generator is on the CPU."""


def arguments(description: str) -> ArgumentParser:
    """The options of a script; the first line of its description is shown with them."""
    parser = ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-3, help="the highest, of AdamW")
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("results/pretrain"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--root", help="where tiny-imagenet-200 is; else $CLEARN_DATA")
    parser.add_argument("--limit", type=int, help="use so many images of each class only")
    return parser


def pretrain(recipe: str, make: Maker, args: Namespace) -> None:
    """Train, or go on where the same command was stopped; then write the weights and a report.

    `<folder>/<recipe>.safetensors` holds the backbone in half precision, `<folder>/<recipe>.json`
    what was done and how good the features are, `<folder>/runs/<recipe>.pt` what a stopped run
    continues from.
    """
    source = tiny_imagenet(args.root, False, IMAGE_SIZE, True, BUDGET_GIB, None)
    classes = {"pretraining": source.classes[::2], "stream": source.classes[1::2]}
    device = torch.device(args.device)
    images, labels = select(
        source.train, source.train_labels, classes["pretraining"], args.limit, device
    )
    torch.manual_seed(derive_seed(args.seed, "initial weights"))
    backbone = net_builder(NET)(source.train.shape)
    untrained = probe(backbone.to(device), source, classes["stream"])
    learner = make(backbone, len(classes["pretraining"]), source.preprocess).to(device)
    losses, seconds = _train(recipe, learner, images, labels, args)
    weights = args.folder / f"{recipe}.safetensors"
    facts = {
        "recipe": recipe,
        "net": NET,
        "image_size": IMAGE_SIZE,
        "images": len(images),
        "classes": classes,
        **{name: getattr(args, name) for name in _HYPER},
        "commit": environment()["commit"],
    }
    size = write_weights(weights, backbone, facts)
    load_weights(backbone, read_tensors(weights), str(weights))  # rounded as in the file
    report = facts | {
        "bytes": size,
        "seconds": round(seconds, 1),
        "losses": losses,
        "untrained": untrained,
        "trained": probe(backbone, source, classes["stream"]),
        "environment": environment(),
    }
    write_atomic(args.folder / f"{recipe}.json", json.dumps(report, indent=1) + "\n")
    print(f"{weights}: {size} bytes; untrained {untrained}, trained {report['trained']}")


_HYPER = ("epochs", "batch_size", "lr", "weight_decay", "seed", "limit")


def select(
    store: Store, labels: Tensor, classes: tuple[int, ...], limit: int | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The first `limit` images of each class, uint8 `[N, C, H, W]`, and labels from 0 `[N]`."""
    rows = [(labels == label).nonzero().flatten()[:limit] for label in classes]
    counts = torch.tensor([len(part) for part in rows])
    (images,) = store.batches(torch.cat(rows), int(counts.sum()), torch.device("cpu"))
    return images.to(device), torch.arange(len(classes)).repeat_interleave(counts).to(device)


def _train(
    recipe: str, learner: nn.Module, images: Tensor, labels: Tensor, args: Namespace
) -> tuple[list[float], float]:
    """Mean loss of every epoch, and seconds; continues from a checkpoint of the same options."""
    optimizer = torch.optim.AdamW(learner.parameters(), args.lr, weight_decay=args.weight_decay)
    file = args.folder / "runs" / f"{recipe}.pt"
    hyper = {"images": len(images), **{name: getattr(args, name) for name in _HYPER}}
    losses, seconds = _resume(file, learner, optimizer, hyper)
    steps = math.ceil(len(images) / args.batch_size)
    for epoch in range(len(losses), args.epochs):
        started = time.perf_counter()
        # A generator for each epoch: there is none to store, and a resumed run draws the same.
        draws = torch.Generator().manual_seed(derive_seed(args.seed, "epoch", epoch))
        total = torch.zeros((), device=images.device)
        learner.train()
        order = torch.randperm(len(images), generator=draws).to(images.device)
        for step, rows in enumerate(order.split(args.batch_size)):
            for group in optimizer.param_groups:
                group["lr"] = args.lr * schedule((epoch + step / steps) / args.epochs)
            loss = learner.loss(images[rows], labels[rows], draws)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(rows)
        losses.append(float(total) / len(images))
        seconds += time.perf_counter() - started
        state = io.BytesIO()
        torch.save(
            {
                "hyper": hyper,
                "losses": losses,
                "seconds": seconds,
                "learner": learner.state_dict(),
                "optimizer": optimizer.state_dict(),
            },
            state,
        )
        write_atomic(file, state.getvalue())
        left = seconds / len(losses) * (args.epochs - len(losses))
        print(
            f"{recipe}: epoch {epoch + 1} of {args.epochs}, loss {losses[-1]:.4f}, "
            f"{seconds:.0f} s, {left:.0f} s left",
            file=sys.stderr,
            flush=True,
        )
    return losses, seconds


def _resume(
    file: Path, learner: nn.Module, optimizer: torch.optim.Optimizer, hyper: dict[str, Any]
) -> tuple[list[float], float]:
    """What has been done so far: the mean loss of every epoch, and seconds."""
    if not file.exists():
        return [], 0.0
    state = torch.load(file, weights_only=True, map_location="cpu")
    if state["hyper"] != hyper:
        raise UserError(
            f"folder: {file} is of a run with {state['hyper']}, and this one has {hyper}; name "
            "another folder, or remove the file"
        )
    learner.load_state_dict(state["learner"])
    optimizer.load_state_dict(state["optimizer"])
    return state["losses"], state["seconds"]


def schedule(done: float, warm_up: float = 0.05) -> float:
    """Factor of the learning rate after a share `done` of all steps: linear up, then a cosine."""
    if done < warm_up:
        return done / warm_up
    return 0.5 + 0.5 * math.cos(math.pi * (done - warm_up) / (1 - warm_up))


def write_weights(file: Path, backbone: nn.Module, facts: dict[str, Any]) -> int:
    """Write weights in half precision, with what was done as metadata; returns the bytes."""
    tensors = {
        name: (value.half() if value.is_floating_point() else value).cpu().contiguous()
        for name, value in backbone.state_dict().items()
    }
    metadata = {name: json.dumps(value) for name, value in facts.items()}
    content = safetensors.torch.save(tensors, metadata)
    if len(content) > LARGEST:
        raise UserError(f"{file}: would take {len(content)} bytes, expected at most {LARGEST}")
    write_atomic(file, content)
    return len(content)


def probe(
    backbone: nn.Module, source: Source, classes: tuple[int, ...], labelled: int = LABELLED
) -> dict[str, float]:
    """Accuracies on the test images of classes that were not trained on, from a few labels.

    nearest mean: of `labelled` features of length 1, by cosine. linear: logistic regression of
    standardised features.
    """
    device = next(backbone.parameters()).device
    parts = [
        select(source.train, source.train_labels, classes, labelled, device),
        select(source.test, source.test_labels, classes, None, device),
    ]
    backbone.eval()
    with torch.no_grad():
        (x, y), (x_test, y_test) = (
            (
                torch.cat([backbone(source.preprocess.eval(part)) for part in raw.split(BATCH)]),
                labels,
            )
            for raw, labels in parts
        )
    means = Prototypes(len(classes), x.shape[1], "cosine").to(device)
    means.keep([(x, y)])
    scaler = StandardScaler().fit(x.cpu())
    # A strong penalty, fixed beforehand: there are fewer examples of a class than features.
    linear = LogisticRegression(C=0.01, max_iter=1000).fit(scaler.transform(x.cpu()), y.cpu())
    guesses = {
        "nearest mean": means(x_test).argmax(1).cpu().numpy(),
        "linear": linear.predict(scaler.transform(x_test.cpu())),
    }
    truth = y_test.cpu().numpy()
    return {name: round(float(np.mean(guess == truth)), 4) for name, guess in guesses.items()}
