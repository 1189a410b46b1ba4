"""Text in Criteo's format for measurements and tests: invented rows, and many rows from few."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recsys_opt.data.streams import text_blocks
from recsys_opt.errors import InputError

_KEPT_FROM = 3  # values that occur this often stay as they are in every copy
_TAB, _NEWLINE = 9, 10
_SHIFTS = np.arange(28, -4, -4, dtype=np.uint32)


def make_lines(rows: int, seed: int, *, labelled: bool = True) -> list[str]:
    """Invented lines: skewed values, columns of very different cardinality, missing and negative integers."""
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
    """Writes `make_lines`, compressed where the name says so."""
    data = ("\n".join(make_lines(rows, seed, labelled=labelled)) + "\n").encode()
    if path.suffix == ".gz":
        data = gzip.compress(data, mtime=0)
    elif path.suffix == ".zst":
        import zstandard

        data = zstandard.ZstdCompressor().compress(data)
    path.write_bytes(data)
    return path


def replicate(base: Path, out: Path, rows: int) -> int:
    """Writes `rows` rows: copies of `base`, the rare values of which differ from copy to copy.

    So distinct values grow in number with the rows, as in real logs, and the frequent ones stay frequent.
    Returns the number of distinct (column, value) pairs written, up to chance collisions of perturbed values.
    """
    text = np.frombuffer(b"".join(text_blocks(base)), dtype=np.uint8)
    if not text.size or text[-1] != _NEWLINE:
        raise InputError(f"{base} does not end with a whole line")
    starts, keys = _values(text)
    line_ends = np.flatnonzero(text == _NEWLINE)
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    is_rare = counts[inverse] < _KEPT_FROM
    rare, rare_keys = starts[is_rare], keys[is_rare]
    places = rare[:, None] + np.arange(8)
    hexadecimal = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)
    distinct = int((counts >= _KEPT_FROM).sum())
    with open(out, "wb") as f:
        for copy in range(-(-rows // line_ends.size)):
            left = rows - copy * line_ends.size
            end = int(line_ends[min(left, line_ends.size) - 1]) + 1
            changed = (rare_keys + np.uint64(copy * 0x85EBCA77)).astype(np.uint32)
            perturbed = text.copy()
            perturbed[places] = hexadecimal[(changed[:, None] >> _SHIFTS) & np.uint32(15)]
            f.write(perturbed[:end].data)
            distinct += np.unique(rare_keys[rare < end]).size
    return distinct


def _values(text: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Where every present value starts, and (field << 32 | value)."""
    ends = np.flatnonzero((text == _TAB) | (text == _NEWLINE))
    starts = np.concatenate(([0], ends[:-1] + 1))
    per_line = int(np.argmax(text[ends] == _NEWLINE)) + 1
    if ends.size % per_line or per_line < 39:
        raise InputError("the base file's lines do not all have the columns of Criteo's format")
    field = np.arange(ends.size) % per_line
    present = (field >= per_line - 26) & (ends - starts == 8)
    starts = starts[present]
    digits = text[starts[:, None] + np.arange(8)].astype(np.uint32)
    nibbles = (digits & np.uint32(15)) + np.uint32(9) * (digits >> np.uint32(6))
    values = (nibbles << _SHIFTS).sum(axis=1, dtype=np.uint64)
    return starts, field[present].astype(np.uint64) << np.uint64(32) | values
