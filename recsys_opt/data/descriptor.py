"""The dataset descriptors of `datasets/`: columns and published cardinalities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from recsys_opt.errors import InputError
from recsys_opt.files import read_json

FORMAT = "recsys_opt.descriptor"
VERSION = 1
_PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Descriptor:
    """What is published about a dataset."""

    name: str
    title: str
    rows: Mapping[str, int]
    dense_columns: tuple[str, ...]
    sparse_columns: tuple[str, ...]
    cardinalities: Mapping[str, tuple[int, ...]]
    """Name of a published setting -> num_embeddings of each sparse column, "missing" counted as an id."""
    multi_hot_sizes: Mapping[str, tuple[int, ...]]
    """Name of a published setting -> ids per sample of each sparse column, where it has more than one."""


def datasets_dir() -> Path:
    """The folder of descriptors: inside an installed wheel, else at the top of the source tree."""
    for folder in (_PACKAGE / "_datasets", _PACKAGE.parent / "datasets"):
        if folder.is_dir():
            return folder
    raise InputError("the dataset descriptors are missing from this installation; install recsys_opt again")


def load_descriptor(name: str) -> Descriptor:
    """Reads `datasets/<name>/descriptor.json`."""
    path = datasets_dir() / name / "descriptor.json"
    if not path.exists():
        known = ", ".join(sorted(p.parent.name for p in datasets_dir().glob("*/descriptor.json")))
        raise InputError(f"there is no dataset descriptor {name!r}; there are: {known}")
    document = read_json(path, FORMAT, VERSION)
    return Descriptor(
        name=document["name"],
        title=document["title"],
        rows=document["rows"],
        dense_columns=tuple(document["dense_columns"]),
        sparse_columns=tuple(document["sparse_columns"]),
        cardinalities={k: tuple(v) for k, v in document["cardinalities"].items()},
        multi_hot_sizes={k: tuple(v) for k, v in document.get("multi_hot_sizes", {}).items()},
    )


def published_cardinalities() -> dict[str, tuple[int, ...]]:
    """Every published setting of every descriptor, e.g. "kaggle", "terabyte-40m"."""
    found: dict[str, tuple[int, ...]] = {}
    for path in sorted(datasets_dir().glob("*/descriptor.json")):
        found.update(load_descriptor(path.parent.name).cardinalities)
    return found
