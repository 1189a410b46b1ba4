"""The dataset folder: torchrec's npy layout plus `dataset.json`, memory-mapped.

    dataset.json                      what the arrays mean (written last: a folder without it is no dataset)
    <part>_dense.npy    f32 [N, 13]   transformed integer columns
    <part>_sparse.npy   i32 [N, 26]   contiguous ids, 0 <= id < num_embeddings of the column
    <part>_labels.npy   i32 [N, 1]    0 or 1; absent for a part without labels

Parts are in time order: `day_0` .. `day_23` for Terabyte, `train` and `test` for Kaggle (its `test` has no
labels). A split is a range of rows of the labelled parts laid end to end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_opt.data.npy import mapped_array
from recsys_opt.errors import InputError
from recsys_opt.files import read_json, write_json

FORMAT = "recsys_opt.dataset"
VERSION = 1
FILE_NAME = "dataset.json"


@dataclass(frozen=True)
class SparseColumn:
    """A categorical column."""

    name: str
    num_embeddings: int


@dataclass(frozen=True)
class Part:
    """One triple of .npy files."""

    name: str
    rows: int
    labelled: bool = True


@dataclass(frozen=True)
class DatasetInfo:
    """The content of dataset.json."""

    name: str
    """What it was made from or for, e.g. "criteo_kaggle"."""
    dense_columns: tuple[str, ...]
    sparse_columns: tuple[SparseColumn, ...]
    parts: tuple[Part, ...]
    splits: Mapping[str, tuple[int, int]]
    """Split name ("train", "validation", "test") -> [start, stop) over the labelled parts laid end to end."""
    ids: Mapping[str, Any]
    """How ids were made: {"method": "vocabulary", "min_count": ..., ...}, {"method": "hash", ...} or
    {"method": "synthetic", ...}."""
    dense_transform: str
    """"dlrm" (log(x + 1), negatives and missing 0), "torchrec" (log(x - minimum + 2)) or "none"."""
    source: Mapping[str, Any] = field(default_factory=dict)
    """Where the rows came from: files with sizes and hashes, or the generator's seed and settings."""
    input_hash: str = ""
    """SHA-256 that identifies input and options: equal hashes mean equal arrays."""
    bayes: Mapping[str, Mapping[str, float]] | None = None
    """Generated data only: split -> the best possible {"auc", "logloss"}."""

    @property
    def labelled_rows(self) -> int:
        """Rows that have a label."""
        return sum(p.rows for p in self.parts if p.labelled)

    def to_json(self) -> dict[str, Any]:
        """JSON values only."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> DatasetInfo:
        """The inverse of `to_json`."""
        values = {k: v for k, v in document.items() if k not in ("format", "version")}
        values["dense_columns"] = tuple(values["dense_columns"])
        values["sparse_columns"] = tuple(SparseColumn(**c) for c in values["sparse_columns"])
        values["parts"] = tuple(Part(**p) for p in values["parts"])
        values["splits"] = {k: (int(v[0]), int(v[1])) for k, v in values["splits"].items()}
        return cls(**values)


@dataclass(frozen=True)
class PartArrays:
    """A part's arrays, memory-mapped."""

    dense: NDArray[np.float32]  # [N, 13]
    sparse: NDArray[np.int32]  # [N, 26]
    labels: NDArray[np.int32] | None  # [N, 1]


def array_path(folder: Path, part: str, kind: str) -> Path:
    """`kind` is "dense", "sparse" or "labels"."""
    return folder / f"{part}_{kind}.npy"


def write_dataset_info(folder: Path, info: DatasetInfo) -> None:
    """Declares a folder's arrays whole, by writing dataset.json; the arrays must be durable before."""
    write_json(folder / FILE_NAME, FORMAT, VERSION, info.to_json())


class Dataset:
    """A dataset folder, opened for reading; every array's shape and type is checked."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        file = self.path / FILE_NAME
        if self.path.is_dir() and not file.exists():
            raise InputError(
                f"{self.path} is not a whole dataset: it has no {FILE_NAME}. If the command that makes it "
                "was interrupted, run the same command again: it goes on where it stopped"
            )
        document = read_json(file, FORMAT, VERSION)
        try:
            self.info = DatasetInfo.from_json(document)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise InputError(f"{file} does not describe a dataset: {error!r}") from None
        self._arrays = {p.name: self._open(p) for p in self.info.parts}
        for name, (start, stop) in self.info.splits.items():
            if not 0 <= start <= stop <= self.info.labelled_rows:
                raise InputError(
                    f"{file}: split {name!r} is rows {start} to {stop}, but there are "
                    f"{self.info.labelled_rows} labelled rows"
                )

    def arrays(self, part: str) -> PartArrays:
        """The arrays of one part."""
        return self._arrays[part]

    def split(self, name: str) -> tuple[int, int]:
        """[start, stop) of a split over the labelled parts laid end to end."""
        if name not in self.info.splits:
            known = ", ".join(self.info.splits) or "none"
            raise InputError(f"{self.path} has no split {name!r}; it has: {known}")
        return self.info.splits[name]

    def labelled_arrays(self) -> list[PartArrays]:
        """The labelled parts in time order."""
        return [self._arrays[p.name] for p in self.info.parts if p.labelled]

    def _open(self, part: Part) -> PartArrays:
        dense = self._map(part, "dense", np.float32, len(self.info.dense_columns))
        sparse = self._map(part, "sparse", np.int32, len(self.info.sparse_columns))
        labels = self._map(part, "labels", np.int32, 1) if part.labelled else None
        return PartArrays(dense, sparse, labels)

    def _map(self, part: Part, kind: str, dtype: type[np.generic], columns: int) -> NDArray[Any]:
        path = array_path(self.path, part.name, kind)
        array = mapped_array(path, "make the dataset again", empty=not part.rows)
        if array.dtype != dtype or array.shape != (part.rows, columns):
            raise InputError(
                f"{path} holds {array.dtype} {array.shape}; {FILE_NAME} says {np.dtype(dtype)} ({part.rows}, "
                f"{columns}); make the dataset again"
            )
        return array
