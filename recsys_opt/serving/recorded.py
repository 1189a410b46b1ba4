"""Columns of numbers from files of several kinds: arrivals and sizes that somebody recorded.

.csv      a header with the columns' names; or numbers alone, in the order asked for
.parquet  columns by name (needs pyarrow)
.jsonl    JSON lines, a key for each column; a trace of `recsys_opt.serving.trace` too
.npz      arrays by name; a trace too
.npy      one column [N], or the columns in the order asked for [N, k]
"""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_opt.errors import InputError
from recsys_opt.integrations.parquet_columns import read_numbers

Array = NDArray[Any]


def read_columns(path: Path, names: Sequence[str], *, only: str) -> dict[str, Array]:
    """The columns of these names that the file has, as f64 arrays of one length.

    only  the column that must be there, and that a file with one column without a name holds
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist, or is no file; name a file with a column {only}")
    reader = _READERS.get(path.suffix)
    if reader is None:
        raise InputError(f"{path}: its name must end in one of {', '.join(_READERS)}")
    columns = reader(path, names, only)
    if only not in columns:
        raise InputError(f"{path} has no column {only!r}; name one that it has, or write the file again")
    found = {}
    for name in names:
        if name not in columns:
            continue
        column = np.asarray(columns[name])
        if column.dtype.kind not in "iuf" or column.ndim != 1:
            raise InputError(
                f"{path}: {name} holds {column.dtype} {column.shape}; it must be a list of numbers"
            )
        found[name] = column.astype(np.float64)
        if not np.isfinite(found[name]).all():
            at = int(np.argmin(np.isfinite(found[name])))
            raise InputError(f"{path}: {name}[{at}] = {found[name][at]}; it must be a number")
    if not len(found[only]):
        raise InputError(f"{path} holds no query; name a file with at least one")
    if len({len(c) for c in found.values()}) > 1:
        raise InputError(f"{path}: its columns differ in length; write the file again")
    return found


def _csv(path: Path, names: Sequence[str], only: str) -> dict[str, Array]:
    with path.open(newline="", encoding="utf-8", errors="replace") as text:
        rows = [row for row in csv.reader(line for line in text if not line.startswith("#")) if row]
    if not rows:
        return {only: np.zeros(0)}
    header = [cell.strip() for cell in rows[0]]
    if any(name in header for name in names):
        body, offset = rows[1:], 2
    else:
        header, body, offset = ([only] if len(header) == 1 else list(names)), rows, 1
    columns: dict[str, list[float]] = {name: [] for name in header if name in names}
    for number, row in enumerate(body, offset):
        for name, cell in zip(header, row, strict=False):
            if name not in columns:
                continue
            try:
                columns[name].append(float(cell))
            except ValueError:
                raise InputError(
                    f"{path}, row {number}: {name} = {cell!r} is no number; the first row may hold the "
                    f"columns' names, {', '.join(names)}"
                ) from None
    return {name: np.array(values) for name, values in columns.items()}


def _parquet(path: Path, names: Sequence[str], only: str) -> dict[str, Array]:
    return read_numbers(path, names)


def _json_lines(path: Path, names: Sequence[str], only: str) -> dict[str, Array]:
    columns: dict[str, list[float]] = {name: [] for name in names}
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row: Any = json.loads(line)
            except ValueError as error:
                raise InputError(
                    f"{path}, line {number} is no JSON ({error}); write the file again"
                ) from None
            if number == 1 and isinstance(row, dict) and "format" in row:
                continue  # a trace's description
            if not isinstance(row, dict):
                raise InputError(f"{path}, line {number} is no JSON object; each line holds one query")
            for name in names:
                value = row.get(name)
                if isinstance(value, (int, float)) and not isinstance(value, bool):
                    columns[name].append(value)
                elif value is not None or name == only:
                    raise InputError(f"{path}, line {number}: {name} = {value!r}; it must be a number")
    return {
        name: np.array(values, dtype=np.float64) for name, values in columns.items() if values or name == only
    }


def _arrays(path: Path, names: Sequence[str], only: str) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files if name in names}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is no readable .npz file ({error}); write the file again") from None


def _array(path: Path, names: Sequence[str], only: str) -> dict[str, Array]:
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} is no readable .npy file ({error}); write the file again") from None
    if found.ndim == 1:
        return {only: found}
    if found.ndim == 2 and found.shape[1] == len(names):
        return {name: found[:, at] for at, name in enumerate(names)}
    raise InputError(
        f"{path} has the shape {found.shape}; it must be (N,), or (N, {len(names)}): {', '.join(names)}"
    )


_READERS: dict[str, Callable[[Path, Sequence[str], str], dict[str, Array]]] = {
    ".csv": _csv,
    ".parquet": _parquet,
    ".jsonl": _json_lines,
    ".npz": _arrays,
    ".npy": _array,
}
