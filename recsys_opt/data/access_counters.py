"""Counting ids exactly, and the checks that ids must pass before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_opt import _access
from recsys_opt.errors import InputError

Place = Callable[[int, int], str]
"""(index of the table, position among its ids) -> where that is, in words."""


def as_ids(array: NDArray[Any], where: Callable[[int], str]) -> NDArray[Any]:
    """Ids as the counters take them: int32 and int64 as they are, other integers converted.

    where  names the place of a position, for the message of the error
    """
    if array.ndim != 1:
        raise InputError(f"{where(0)}: the ids have the shape {array.shape}; they must have one dimension")
    if array.dtype.kind not in "iu":
        at, nan = 0, ""
        if array.dtype.kind == "f" and np.isnan(array).any():
            at, nan = int(np.isnan(array).argmax()), " (not a number: a missing id?)"
        raise InputError(
            f"{where(at)}: the ids have the type {array.dtype}{nan}; they must be integers: give missing ids "
            "a row of their own and store int32 or int64"
        )
    if array.dtype in (np.dtype(np.int32), np.dtype(np.int64)):
        return array
    if array.dtype == np.dtype(np.uint64) and array.size and int(array.max()) > np.iinfo(np.int64).max:
        at = int((array > np.iinfo(np.int64).max).argmax())
        raise InputError(
            f"{where(at)}: id {int(array[at])} is above 2^63 - 1; hash or number the values to rows of the "
            "table first"
        )
    return array.astype(np.int64)


def count(
    counters: Sequence[_access.Counters],
    ids: Sequence[NDArray[Any]],
    place: Place,
    *,
    threads: int = 1,
) -> None:
    """Counts `ids[t]` into `counters[t]`, without a copy of columns of int32 and int64.

    After an error the counters are of no use: some of the ids are counted.
    """
    checked = [as_ids(array, partial(place, t)) for t, array in enumerate(ids)]
    bad = _access.count(counters, checked, threads)
    if bad is not None:
        table, position, found = bad
        raise refuse(place(table, position), found, counters[table].rows)


def refuse(where: str, found: int, rows: int) -> InputError:
    """The error of an id outside its table."""
    return InputError(
        f"{where}: id {found} is outside the table's {rows} rows (0 to {rows - 1}); correct the data, or "
        "give the table's true size"
    )


def totals(counters: _access.Counters) -> NDArray[Any]:
    """Lookups of each row, [rows]: the counters themselves (u32) where they hold all, else u64."""
    carried = counters.carried
    if not len(carried):
        return counters.low
    found = counters.low.astype(np.uint64)
    found[carried[:, 0]] += carried[:, 1]
    return found
