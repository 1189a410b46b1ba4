"""Criteo text rows in memory, for measuring statistics: small samples only (`data prepare` streams)."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_opt.errors import InputError

MAX_BYTES = 4 << 30


@dataclass(frozen=True)
class Sample:
    """Rows in time order; an id is its rank by frequency from 1, and 0 is missing."""

    labels: NDArray[np.int32]  # [N]
    integers: NDArray[np.float64]  # [N, 13], NaN where missing
    ids: NDArray[np.int64]  # [N, 26]
    sha256: str
    """Of the unpacked text."""


def rank_by_frequency(values: NDArray[Any], missing: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Ranks from 1 of the values that are not missing, most frequent first; ties by first appearance."""
    result = np.zeros(len(values), dtype=np.int64)
    _, first, inverse, counts = np.unique(
        values[~missing], return_index=True, return_inverse=True, return_counts=True
    )
    order = np.lexsort((first, -counts))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(1, len(order) + 1)
    result[~missing] = rank[inverse]
    return result


def read_sample(path: Path) -> Sample:
    """Reads a whole labelled Criteo text file, plain or .gz."""
    if not path.exists():
        raise InputError(f"{path} does not exist")
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path} is not a whole .gz file: {error}") from None
    if len(data) > MAX_BYTES:
        raise InputError(
            f"{path} holds {len(data)} bytes of text; at most {MAX_BYTES} fit: take a sample of it"
        )
    rows = [line.split(b"\t") for line in data.removesuffix(b"\n").split(b"\n")]
    for number, row in enumerate(rows, start=1):
        if len(row) != 40:
            raise InputError(f"{path}, line {number}: {len(row)} columns; labelled Criteo rows have 40")
    columns = list(zip(*rows, strict=True))
    try:
        labels = np.array(columns[0], dtype="S").astype(np.int32)
        integers = np.stack(
            [np.array([float(v) if v else np.nan for v in column]) for column in columns[1:14]], axis=1
        )
    except ValueError as error:
        raise InputError(f"{path}: {error}; labels and the first 13 columns must be integers") from None
    ids = np.empty((len(rows), 26), dtype=np.int64)
    for c, column in enumerate(columns[14:]):
        text = np.array(column, dtype="S8")
        ids[:, c] = rank_by_frequency(text, text == b"")
    return Sample(labels, integers, ids, hashlib.sha256(data).hexdigest())
