"""Invented rows in Criteo's text format."""

import gzip
from pathlib import Path

import numpy as np


def make_lines(rows: int, seed: int, *, labelled: bool = True) -> list[str]:
    """Skewed values in columns of very different cardinality, missing values, negative and large integers."""
    rng = np.random.default_rng(seed)
    distinct = np.geomspace(3, 50_000, 26).astype(int)
    columns = []
    for c in range(26):
        ids = np.minimum(rng.zipf(1.2 + 0.02 * c, rows), distinct[c])
        values = (ids * 2654435761 + c * 40503) % 2**32
        columns.append(np.where(rng.random(rows) < 0.05 * (c % 4), "", np.char.mod("%08x", values)))
    for i in range(13):
        integers = (rng.pareto(0.6, rows) * 10).clip(max=2e9).astype(np.int64) - (3 if i == 1 else 0)
        columns.insert(i, np.where(rng.random(rows) < 0.1 * (i % 3), "", integers.astype(str)))
    if labelled:
        columns.insert(0, rng.integers(0, 2, rows).astype(str))
    return ["\t".join(row) for row in zip(*columns, strict=True)]


def write_rows(path: Path, rows: int, seed: int, *, labelled: bool = True) -> Path:
    """Writes invented rows; compressed where the name says so."""
    data = ("\n".join(make_lines(rows, seed, labelled=labelled)) + "\n").encode()
    if path.suffix == ".gz":
        data = gzip.compress(data, mtime=0)
    elif path.suffix == ".zst":
        import zstandard

        data = zstandard.ZstdCompressor().compress(data)
    path.write_bytes(data)
    return path
