"""Help and names that depend on the parts chosen."""

from __future__ import annotations

from pathlib import Path

from clearn.fields import read_yaml
from tests.clearn.cli.conftest import Clearn


def test_help_shows_the_options_of_the_chosen_classes(clearn: Clearn) -> None:
    code, out, err = clearn("run", "--strategy", "ER", "--stream", "PermutedMNIST", "--help")
    assert (code, err) == (0, "")
    assert "strategy ER: Experience replay: train on the batch and on examples of" in out
    assert "--strategy.buffer_size BUFFER_SIZE\n" in out
    assert "Examples the buffer holds, >= 1. (type: int, default: 200)" in out
    assert "stream PermutedMNIST: " in out
    assert "--stream.root ROOT" in out
    assert "--net.hidden" in out
    assert "--training.epochs EPOCHS" in out
    for part in ("strategy", "stream", "net"):
        assert f"--{part} NAME" in out
        assert f"{part}.name" not in out


def test_help_of_another_choice_has_other_options(clearn: Clearn) -> None:
    _, out, _ = clearn("run", "--strategy=Naive", "--net=ResNet18", "--help")
    assert "--strategy.buffer_size" not in out
    assert "--net.width" in out
    assert "--net.hidden" not in out


def test_help_of_a_file_is_that_of_its_parts(clearn: Clearn) -> None:
    Path("run.yaml").write_text("strategy: {name: Naive}\nstream: RotatedMNIST\n")
    _, out, _ = clearn("run", "--config", "run.yaml", "--help")
    assert "strategy Naive: " in out
    assert "stream RotatedMNIST: " in out


def test_unknown_flag_shows_the_flags_of_the_same_part(clearn: Clearn) -> None:
    code, _, err = clearn("run", "--net.hiden", "3")
    assert code == 2
    assert "did you mean --net.hidden" in err
    assert "--strategy" not in err


def test_few_labels_are_options_of_every_stream(clearn: Clearn) -> None:
    _, out, _ = clearn("run", "--stream", "RotatedMNIST", "--help")
    assert "--stream.labels_per_class LABELS_PER_CLASS" in out
    assert "--stream.pool_decay {none,linear,long-tailed}" in out
    assert "Seeds the draw of the labelled examples" in out


def test_a_run_with_few_labels(clearn: Clearn) -> None:
    code, _, _ = clearn(
        *("run", "--strategy", "Naive", "--stream.labels_per_class", "4", "--stream.label_seed=1"),
        *("--stream.keep_tasks", "1", "--training.epochs", "1", "--folder", "few"),
    )
    assert code == 0
    stream = read_yaml(Path("few/config.yaml"))["stream"]
    assert (stream["labels_per_class"], stream["label_seed"], stream["pool"]) == (4, 1, "all")
    code, _, err = clearn("run", "--stream.labels_per_class", "4", "--stream.label_share", "0.5")
    assert code == 2
    assert "stream.labels_per_class and stream.label_share" in err
    code, _, err = clearn("run", "--stream.pool", "some", "--stream.labels_per_class", "4")
    assert code == 2
    assert "stream.pool" in err
