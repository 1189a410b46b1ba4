"""Finding the Criteo files to prepare, and what each of them is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from recsys_opt.data.criteo import DENSE_COLUMNS, SPARSE_COLUMNS
from recsys_opt.data.streams import Compression, compression_of, text_blocks
from recsys_opt.errors import InputError

Kind = Literal["kaggle", "terabyte"]

_DAY = re.compile(r"day_(\d+)(\.[A-Za-z]\w*)*$")
_KAGGLE = re.compile(r"(train|test)(\.txt|\.tsv|\.csv)?(\.gz|\.zst)?$")
_UNLABELLED_FIELDS = len(DENSE_COLUMNS) + len(SPARSE_COLUMNS)
_HEAD_BYTES = 1 << 16


@dataclass(frozen=True)
class Source:
    """One input file and the part it becomes."""

    path: Path
    part: str
    labelled: bool
    compression: Compression
    size: int
    mtime_ns: int


def find_sources(paths: Sequence[Path], kind: Kind | None = None) -> tuple[Kind, list[Source]]:
    """The dataset's kind, and the files of `paths` in time order; a folder stands for the Criteo files in it.

    The kind is told by the names (`day_<n>` is Terabyte's) unless it is given.
    """
    files = [file for path in paths for file in _expand(path)]
    if not files:
        raise InputError("no input file is given")
    days = [_DAY.fullmatch(file.name) for file in files]
    if kind is None:
        if any(days) and not all(days):
            raise InputError(
                "the inputs mix Terabyte's day files with others ("
                + ", ".join(file.name for file in files)
                + "); prepare one dataset at a time, or say --format"
            )
        kind = "terabyte" if all(days) else "kaggle"
    if kind == "kaggle":
        sources = [_source(file, "train" if _is_labelled(file) else "test") for file in files]
    else:
        numbers = [int(d[1]) if d else i for i, d in enumerate(days)] if all(days) else range(len(files))
        sources = [_source(file, f"day_{n}") for n, file in zip(numbers, files, strict=True)]
        sources.sort(key=lambda s: int(s.part.removeprefix("day_")))
    _check(kind, sources)
    if kind == "kaggle":
        sources.sort(key=lambda s: not s.labelled)
    return kind, sources


def _expand(path: Path) -> list[Path]:
    if not path.exists():
        raise InputError(f"{path} does not exist")
    if not path.is_dir():
        return [path]
    files = sorted(path.iterdir())
    days = [file for file in files if _DAY.fullmatch(file.name) and file.is_file()]
    kaggle = [file for file in files if _KAGGLE.fullmatch(file.name) and file.is_file()]
    if days and kaggle:
        raise InputError(
            f"{path} holds both Terabyte's day files and Kaggle's train/test; name the files to read"
        )
    if not days and not kaggle:
        raise InputError(
            f"{path} holds neither train.txt or test.txt nor day_0 .. day_23 (plain, .gz or .zst); name "
            "the files"
        )
    return days or kaggle


def _source(path: Path, part: str) -> Source:
    stat = path.stat()
    return Source(path, part, _is_labelled(path), compression_of(path), stat.st_size, stat.st_mtime_ns)


def _is_labelled(path: Path) -> bool:
    """From the number of columns of the first line that has a plausible one."""
    head = b""
    for block in text_blocks(path):
        head += block[:_HEAD_BYTES]
        if len(head) >= _HEAD_BYTES:
            break
    if not head:
        raise InputError(f"{path} is empty: it has no rows")
    for line in head.split(b"\n"):
        fields = line.count(b"\t") + 1
        if fields in (_UNLABELLED_FIELDS, _UNLABELLED_FIELDS + 1):
            return fields == _UNLABELLED_FIELDS + 1
    return True  # the reader will say what is wrong


def _check(kind: Kind, sources: list[Source]) -> None:
    parts: dict[str, Source] = {}
    for source in sources:
        if kind == "terabyte" and not source.labelled:
            raise InputError(
                f"{source.path} has {_UNLABELLED_FIELDS} columns: a day file has a label in front"
            )
        if source.part in parts:
            raise InputError(
                f"{parts[source.part].path} and {source.path} would both become part {source.part!r} of the "
                f"{kind} dataset; give one of them"
                + (", or say --format terabyte if they are days" if kind == "kaggle" else "")
            )
        parts[source.part] = source
    if not any(source.labelled for source in sources):
        raise InputError(f"{sources[0].path} has no labels: give the labelled file (train.txt) too")
