"""Generated rows like Criteo's, for users without the data, and with a known best AUC and logloss.

Any row is a pure function of (profile, number of rows, seed, row): the same whoever makes it, on any number
of threads, alone or with others. Rows are spread evenly over the profile's period, so a row's time is its
place among all rows, and ids drift along.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import recsys_opt._synth as _synth
from recsys_opt.data.bayes import Scores, bayes
from recsys_opt.data.dataset import (
    FILE_NAME,
    Dataset,
    DatasetInfo,
    Part,
    SparseColumn,
    array_path,
    write_dataset_info,
)
from recsys_opt.data.prepare_journal import FOLDER as UNFINISHED
from recsys_opt.data.splits import Split
from recsys_opt.data.statistics import Statistics, read_statistics
from recsys_opt.data.synth_model import make_generator
from recsys_opt.data.synth_resize import resized
from recsys_opt.errors import InputError, RecsysOptError
from recsys_opt.files import FolderLock, atomic_path
from recsys_opt.progress import Progress, SilentProgress

MAX_ROWS = 1 << 40
MAX_SEED = (1 << 63) - 1
SLAB_ROWS = 1 << 18
GENERATOR_VERSION = 1
"""Raised whenever the same settings would give other rows."""


class Rows(NamedTuple):
    """Generated rows."""

    dense: NDArray[np.float32]  # [n, 13] log(x + 1), negatives and missing 0
    sparse: NDArray[np.int32]  # [n, 26]
    labels: NDArray[np.int32]  # [n, 1]
    probabilities: NDArray[np.float64]  # [n, 1] the true ones
    integers: NDArray[np.int32]  # [n, 13] before the transform, `_synth.MISSING` where missing


def usable_threads() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


class SyntheticCriteo:
    """Rows 0 .. rows - 1 of a generated data set; any range of them can be made alone."""

    def __init__(
        self,
        rows: int,
        *,
        seed: int = 0,
        profile: str | Path | Statistics = "criteo_kaggle",
        max_cardinality: int | None = None,
        cardinalities: str | None = None,
    ) -> None:
        """cardinalities  a published setting whose table sizes the columns get (`resized`)"""
        if not 1 <= rows <= MAX_ROWS:
            raise InputError(f"rows = {rows}; it must be between 1 and {MAX_ROWS}")
        if not 0 <= seed <= MAX_SEED:
            raise InputError(f"seed = {seed}; it must be between 0 and {MAX_SEED}")
        if max_cardinality is not None and max_cardinality < 2:
            raise InputError(f"max_cardinality = {max_cardinality}; it must be at least 2")
        self.num_rows = rows
        self.seed = seed
        self.max_cardinality = max_cardinality
        self.cardinalities = cardinalities
        statistics = profile if isinstance(profile, Statistics) else read_statistics(profile)
        self.profile = statistics.name
        self.statistics = statistics if cardinalities is None else resized(statistics, cardinalities)
        try:
            self._native = make_generator(self.statistics, rows, seed, max_cardinality)
        except ValueError as error:
            raise InputError(f"profile {self.statistics.name!r} cannot be drawn from: {error}") from None

    @property
    def dense_columns(self) -> tuple[str, ...]:
        """Names of the integer columns."""
        return tuple(c.name for c in self.statistics.dense)

    @property
    def sparse_columns(self) -> tuple[SparseColumn, ...]:
        """The categorical columns, as in dataset.json."""
        limit = self.max_cardinality or (1 << 40)
        return tuple(SparseColumn(c.name, min(c.num_embeddings, limit)) for c in self.statistics.sparse)

    def rows(self, start: int, stop: int, *, threads: int | None = None) -> Rows:
        """Rows [start, stop), the same as in any other call."""
        self._check_range(start, stop)
        return Rows(**self._native.rows(start, stop, threads or usable_threads()))

    def text(self, start: int, stop: int, *, threads: int | None = None) -> bytes:
        """Rows [start, stop) as lines of Criteo's text; ids become hexadecimal values, one each."""
        rows = self.rows(start, stop, threads=threads)
        never_missing = [c.never_missing for c in self.statistics.sparse]
        return _synth.criteo_text(rows.labels, rows.integers, rows.sparse, never_missing)

    def write(
        self, start: int, stop: int, files: tuple[IO[bytes], ...], offsets: tuple[int, ...], threads: int
    ) -> Scores:
        """Writes rows [start, stop) into three .npy files whose row 0 is at `offsets`."""
        self._check_range(start, stop)
        dense, sparse, labels = (f.fileno() for f in files)
        positives, negatives = self._native.write(
            start, stop, threads, (dense, sparse, labels), (offsets[0], offsets[1], offsets[2])
        )
        return Scores(positives, negatives)

    def _check_range(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.num_rows:
            raise InputError(
                f"rows {start} to {stop} are not within the {self.num_rows} rows of this generator"
            )

    @classmethod
    def of_dataset(cls, info: DatasetInfo) -> SyntheticCriteo | None:
        """The generator that a dataset came from; None where it is another's, or the profile has changed."""
        if info.ids.get("method") != "synthetic":
            return None
        try:
            found = cls(
                info.labelled_rows,
                seed=int(info.source["seed"]),
                profile=str(info.source["profile"]),
                max_cardinality=info.source["max_cardinality"],
                cardinalities=info.source.get("cardinalities"),
            )
        except InputError:
            return None
        return found if dataset_hash(found, info.splits) == info.input_hash else None

    def identity(self) -> str:
        """SHA-256 of all that the rows depend on."""
        settings = {
            "generator": GENERATOR_VERSION,
            "statistics": self.statistics.to_json(),
            "rows": self.num_rows,
            "seed": self.seed,
            "max_cardinality": self.max_cardinality,
        }
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def dataset_hash(source: SyntheticCriteo, ranges: Mapping[str, tuple[int, int]]) -> str:
    """The `input_hash` of a generated dataset."""
    splits = {name: list(span) for name, span in ranges.items()}
    return hashlib.sha256(json.dumps([source.identity(), splits]).encode()).hexdigest()


def write_dataset(
    source: SyntheticCriteo,
    folder: Path,
    *,
    split: Split | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> DatasetInfo:
    """Writes all rows as a dataset folder of one part, `train`; the same call again finds it done.

    Its `bayes` has, per split and for "all", what the true probabilities achieve (`recsys_opt.data.bayes`).
    """
    ranges = (split or Split.parse("80/10/10")).ranges([source.num_rows])
    identity = dataset_hash(source, ranges)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give a folder to write to")
    with FolderLock(folder):
        if (folder / FILE_NAME).exists():
            existing = Dataset(folder).info
            if existing.input_hash == identity:
                return existing
            raise InputError(
                f"{folder} holds another dataset, made from {existing.name}; remove it or choose another "
                "folder"
            )
        if (folder / UNFINISHED).exists():
            raise InputError(
                f"{folder} holds an unfinished run of data prepare; finish or remove it, or choose another "
                "folder"
            )
        scores = _write_arrays(
            source, folder, ranges, threads or usable_threads(), progress or SilentProgress()
        )
        known = {name: bayes(s) for name, s in scores.items() if ranges[name][0] < ranges[name][1]}
        overall = bayes(sum(scores.values(), Scores.empty()))
        info = DatasetInfo(
            name=source.statistics.name,
            dense_columns=source.dense_columns,
            sparse_columns=source.sparse_columns,
            parts=(Part("train", source.num_rows),),
            splits=ranges,
            ids={
                "method": "synthetic",
                "missing_id": 0,
                "never_missing": [c.name for c in source.statistics.sparse if c.never_missing],
            },
            dense_transform="dlrm",
            source={
                "generator_version": GENERATOR_VERSION,
                "profile": source.profile,
                "seed": source.seed,
                "max_cardinality": source.max_cardinality,
                "cardinalities": source.cardinalities,
                "bayes_all": overall,
            },
            input_hash=identity,
            bayes=known,
        )
        write_dataset_info(folder, info)
    return info


def _write_arrays(
    source: SyntheticCriteo,
    folder: Path,
    ranges: dict[str, tuple[int, int]],
    threads: int,
    progress: Progress,
) -> dict[str, Scores]:
    kinds: tuple[tuple[str, Any, int], ...] = (
        ("dense", np.float32, len(source.dense_columns)),
        ("sparse", np.int32, len(source.sparse_columns)),
        ("labels", np.int32, 1),
    )
    row_bytes = 4 * sum(columns for _, _, columns in kinds)
    for leftover in folder.glob(".*.npy.partial"):  # of a killed run
        leftover.unlink()
    free = shutil.disk_usage(folder).free
    if source.num_rows * row_bytes > free:
        raise RecsysOptError(
            f"{source.num_rows} rows take {source.num_rows * row_bytes} bytes; {folder} has {free} bytes "
            "free: ask for fewer rows or choose another disk"
        )
    scores = {name: Scores.empty() for name in ranges}
    progress.start("generate", source.num_rows, "rows")
    with contextlib.ExitStack() as stack:
        files: list[IO[bytes]] = []
        offsets: list[int] = []
        for kind, dtype, columns in kinds:
            partial = stack.enter_context(atomic_path(array_path(folder, "train", kind)))
            file = stack.enter_context(open(partial, "wb", buffering=0))
            header = {
                "descr": np.dtype(dtype).str,
                "fortran_order": False,
                "shape": (source.num_rows, columns),
            }
            np.lib.format.write_array_header_1_0(file, header)
            files.append(file)
            offsets.append(file.tell())
        slab = SLAB_ROWS * threads
        for name, (start, stop) in ranges.items():
            for first in range(start, stop, slab):
                last = min(first + slab, stop)
                scores[name] += source.write(first, last, tuple(files), tuple(offsets), threads)
                progress.advance(last - first)
    progress.finish()
    return scores
