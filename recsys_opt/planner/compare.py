"""How two plans of the same tables differ: the rows that change their place, and the bytes that move."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from recsys_opt.errors import InputError
from recsys_opt.plan import Plan, TablePlan
from recsys_opt.planner.overlap import Orders, Rankings, overlap


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


def table_move(
    before: TablePlan, after: TablePlan, row_bytes: int, rankings: Rankings | None = None
) -> TableMove:
    """What moves between two plans of one table.

    row_bytes  of a whole row, optimizer state included
    rankings   where both do not rank its rows alike
    """
    common = overlap(before, after, rankings)
    dim = before.embedding_dim
    across = tiers = 0.0
    moved = np.zeros(common.rows.shape, dtype=bool)
    for first, last in common.columns:
        share = (last - first) / dim * row_bytes
        (old_piece, old_fast), (new_piece, new_fast) = (common.homes(p, first) for p in (before, after))
        if after.replicated:
            # Rows that a device has not held come to it; those that it drops need not move.
            new_devices = set(after.devices) - (set(before.devices) if before.replicated else set())
            came = len(new_devices) - (0 if before.replicated else 1)
            across += share * before.num_embeddings * came
            moved[:] |= came > 0
            continue
        new_device = np.array(after.devices)[new_piece]
        if before.replicated:
            other = np.broadcast_to(~np.isin(new_device, before.devices), moved.shape)
        else:
            other = np.array(before.devices)[old_piece][:, None] != new_device
        tier = ~other & (old_fast[:, None] != new_fast)
        across += share * float(common.rows[other].sum())
        tiers += share * float(common.rows[tier].sum())
        moved |= other | tier
    return TableMove(
        before.name, before, after, round(across), round(tiers), round(float(common.rows[moved].sum()))
    )


def compare_plans(
    before: Plan, after: Plan, row_bytes: Mapping[str, int], orders: Orders | None = None
) -> list[TableMove]:
    """Of every table; both plans must be of the same tables.

    orders  the tables' ranks in both plans; None: rows whose rank has changed are not counted
    """
    after_of = same_tables(before, after)
    return [
        table_move(t, after_of[t.name], row_bytes[t.name], None if orders is None else orders(t.name))
        for t in before.tables
    ]


def same_tables(before: Plan, after: Plan) -> dict[str, TablePlan]:
    """The tables of the second plan by name; refuses plans of different tables."""
    names, others = {t.name for t in before.tables}, {t.name for t in after.tables}
    if names != others:
        name = sorted(names ^ others)[0]
        where = "first" if name in names else "second"
        raise InputError(f"table {name} is in the {where} plan alone; only plans of the same tables compare")
    return {t.name: t for t in after.tables}
