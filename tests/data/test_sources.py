from pathlib import Path

import pytest

from recsys_opt.bench.criteo_text import write_rows
from recsys_opt.data.sources import find_sources
from recsys_opt.errors import InputError


def names(folder: Path, *files: str) -> list[Path]:
    folder.mkdir(exist_ok=True)
    return [write_rows(folder / name, 5, seed=1, labelled="test" not in name) for name in files]


def test_names_and_columns_tell_what_a_file_is(tmp_path: Path) -> None:
    a, b, *_ = names(tmp_path / "k", "test.txt", "train.txt.gz", "notes.md")
    kind, sources = find_sources([tmp_path / "k"])
    assert kind == "kaggle"
    assert [(s.path, s.part, s.labelled, s.compression) for s in sources] == [
        (b, "train", True, "gzip"),
        (a, "test", False, "none"),
    ]
    kind, sources = find_sources(names(tmp_path / "s", "kaggle_sample.tsv.gz"))
    assert (kind, sources[0].part) == ("kaggle", "train")


def test_days_are_sorted_by_number(tmp_path: Path) -> None:
    names(tmp_path / "t", "day_10", "day_9.gz", "day_0.tsv")
    kind, sources = find_sources([tmp_path / "t"])
    assert kind == "terabyte"
    assert [s.part for s in sources] == ["day_0", "day_9", "day_10"]


def test_the_format_can_be_given(tmp_path: Path) -> None:
    a, b = names(tmp_path / "o", "first", "second")
    kind, sources = find_sources([b, a], "terabyte")
    assert [(s.path, s.part) for s in sources] == [(b, "day_0"), (a, "day_1")]
    kind, sources = find_sources(names(tmp_path / "p", "day_3"), "kaggle")
    assert (kind, sources[0].part) == ("kaggle", "train")


@pytest.mark.parametrize(
    ("files", "given", "message"),
    [
        (["day_0", "train.txt"], ["day_0", "train.txt"], "mix Terabyte's day files with others"),
        (["day_0", "train.txt"], ["."], "holds both Terabyte's day files and Kaggle's"),
        (["notes.md"], ["."], "holds neither train.txt"),
        (["day_1", "day_1.gz"], ["."], "would both become part 'day_1'"),
        (["a.tsv", "b.tsv"], ["a.tsv", "b.tsv"], "would both become part 'train'.*--format terabyte"),
        (["test.txt"], ["."], "has no labels: give the labelled file"),
        ([], ["nothing.txt"], r"nothing\.txt does not exist"),
    ],
)
def test_what_cannot_be_prepared(tmp_path: Path, files: list[str], given: list[str], message: str) -> None:
    folder = tmp_path / "f"
    names(folder, *files)
    with pytest.raises(InputError, match=message):
        find_sources([folder / name for name in given])


def test_an_unlabelled_day(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "day_0", 5, seed=1, labelled=False)
    with pytest.raises(InputError, match="has 39 columns: a day file has a label in front"):
        find_sources([path])
