"""Columns of numbers in a Parquet file, read with pyarrow."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from recsys_opt.errors import InputError


def read_numbers(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The columns of these names that the file has; they must hold numbers, none of them null."""
    if importlib.util.find_spec("pyarrow") is None:
        raise InputError(f"{path} needs pyarrow, which is not installed: pip install 'recsys-opt[parquet]'")
    arrow: Any = importlib.import_module("pyarrow")
    parquet: Any = importlib.import_module("pyarrow.parquet")
    try:
        have = parquet.read_schema(path).names
        table = parquet.read_table(path, columns=[n for n in names if n in have])
    except (arrow.ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be read: {error}; write the file again") from None
    columns = {}
    for name in table.column_names:
        column = table.column(name)
        if column.null_count or not (
            arrow.types.is_integer(column.type) or arrow.types.is_floating(column.type)
        ):
            raise InputError(
                f"{path}: column {name} holds {column.type} with {column.null_count} nulls; "
                "it must hold numbers alone"
            )
        columns[name] = column.to_numpy()
    return columns
