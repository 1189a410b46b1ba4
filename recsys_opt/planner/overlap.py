"""What two plans of one table have in common: how many rows, and bytes, each pair of their pieces shares.

A plan's place for a row depends on the row's rank by two numbers alone: its stripe, and how many of the
stripe's thresholds (one for each column shard) it is behind. Rows of one such class have one place in all
columns; two plans are compared by counting the rows of each pair of classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_opt.errors import InputError
from recsys_opt.plan import TablePlan
from recsys_opt.ranks import rank_of

Orders = Callable[[str], tuple[NDArray[Any], NDArray[Any]] | None]
"""Table -> the row at each rank before and after; None where both plans rank its rows alike."""
_CHUNK = 1 << 20


@dataclass(frozen=True, eq=False)
class Overlap:
    """Rows by their classes in two plans of a table, and the columns between cuts."""

    before: TablePlan
    after: TablePlan
    rows: NDArray[np.float64]
    """[classes before, classes after]"""
    columns: tuple[tuple[int, int], ...]
    """(first, end) of ranges that neither plan cuts."""

    def homes(self, plan: TablePlan, column: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """(piece, whether fast) of each class of one of the plans, in a column."""
        if plan.replicated:
            return np.zeros(2, dtype=np.int64), np.ones(2, dtype=np.bool_)
        shard = column * plan.column_shards // plan.embedding_dim
        stripe, behind = np.divmod(
            np.arange(plan.row_shards * (plan.column_shards + 1)), plan.column_shards + 1
        )
        return shard * plan.row_shards + stripe, _positions(plan)[shard, stripe] >= behind

    def kept(self, row_bytes: float) -> NDArray[np.float64]:
        """[pieces after, pieces before] bytes that both have.

        row_bytes  of a whole row, optimizer state included; a column has its part of them
        """
        kept = np.zeros((len(self.after.devices), len(self.before.devices)))
        if self.before.replicated or self.after.replicated:
            # A replica has all that any piece has.
            pieces = self.after.pieces() if self.before.replicated else self.before.pieces()
            sizes = np.array([p.rows * p.width / self.after.embedding_dim * row_bytes for p in pieces])
            kept += sizes[:, None] if self.before.replicated else sizes[None]
            return kept
        stripes = self.rows.reshape(
            self.before.row_shards, self.before.column_shards + 1, self.after.row_shards, -1
        ).sum(axis=(1, 3))
        for first, end in self.columns:
            shards = [
                first * p.column_shards // p.embedding_dim * p.row_shards for p in (self.after, self.before)
            ]
            kept[
                shards[0] : shards[0] + self.after.row_shards, shards[1] : shards[1] + self.before.row_shards
            ] += stripes.T * ((end - first) / self.after.embedding_dim * row_bytes)
        return kept


def overlap(
    before: TablePlan, after: TablePlan, orders: tuple[NDArray[Any], NDArray[Any]] | None = None
) -> Overlap:
    """Of two plans of one table.

    orders  the row at each rank before and after, where they differ
    """
    for what in ("num_embeddings", "embedding_dim"):
        if getattr(before, what) != getattr(after, what):
            raise InputError(
                f"table {before.name} has {what} = {getattr(before, what)} in one plan and "
                f"{getattr(after, what)} in the other; only plans of the same tables can be compared"
            )
    cuts = sorted({c for p in (*before.pieces(), *after.pieces()) for c in p.columns})
    classes = [2 if p.replicated else p.row_shards * (p.column_shards + 1) for p in (before, after)]
    counts = np.zeros(classes[0] * classes[1])
    if orders is None:
        ranks, rows = _like_ranks(before, after)
        both = _class_of(before, ranks) * classes[1] + _class_of(after, ranks)
        counts += np.bincount(both, weights=rows, minlength=len(counts))
    else:
        old, new = orders
        rank = rank_of(new)
        for start in range(0, len(old), _CHUNK):
            ids = old[start : start + _CHUNK]
            here = np.arange(start, start + len(ids))
            both = _class_of(before, here) * classes[1] + _class_of(after, rank[ids])
            counts += np.bincount(both, minlength=len(counts))
    return Overlap(before, after, counts.reshape(classes), tuple(itertools.pairwise(cuts)))


def _positions(plan: TablePlan) -> NDArray[np.int64]:
    """[column shards, stripes] where each column shard's threshold is among those of its stripe."""
    hot = np.array(plan.hot_rows, dtype=np.int64).reshape(plan.column_shards, plan.row_shards)
    return hot.argsort(axis=0, kind="stable").argsort(axis=0)


def _class_of(plan: TablePlan, ranks: NDArray[np.int64]) -> NDArray[np.int64]:
    if plan.replicated:
        return np.zeros(len(ranks), dtype=np.int64)
    hot = np.array(plan.hot_rows, dtype=np.int64).reshape(plan.column_shards, plan.row_shards)
    behind = np.zeros(len(ranks), dtype=np.int64)
    if plan.row_shards == 1:
        for threshold in hot[:, 0]:
            behind += ranks >= threshold
        return behind
    index, stripe = np.divmod(ranks, plan.row_shards)
    for shard in hot:
        behind += index >= shard[stripe]
    found: NDArray[np.int64] = stripe * (plan.column_shards + 1) + behind
    return found


def _like_ranks(before: TablePlan, after: TablePlan) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(a rank, the rows that it stands for): ranks that both plans, counting alike, place as that one.

    Between two neighbouring thresholds a place depends on the rank's remainders by the numbers of stripes.
    """
    n, period = before.num_embeddings, int(np.lcm(before.row_shards, after.row_shards))
    edges = {0, n}
    for plan in (before, after):
        for piece in plan.pieces():
            s, k = piece.stripe
            edges.add(min(s + piece.hot_rows * k, n))
    ranks, rows = [], []
    for low, high in itertools.pairwise(sorted(edges)):
        members = np.arange(low, min(low + period, high))
        ranks.append(members)
        rows.append((high - members + period - 1) // period)
    return np.concatenate(ranks), np.concatenate(rows).astype(np.float64)
