"""The report: files, escaping, missing records, and how a browser shows it."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import yaml
from matplotlib.image import imread

from clearn.compare import write_report
from clearn.errors import UserError

Make = Callable[..., Path]
COLUMNS = {
    *("strategy", "stream", "scenario", "n", "acc_mean", "acc_std", "forgetting_mean"),
    *("bwt_mean", "fwt_mean", "bytes_mean", "seconds_mean"),
}
LEVELS = {"Naive": (0.95, 0.4), "ER": (0.95, 0.08), "Joint": (0.97, 0.01)}

CHARTS = {
    "weight of a/b": {"new": [float("nan"), 0.5, 0.7], "old": [0.1, 0.2, 0.3]},
    "similarity": [[float("nan")] * 3, [0.1, float("nan"), float("nan")], [0.4, -0.2, 0.3]],
}
OWN = ["own-lines-weight_of_a_b-Digits-class", "own-table-similarity-Digits-class"]


def make_all(make: Make) -> None:
    """Three strategies, two seeds; one of them has charts of its own."""
    for name, (level, drop) in LEVELS.items():
        for seed in range(2):
            charts = CHARTS if name == "ER" else {}
            make(name, seed=seed, level=level, drop=drop, seconds=1.0 + len(name), charts=charts)


@pytest.fixture
def results(make_record: Make, tmp_path: Path) -> Path:
    """Records without a report, for one test."""
    make_all(make_record)
    return tmp_path / "results"


@pytest.fixture(scope="module")
def written(
    make_records_in: Callable[[Path], Make], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A report on equal records and their experiment file, to be looked at only."""
    folder = tmp_path_factory.mktemp("written") / "results"
    make_all(make_records_in(folder))
    describe(folder)
    write_report(folder)
    return folder


def describe(results: Path, **fields: object) -> None:
    base = {
        "title": "Three strategies",
        "baseline": "Naive",
        "seeds": [0, 1],
        "streams": {"Digits": {"name": "SplitDigits"}},
        "strategies": {name: {} for name in LEVELS},
    }
    (results / "experiment.yaml").write_text(yaml.safe_dump(base | fields, sort_keys=False))


class Page(HTMLParser):
    """What a page holds: tags with attributes, and its text outside of styles."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "link", "br"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += f"{data} "


def files(folder: Path) -> dict[str, bytes]:
    """What a report consists of."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "runs" not in path.relative_to(folder).parts
    }


