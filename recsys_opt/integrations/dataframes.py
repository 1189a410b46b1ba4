"""The work of `data prepare` done the plain way in pandas and in polars, for comparison.

Parse the text, rank each column's values, map them to ids, transform the integers. The arrays stay in memory;
nothing is written.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from recsys_opt.errors import InputError

PEERS = ("pandas", "polars")
_INTEGERS = [f"I{i}" for i in range(1, 14)]
_VALUES = [f"C{i}" for i in range(1, 27)]


def available() -> dict[str, bool]:
    """Which peers are installed."""
    return {name: importlib.util.find_spec(name) is not None for name in PEERS}


def prepare_with(peer: str, path: Path) -> int:
    """Prepares a plain Kaggle train file with a peer, every value kept; returns the number of rows."""
    if not available().get(peer):
        raise InputError(f"{peer} is not installed: pip install {peer}")
    return {"pandas": _pandas, "polars": _polars}[peer](path)


def _pandas(path: Path) -> int:
    pd: Any = importlib.import_module("pandas")
    types = {**dict.fromkeys(_INTEGERS, "float64"), **dict.fromkeys(_VALUES, "str"), "label": "int32"}
    frame = pd.read_csv(path, sep="\t", header=None, names=["label", *_INTEGERS, *_VALUES], dtype=types)
    dense = np.log1p(frame[_INTEGERS].fillna(0).clip(lower=0).to_numpy(np.float32))
    sparse = np.empty((len(frame), len(_VALUES)), np.int32)
    for i, name in enumerate(_VALUES):
        ranks = {value: r for r, value in enumerate(frame[name].value_counts().index, start=2)}
        sparse[:, i] = frame[name].map(ranks).fillna(0)
    return len(dense)


def _polars(path: Path) -> int:
    pl: Any = importlib.import_module("polars")
    types = {
        "label": pl.Int32,
        **dict.fromkeys(_INTEGERS, pl.Int64),
        **dict.fromkeys(_VALUES, pl.String),
    }
    frame = pl.read_csv(path, separator="\t", has_header=False, schema=types)
    dense = frame.select(
        pl.col(_INTEGERS).fill_null(0).clip(lower_bound=0).cast(pl.Float32).log1p()
    ).to_numpy()
    for name in _VALUES:
        ranks = frame[name].drop_nulls().value_counts(sort=True).with_row_index("id", offset=2)
        frame.select(name).join(ranks.select(name, "id"), on=name, how="left")["id"].fill_null(0).to_numpy()
    return len(dense)
