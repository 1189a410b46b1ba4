"""Lookups that drift from day to day: of every table, some rows change places with others.

On each day after the first, a share of a table's rows, drawn from (seed, table, day), is exchanged pair by
pair: row i takes the lookups of row (c - i) mod n and the other way about. Days add up, so that day 5 is as
far from day 4 as day 1 from day 0. Tables are looked up more or less often, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recsys_opt.errors import InputError

_GOLDEN = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class Drift:
    """How far a day is from day 0, and which day it is."""

    day: int = 0
    share: float = 0.1
    """Of a table's rows, those that change places in a day, about; and how much tables are looked up more or
    less often: the standard deviation of the logarithm."""

    def __post_init__(self) -> None:
        if not 0 <= self.day <= 10_000:
            raise InputError(f"day = {self.day}; it must be between 0 and 10000")
        if not (math.isfinite(self.share) and 0 <= self.share <= 1):
            raise InputError(f"drift = {self.share}; it must be between 0 and 1")

    def rows(self, ids: NDArray[np.int64], num_embeddings: int, seed: int, table: int) -> NDArray[np.int64]:
        """The rows that are looked up on this day where day 0 looks up `ids`."""
        n = np.uint64(num_embeddings)
        found = ids.astype(np.uint64)
        for day in range(1, self.day + 1):
            key = _mixed(np.array([seed, table, day], dtype=np.uint64)).sum()
            c = _mixed(key.reshape(1))[0] % n
            partner = (c + n - found) % n
            lot = _mixed(np.minimum(found, partner) + key)
            moves = (lot >> np.uint64(11)).astype(np.float64) * 2.0**-53 < self.share
            found = np.where(moves, partner, found)
        return found.astype(np.int64)

    def lookups(self, seed: int, tables: int) -> NDArray[np.float64]:
        """[tables] how often each is looked up, to day 0."""
        factor = np.ones(tables)
        for day in range(1, self.day + 1):
            factor *= np.exp(self.share * np.random.default_rng([seed, tables, day]).standard_normal(tables))
        return factor


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64 of each."""
    z = values + np.uint64(_GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
