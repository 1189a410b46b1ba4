from html.parser import HTMLParser
from pathlib import Path

import pytest

from recsys_opt.errors import InputError
from recsys_opt.models.recipes import DLRMConfig
from recsys_opt.report import comparison, write_run_report
from recsys_opt.report.history import History
from recsys_opt.report.page import megabytes
from recsys_opt.report.svg import Level, Series, chart
from recsys_opt.run_folder import RunFolder
from recsys_opt.training.config import TrainingConfig, replaced
from recsys_opt.training.trainer import train
from tests.generated import make_dataset


class Checked(HTMLParser):
    """Collects the text; raises when tags are not closed in order or something is fetched from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.words: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag, attrs):
        assert not {"src", "href"} & {name for name, _ in attrs}
        assert tag not in ("script", "link", "img", "iframe")
        self.tags.append(tag)
        if tag != "meta":
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def checked(page: Path) -> Checked:
    parser = Checked()
    text = page.read_text()
    assert "url(" not in text
    assert "@import" not in text
    parser.feed(text)
    assert parser.stack == []
    return parser


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    data = make_dataset(folder / "data")
    config = TrainingConfig(
        architecture=DLRMConfig(bottom_mlp=(16, 8), top_mlp=(16, 1)), batch_size=100, log_every=5
    )
    train(config, data.path, folder / "dense")
    train(replaced(config, {"compression.tt_threshold": 700}), data.path, folder / "tt <b>")
    return {"dense": folder / "dense", "tt <b>": folder / "tt <b>"}


def test_a_runs_report_shows_its_figures(runs):
    page = checked(write_run_report(runs["tt <b>"]))
    text = " ".join(page.words)
    final = History.read(runs["tt <b>"]).final("test")
    assert f"{final['auc']:.5f}" in text
    assert f"{final['logloss']:.5f}" in text
    assert "tt <b>" in text  # escaped in the page
    assert "tt (tt_ranks [32, 32], tt_p_shapes [" in text
    assert "best possible (0.8500)" in text
    assert page.tags.count("svg") == 4


def test_a_report_of_a_run_that_has_just_begun(runs, tmp_path):
    run = RunFolder(tmp_path)
    source = RunFolder(runs["dense"])
    run.config_path.write_bytes(source.config_path.read_bytes())
    assert "0 training rows seen" in " ".join(checked(write_run_report(run.path)).words)
    lines = source.metrics_path.read_bytes().splitlines(keepends=True)
    run.metrics_path.write_bytes(lines[0] + lines[1][:20])  # half a line: still being written
    assert len(History.read(run.path).lines) == 1
    checked(write_run_report(run.path))
    with pytest.raises(InputError, match="is not a run folder"):
        write_run_report(tmp_path / "nothing")


def test_speed_is_rows_over_time(runs):
    history = History.read(runs["dense"])
    slow_and_fast = [
        {"kind": "train", "rows": 100, "samples_per_s": 10.0},
        {"kind": "train", "rows": 300, "samples_per_s": 100.0},
    ]
    assert History("x", history.description, slow_and_fast).samples_per_s() == pytest.approx(300 / 12)
    assert History("x", history.description, []).samples_per_s() is None


def test_a_comparison_shows_every_run_and_what_differs(runs, tmp_path):
    out = comparison(runs, tmp_path / "compared.html")
    page = checked(out)
    text = " ".join(page.words)
    first, second = (History.read(r).final("test")["auc"] for r in runs.values())
    assert f"{second:.5f}" in text
    assert f"{second - first:+.5f}" in text
    assert "compression.tt_threshold" in text
    assert "best possible" in text
    assert page.tags.count("svg") == 4
    by_folder = comparison(list(runs.values()), tmp_path / "b.html")
    assert by_folder.read_text() == out.read_text()
    with pytest.raises(InputError, match="no runs"):
        comparison([], tmp_path / "c.html")


def test_a_chart_places_points_on_its_axes():
    svg = chart([Series("a", [0, 10], [0.0, 1.0])], x_label="x", y_label="y", levels=[Level("best", 0.5)])
    assert 'points="64.0,276.0 544.0,14.0"' in svg
    assert 'y1="145.0" y2="145.0"' in svg
    assert chart([Series("a", [1], [None])], x_label="x", y_label="y") == ""
    assert "<circle" in chart([Series("a", [3], [2.0])], x_label="x", y_label="y", log_x=True)
    assert "<circle" in chart([Series("a", [1000], [2.0])], x_label="x", y_label="y", log_x=True)


@pytest.mark.parametrize(("size", "text"), [(12, "12 B"), (2_160_804_928, "2.16 GB")])
def test_bytes_as_text(size, text):
    assert megabytes(size) == text