def test_works_from_records_alone(results: Path) -> None:
    assert write_report(results) == results / "report.html"
    assert {name.split("/")[0] for name in files(results)} == {
        "environment.json",
        "figures",
        "report.html",
        "table.csv",
        "table.md",
    }
    with (results / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert set(rows[0]) >= COLUMNS
    assert [row["strategy"] for row in rows] == ["ER", "Joint", "Naive"]
    er = rows[0]
    assert (er["n"], er["scenario"], er["p"]) == ("2", "class", "")
    assert float(er["bytes_mean"]) == 4200
    assert float(er["seconds_mean"]) == pytest.approx(3.0)
    last = [
        np.mean([0.95 - 0.08 * (2 - j) + 0.01 * np.sin(12.9898 * (seed + 1) + 2) for j in range(3)])
        for seed in range(2)
    ]
    assert float(er["acc_mean"]) == pytest.approx(np.mean(last))
    assert float(er["acc_std"]) == pytest.approx(np.std(last, ddof=1))
    assert float(er["forgetting_mean"]) == pytest.approx((0.16 + 0.08) / 2)


def test_the_experiment_gives_title_baseline_and_order(written: Path) -> None:
    with (written / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["strategy"] for row in rows] == ["Naive", "ER", "Joint"]
    assert [row["pairs"] for row in rows] == ["", "2", "2"]
    table = (written / "table.md").read_text()
    assert table.startswith("# Three strategies\n")
    assert "ACC - Naive" in table
    assert "clearn compare results/experiment.yaml --folder results" in table
    for fact in ("seeds: 0, 1", "6 of 6 runs finished", "clearn 0.1.0", "torch", "device:"):
        assert fact in table


def test_what_the_experiment_compares_is_in_every_table(written: Path, tmp_path: Path) -> None:
    folder = tmp_path / "compared"
    shutil.copytree(written, folder)
    with (folder / "experiment.yaml").open("a") as file:
        file.write("metric: avg_incremental_acc\n")
    write_report(folder)
    with (folder / "table.csv").open() as file:
        row = next(row for row in csv.DictReader(file) if row["strategy"] == "ER")
    shown = f"{100 * float(row['avg_incremental_acc_mean']):.1f} ± "
    assert (
        "| AIA % | 95 % interval | AIA - Naive | p | ACC % |" in (folder / "table.md").read_text()
    )
    assert shown in (folder / "table.md").read_text()
    text = Page(folder / "report.html").text
    assert "AIA - Naive" in text
    assert shown in text


def test_the_command_names_the_experiment_where_there_is_one(results: Path, tmp_path: Path) -> None:
    place = tmp_path / "project/results/wsn/digits"
    shutil.copytree(results, place)
    source = tmp_path / "project/experiments/wsn/digits.yaml"
    source.parent.mkdir(parents=True)
    source.touch()
    write_report(place)
    assert "clearn compare experiments/wsn/digits.yaml" in (place / "table.md").read_text()


def test_equal_records_give_equal_files(written: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    shutil.copytree(written / "runs", results / "runs")
    describe(results)
    (results / "report.html").write_text("<html>half of it")
    write_report(results)
    assert files(results) == files(written)


def test_says_what_is_missing(results: Path, make_record: Make) -> None:
    make_record("ER", seed=2, finished=False)
    (results / "runs/Joint/Digits/order0-seed1/metrics.json").write_text("{")
    write_report(results)
    text = " ".join(Page(results / "report.html").text.split())
    names = "ER/Digits/order0-seed2, Joint/Digits/order0-seed1"
    assert f"Not finished and not part of this report (2): {names}" in text
    assert "5 of 7 runs finished; missing: ER/Digits/order0-seed2" in (
        results / "table.md"
    ).read_text().replace("\\_", "_")


def test_counts_what_was_never_begun_and_leaves_out_what_is_not_asked_for(results: Path) -> None:
    describe(results, seeds=[0, 5], strategies={"ER": {}, "Naive": {}})
    write_report(results)
    with (results / "table.csv").open() as file:
        assert [(r["strategy"], r["n"]) for r in csv.DictReader(file)] == [
            ("ER", "1"),
            ("Naive", "1"),
        ]
    assert (
        "2 of 4 runs finished; missing: ER/Digits/order0-seed5, Naive/Digits/order0-seed5"
        in (results / "table.md").read_text()
    )


def test_each_stream_has_an_overview_and_the_figures_of_what_is_gone_are_removed(
    results: Path, make_record: Make
) -> None:
    def figures() -> set[str]:
        names = {path.name for path in (results / "figures").iterdir()}
        return {Path(name).stem for name in names}

    write_report(results)
    one = figures()
    kinds = {"overview", "curves-Digits-class", "costs-Digits-class"}
    assert one == kinds | {*OWN, *(f"matrix-{name}-Digits-class" for name in LEVELS)}

    make_record("ER", stream="More", scenario="task")
    (results / "figures" / "mine.png").touch()
    (results / "figures" / "overview-mine.txt").touch()
    for name in ("own-mine.png", "own-lines-w-Gone-class.svg", "own-table-w-Gone-class.png"):
        (results / "figures" / name).touch()
    write_report(results)
    two = figures()
    assert {"overview-Digits-class", "overview-More-task", "matrix-ER-More-task"} <= two
    assert "overview" not in two

    shutil.rmtree(results / "runs/ER/More")
    write_report(results)
    assert figures() == one | {"mine", "overview-mine", "own-mine"}


def test_a_single_run_will_do(make_record: Make, tmp_path: Path) -> None:
    make_record()
    write_report(tmp_path / "results")
    assert "| ER | Digits | class | 1 |" in (tmp_path / "results/table.md").read_text()
    assert "show of their own" not in Page(tmp_path / "results/report.html").text


def test_metrics_of_strategies_own_are_in_every_table(make_record: Make, tmp_path: Path) -> None:
    for seed, cap in enumerate((0.4, 0.5)):
        make_record("WSN", seed=seed, extra={"cap_real": cap})
    make_record("Naive")
    results = tmp_path / "results"
    write_report(results)
    with (results / "table.csv").open() as file:
        caps = {row["strategy"]: row["cap_real_mean"] for row in csv.DictReader(file)}
    assert caps == {"Naive": "", "WSN": "0.45"}
    table = (results / "table.md").read_text()
    assert "| time | CAP real % |\n" in table
    assert "| 45.0 ± 7.1 |\n" in table
    text = Page(results / "report.html").text
    for shown in ("CAP real %", "45.0 ± 7.1", "40.0", "CAP: the weights that some task uses"):
        assert shown in text


def test_charts_of_strategies_own_are_figures(written: Path) -> None:
    page = Page(written / "report.html")
    assert page.text.count("What the strategies show of their own") == 1
    assert page.text.count("weight of a/b: mean over runs for each task, band of one") == 1
    shown = [unquote(str(a["src"])).partition(",")[2] for tag, a in page.tags if tag == "img"]
    shown = [svg.replace("'", '"') for svg in shown]  # quotes of attributes are the others there
    own = sorted(path.stem for path in (written / "figures").glob("own-*.svg"))
    assert own == OWN
    for stem in own:
        svg = (written / "figures" / f"{stem}.svg").read_text()
        assert svg.replace("'", '"') in shown
        assert (written / "figures" / f"{stem}.png").stat().st_size > 1000


def test_runs_with_other_numbers_of_tasks_are_shown(make_record: Make, tmp_path: Path) -> None:
    for seed, tasks in enumerate((2, 4)):
        table = np.eye(tasks).tolist()
        make_record("RER", seed=seed, tasks=tasks, charts={"w": {"a": [0.5] * tasks}, "t": table})
    make_record("TAG", tasks=5, charts={"w": {"a": [0.5] * 5}, "t": np.eye(5).tolist()})
    make_record("Naive", tasks=1)
    write_report(tmp_path / "results")
    assert "| RER | Digits | class | 2 |" in (tmp_path / "results/table.md").read_text()


def test_nothing_to_report(make_record: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no finished run"):
        write_report(tmp_path)
    make_record(finished=False)
    with pytest.raises(UserError, match="holds no finished run"):
        write_report(tmp_path / "results")
    assert files(tmp_path / "results") == {}


def test_names_are_shown_as_text(make_record: Make, tmp_path: Path) -> None:
    names = ["<script>alert(1)", "<img src=x onerror=alert(1)>", "$x$ _y_ & '\""]
    for name in names:
        make_record(name, stream="<b>stream", scenario="</style><script>")
    results = tmp_path / "results"
    write_report(results)
    page = Page(results / "report.html")
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "b", "iframe", "object"})
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    assert sum(tag == "style" for tag, _ in page.tags) == 1
    for name in (*names, "<b>stream"):
        assert name in page.text
    for line in (results / "table.md").read_text().splitlines():
        assert not re.search(r"(?<!\\)<(script|b|img)", line)


def test_the_page_needs_nothing_else(written: Path) -> None:
    page = Page(written / "report.html")
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 8  # the overview, two charts, two of ER's own, three matrices
    for image in images:
        assert image["alt"]
        kind, _, data = str(image["src"]).partition(",")
        assert kind == "data:image/svg+xml"
        svg = unquote(data)
        assert not re.search(r"(?:href|src)=[\"'](?!#|data:)", svg)
        assert "<script" not in svg
    tags = {tag for tag, _ in page.tags}
    assert tags.isdisjoint({"script", "link", "iframe", "object", "embed", "base"})
    other = [a.get("href") or a.get("src") for tag, a in page.tags if tag != "img"]
    assert not any(other)
    source = re.sub(r'src="data:[^"]*"', "", (written / "report.html").read_text())
    assert not re.search(r"https?://|url\(|@import", source)


def test_environments_that_differ_are_all_named(results: Path) -> None:
    path = results / "runs/ER/Digits/order0-seed1/environment.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"device": "Abacus"}))
    write_report(results)
    merged = json.loads((results / "environment.json").read_text())
    assert set(merged["device"]) == {"Abacus", content["device"]}
    assert merged["versions"] == content["versions"]
    assert "Abacus" in Page(results / "report.html").text


def test_a_record_without_its_environment_is_reported(results: Path) -> None:
    (results / "runs/ER/Digits/order0-seed1/environment.json").unlink()
    write_report(results)
    table = (results / "table.md").read_text()
    assert "torch" in table
    assert "unknown" in table


def test_a_read_only_folder_is_one_line(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(UserError, match="No space left on device"):
        write_report(results)
    assert files(results) == {}


@pytest.fixture(scope="session")
def chromium() -> str:
    found = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if found is None:
        pytest.skip("needs Chromium on the path")
    return found


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_browser_shows_it(written: Path, chromium: str, tmp_path: Path, dark: bool) -> None:
    page, picture = written / "report.html", tmp_path / "page.png"
    done = subprocess.run(
        [
            chromium,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--enable-logging=stderr",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            "--window-size=1200,1500",
            f"--screenshot={picture}",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert ":CONSOLE" not in done.stderr
    pixels = imread(picture)[..., :3]
    page_colour = pixels[5, 5]
    assert (page_colour.mean() < 0.3) == dark
    assert page_colour.mean() < 0.2 or page_colour.mean() > 0.9
    # Every strategy's colour is on the page, and the bright end of the matrices' colour map.
    for colour in ([0, 0x72, 0xB2], [0xD5, 0x5E, 0], [0, 0x9E, 0x73]):
        assert count(pixels, colour) > 50
    assert count(pixels, [0xFD, 0xE8, 0x37], near=0.12) > 5000
    inked = np.abs(pixels - page_colour).max(axis=-1) > 0.3
    assert inked[:120].mean() > 0.005  # the heading
    assert inked[200:400].mean() > 0.01  # the table


def count(pixels: np.ndarray, colour: list[int], near: float = 0.02) -> int:
    """Pixels of about that colour."""
    return int((np.abs(pixels - np.array(colour) / 255).max(axis=-1) < near).sum())
