"""How often a table's rows are looked up, and how much the label depends on which row it is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_opt.errors import InputError

DEFAULT_HALF_KNOWN = 16.0
"""Lookups after which half of an id's effect is known, where no labels say it (Criteo's large columns: 15 to
30)."""


@dataclass(frozen=True, eq=False)
class TableAccess:
    """The lookups of one table as a histogram over its ids, most often looked up first."""

    name: str
    counts: NDArray[np.int64]  # [K] lookups of an id, strictly descending
    ids: NDArray[np.int64]  # [K] how many ids have as many
    effect: float = 1.0
    """Variance of the label's mean between ids, over the label's variance: what knowing the id explains.
    1 where no labels were counted."""
    half_known: float = DEFAULT_HALF_KNOWN
    """Lookups after which half of an id's effect can be told from noise: the label's variance within an id
    over the variance between ids."""

    @classmethod
    def from_counts(cls, name: str, counts: NDArray[Any], clicks: NDArray[Any] | None = None) -> TableAccess:
        """From the lookups of each id and, if known, how many of them had the label 1.

        counts  [ids] 0 where an id was never looked up
        clicks  [ids]
        """
        seen = np.flatnonzero(counts)
        n = np.asarray(counts)[seen].astype(np.int64)
        if clicks is None:
            return cls(name, *_histogram(n))
        c = np.asarray(clicks)[seen].astype(np.int64)
        if len(n) and (c.min() < 0 or (c > n).any()):
            raise InputError(
                f"table {name}: an id has more lookups with label 1 than lookups, or fewer than 0"
            )
        effect, half_known = _label_effect(n, c)
        return cls(name, *_histogram(n), effect, half_known)

    @property
    def lookups(self) -> int:
        """Of all ids."""
        return int((self.counts * self.ids).sum())

    @property
    def distinct(self) -> int:
        """Ids that were looked up at least once."""
        return int(self.ids.sum())

    def value(self) -> NDArray[np.float64]:
        """[K] what a row of its own is worth to an id: share of lookups x effect x the part that is learned.

        Of an id with n lookups, n / (n + half_known) of the effect is learned (the shrinkage of empirical
        Bayes): an id seen once has little to lose.
        """
        if not np.isfinite(self.half_known) or not self.lookups:
            return np.zeros(len(self.counts))
        n = self.counts.astype(np.float64)
        return n / self.lookups * self.effect * n / (n + self.half_known)

    @property
    def total_value(self) -> float:
        """Sum over all ids of `value`."""
        return float((self.value() * self.ids).sum())

    def value_lost(self, rows: float) -> float:
        """The value given up where room for `rows` rows is shared: of the i-th id, i / (i + rows).

        rows  larger than 0
        """
        last = np.cumsum(self.ids).astype(np.float64)
        first = last - self.ids
        # The integral of i / (i + rows) over a histogram's bar, which holds ids first .. last.
        lost = self.ids - rows * np.log1p((last - first) / (first + rows))
        return float((self.value() * lost).sum())


def _histogram(counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    values, ids = np.unique(counts, return_counts=True)
    return values[::-1].copy(), ids[::-1].astype(np.int64)


def _label_effect(n: NDArray[np.int64], clicks: NDArray[np.int64]) -> tuple[float, float]:
    """(variance between ids / variance of the label, variance within / variance between).

    By moments (DerSimonian & Laird 1986): the weighted sum of squares between ids, less what chance alone
    gives; plus one standard error, so that few rows do not write a column off.
    """
    lookups = float(n.sum())
    mean = float(clicks.sum()) / lookups if lookups else 0.0
    within = mean * (1.0 - mean)
    room = lookups - float((n.astype(np.float64) ** 2).sum()) / lookups if lookups else 0.0
    if within <= 0 or room <= 0:
        return 0.0, float("inf")
    excess = float((n * (clicks / n - mean) ** 2).sum()) - (len(n) - 1) * within
    between = (max(excess, 0.0) + within * math.sqrt(2.0 * (len(n) - 1))) / room
    return between / within, within / between
