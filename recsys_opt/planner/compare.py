"""How two plans of the same tables differ: the rows that change their place, and the bytes that move."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recsys_opt.errors import InputError
from recsys_opt.plan import Plan, TablePlan


@dataclass(frozen=True)
class TableMove:
    """What becomes of one table."""

    name: str
    before: TablePlan
    after: TablePlan
    between_devices_bytes: int
    """Of weights and optimizer state that go to another device."""
    between_tiers_bytes: int
    """That stay on their device and change the tier."""
    rows: int
    """That do either, in any of their columns."""

    @property
    def changed(self) -> bool:
        """Whether anything of it moves."""
        return self.rows > 0


def table_move(before: TablePlan, after: TablePlan, row_bytes: int) -> TableMove:
    """What moves between two plans of one table whose ranking has stayed as it was.

    row_bytes  of a whole row, optimizer state included
    """
    for what in ("num_embeddings", "embedding_dim"):
        if getattr(before, what) != getattr(after, what):
            raise InputError(
                f"table {before.name} has {what} = {getattr(before, what)} in one plan and "
                f"{getattr(after, what)} in the other; only plans of the same tables can be compared"
            )
    n, dim = before.num_embeddings, before.embedding_dim
    cuts = sorted({c for p in (*before.pieces(), *after.pieces()) for c in p.columns})
    across = tiers = 0.0
    ranks, rows_of = _classes(before, after, n)
    moved = np.zeros(len(ranks), dtype=bool)
    for first, last in itertools.pairwise(cuts):
        share = (last - first) / dim * row_bytes
        old, new = _homes(before, ranks, first), _homes(after, ranks, first)
        if before.replicated or after.replicated:
            # Rows that a device has not held come to it; those that it drops need not move.
            new_devices = set(after.devices) - (set(before.devices) if before.replicated else set())
            if after.replicated and not before.replicated:
                across += share * n * (len(new_devices) - 1)
                moved[:] = True
            elif after.replicated:
                across += share * n * len(new_devices)
                moved[:] |= bool(new_devices)
            else:
                missing = ~np.isin(new[0], before.devices)
                across += share * float(rows_of[missing].sum())
                cold = ~missing & (new[1] == 0)
                tiers += share * float(rows_of[cold].sum())
                moved |= missing | cold
            continue
        other = old[0] != new[0]
        tier = ~other & (old[1] != new[1])
        across += share * float(rows_of[other].sum())
        tiers += share * float(rows_of[tier].sum())
        moved |= other | tier
    return TableMove(
        before.name, before, after, round(across), round(tiers), round(float(rows_of[moved].sum()))
    )


def _classes(before: TablePlan, after: TablePlan, n: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(a rank of each class, its rows): ranks of one class have the same place in both plans.

    Between two neighbouring thresholds a place depends on the rank's remainders by the numbers of stripes.
    """
    period = int(np.lcm(before.row_shards, after.row_shards))
    edges = {0, n}
    for plan in (before, after):
        for piece in plan.pieces():
            s, k = piece.stripe
            edges.add(min(s + piece.hot_rows * k, n))
    starts = sorted(edges)
    ranks, rows = [], []
    for low, high in itertools.pairwise(starts):
        members = np.arange(low, min(low + period, high))
        ranks.append(members)
        rows.append((high - members + period - 1) // period)
    return np.concatenate(ranks), np.concatenate(rows).astype(np.float64)


def _homes(
    plan: TablePlan, ranks: NDArray[np.int64], column: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(device, 1 where fast) of each rank's part that has a column; of a replica, the first device."""
    device, fast = np.zeros(len(ranks), dtype=np.int64), np.ones(len(ranks), dtype=np.int64)
    if plan.replicated:
        device[:] = plan.devices[0]
        return device, fast
    for piece in plan.pieces():
        if not piece.columns[0] <= column < piece.columns[1]:
            continue
        s, k = piece.stripe
        mine = ranks % k == s
        device[mine] = piece.device
        fast[mine] = ranks[mine] // k < piece.hot_rows
    return device, fast


def compare_plans(before: Plan, after: Plan, row_bytes: dict[str, int]) -> list[TableMove]:
    """Of every table; both plans must be of the same tables."""
    names, others = {t.name for t in before.tables}, {t.name for t in after.tables}
    if names != others:
        name = sorted(names ^ others)[0]
        where = "first" if name in names else "second"
        raise InputError(f"table {name} is in the {where} plan alone; only plans of the same tables compare")
    after_of = {t.name: t for t in after.tables}
    return [table_move(t, after_of[t.name], row_bytes[t.name]) for t in before.tables]
