"""What two plans of one table have in common: how many rows, and bytes, each pair of their pieces shares.

A plan's place for a row depends on the row's rank by two numbers alone: its stripe, and how many of the
stripe's thresholds (one for each column shard) it is behind. Rows of one such class have one place in all
columns; two plans are compared by counting the rows of each pair of classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_opt.errors import InputError
from recsys_opt.plan import TablePlan
from recsys_opt.ranks import rank_of, rank_order

Rankings = tuple[NDArray[Any], NDArray[Any]]
"""A table's rows before and after, hottest first; those left out follow in ascending order."""
Orders = Callable[[str], Rankings | None]
"""Of each table; None where both plans rank its rows alike."""
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
        cuts = [CutShape.of(plan) for plan in (self.before, self.after)]
        # Classes of each stripe; a replica, whole and fast, has two as well.
        classes = [c.row_shards * (c.column_shards + 1) for c in cuts]
        stripes = self.rows.reshape(
            cuts[0].row_shards, classes[0] // cuts[0].row_shards, cuts[1].row_shards, -1
        ).sum(axis=(1, 3))
        return kept_bytes(cuts[0], cuts[1], stripes, row_bytes)


@dataclass(frozen=True)
class CutShape:
    """Into how many pieces a table is cut."""

    column_shards: int
    row_shards: int
    copies: int = 0
    """Of a replicated table, which is not cut."""

    @classmethod
    def of(cls, plan: TablePlan) -> CutShape:
        """Of a table's place."""
        return cls(plan.column_shards, plan.row_shards, len(plan.devices) if plan.replicated else 0)

    @property
    def pieces(self) -> int:
        """Or replicas."""
        return self.copies or self.column_shards * self.row_shards


def kept_bytes(
    before: CutShape, after: CutShape, rows: NDArray[np.float64], row_bytes: float
) -> NDArray[np.float64]:
    """[pieces after, pieces before] bytes that both have.

    rows  [stripes before, stripes after] that both stripes have
    row_bytes  of a whole row; a column has its part of them
    """
    edges = [np.arange(c.column_shards + 1) / c.column_shards for c in (after, before)]
    columns = np.minimum(edges[0][1:, None], edges[1][1:]) - np.maximum(edges[0][:-1, None], edges[1][:-1])
    kept: NDArray[np.float64] = np.kron(np.maximum(columns, 0.0), rows.T) * row_bytes
    if before.copies or after.copies:  # a replica has all that any piece has
        kept = np.tile(kept, (after.copies or 1, before.copies or 1))
    return kept


@lru_cache(maxsize=65536)
def common_rows(rows: int, before: int, after: int) -> NDArray[np.float64]:
    """[before, after] of a table's rows, those in each stripe of `before` stripes and of `after`.

    Ranks are the same in both.
    """
    period = int(np.lcm(before, after))
    ranks = np.arange(min(period, rows))
    found = np.zeros((before, after))
    np.add.at(found, (ranks % before, ranks % after), (rows - ranks + period - 1) // period)
    found.setflags(write=False)
    return found


def overlap(before: TablePlan, after: TablePlan, rankings: Rankings | None = None) -> Overlap:
    """Of two plans of one table.

    rankings  where they differ
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
    if rankings is None:
        ranks, rows = _like_ranks(before, after)
        both = _class_of(before, ranks) * classes[1] + _class_of(after, ranks)
        counts += np.bincount(both, weights=rows, minlength=len(counts))
    elif before.row_shards == after.row_shards == 1:
        counts += _whole_tables(before, after, rankings, classes[1])
    else:
        old, new = (rank_order(ranking, before.num_embeddings) for ranking in rankings)
        rank = rank_of(new)
        for start in range(0, len(old), _CHUNK):
            ids = old[start : start + _CHUNK]
            here = np.arange(start, start + len(ids))
            both = _class_of(before, here) * classes[1] + _class_of(after, rank[ids])
            counts += np.bincount(both, minlength=len(counts))
    return Overlap(before, after, counts.reshape(classes), tuple(itertools.pairwise(cuts)))


def _whole_tables(
    before: TablePlan, after: TablePlan, rankings: Rankings, classes_after: int
) -> NDArray[np.int64]:
    """Rows by both classes; only rows that either plan has in a fast tier are looked at."""
    n = before.num_embeddings
    edges = [sorted({min(h, n) for h in p.hot_rows} - {0, n}) for p in (before, after)]
    orders = [
        ranking if not edge or edge[-1] <= len(ranking) else rank_order(ranking, n)
        for ranking, edge in zip(rankings, edges, strict=True)
    ]
    bounds = [[0, *edge, n] for edge in edges]
    classes = [_class_of(p, np.array(b[:-1])) for p, b in zip((before, after), bounds, strict=True)]
    part = np.full(n, len(edges[0]), dtype=np.int16)
    for i, (low, high) in enumerate(itertools.pairwise(bounds[0][:-1])):
        part[orders[0][low:high]] = i
    left = np.diff(bounds[0]).astype(np.int64)
    counts = np.zeros((len(left), len(classes[1])), dtype=np.int64)
    for i, (low, high) in enumerate(itertools.pairwise(bounds[1][:-1])):
        counts[:, i] = np.bincount(part[orders[1][low:high]], minlength=len(left))
    counts[:, -1] = left - counts[:, :-1].sum(axis=1)
    both = classes[0][:, None] * classes_after + classes[1]
    size = (2 if before.replicated else before.column_shards + 1) * classes_after
    return np.bincount(both.ravel(), weights=counts.ravel(), minlength=size)


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
