"""`recsys-opt plan diff`: what moves between two plans, and what it gains."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.plan_text import clipped, place
from recsys_opt.cli.progress import short_count
from recsys_opt.cli.values import at_least
from recsys_opt.data.plan_ranking import plan_ranking, plan_statistics
from recsys_opt.errors import InputError
from recsys_opt.plan import Plan
from recsys_opt.planner.compare import TableMove, compare_plans
from recsys_opt.planner.inputs import orders_between, settings_of
from recsys_opt.planner.overlap import Orders
from recsys_opt.planner.renumber import renumbered
from recsys_opt.report.page import megabytes, milliseconds

EXAMPLE = """recsys-opt plan diff yesterday.json today.json
  recsys-opt plan diff yesterday.json today.json --renumbered today_like_yesterday.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("before", type=Path, metavar="A", help="plan.json")
    parser.add_argument("after", type=Path, metavar="B", help="another plan of the same tables")
    parser.add_argument(
        "--renumbered",
        type=Path,
        metavar="FILE",
        help="write B with its devices, and nodes, renumbered so that the fewest bytes move",
    )
    parser.add_argument(
        "--top", type=at_least(1), default=20, metavar="N", help="tables to print (default 20)"
    )


def run(args: argparse.Namespace) -> Outcome:
    """Compares."""
    before, after = Plan.load(args.before), Plan.load(args.after)
    settings = settings_of(before)
    sizes = {t.name: settings.row_bytes(t.embedding_dim) for t in before.tables}
    orders, note = _orders(before, after)
    moves = compare_plans(before, after, sizes, orders)
    other = renumbered(before, after, sizes, orders)
    spared = moves if other == after else compare_plans(before, other, sizes, orders)
    (across, tiers), (least, _) = _amounts(moves), _amounts(spared)
    lines = [*_summary(before, after, moves)]
    if least < across:
        lines.append(
            clipped(
                f"like devices renumbered, {megabytes(least)} would go to other devices"
                + (
                    f": {args.renumbered} is that plan"
                    if args.renumbered
                    else " (--renumbered FILE writes that plan)"
                )
            )
        )
    elif across:
        lines.append("no other numbering of like devices would move less")
    lines += table_moves(moves, args.top)
    if note:
        lines.append(clipped(note))
    if args.renumbered is not None:
        other.save(args.renumbered)
    result: dict[str, Any] = {
        "seconds": [before.seconds, after.seconds],
        "bound_seconds": [before.bound_seconds, after.bound_seconds],
        "rows": sum(m.rows for m in moves),
        "between_devices_bytes": across,
        "between_devices_bytes_renumbered": least,
        "between_tiers_bytes": tiers,
        "same_statistics": before.inputs.get("statistics") == after.inputs.get("statistics"),
        "ranks_compared": not note,
        "renumbered": None if args.renumbered is None else str(args.renumbered),
        "tables": [
            {
                "name": m.name,
                "rows": m.rows,
                "between_devices_bytes": m.between_devices_bytes,
                "between_tiers_bytes": m.between_tiers_bytes,
                "before": place(m.before),
                "after": place(m.after),
            }
            for m in moves
            if m.changed
        ],
    }
    return Outcome("\n".join(lines), result)


def _orders(before: Plan, after: Plan) -> tuple[Orders | None, str]:
    """The tables' ranks in both plans, or None and why rows whose rank has changed are not counted."""
    if before.inputs.get("statistics") == after.inputs.get("statistics") and not any(
        t.striped_by for plan in (before, after) for t in plan.tables
    ):
        return None, ""
    try:
        ranking = [plan_ranking(plan, plan_statistics(plan)) for plan in (before, after)]
        return orders_between(before, after, *ranking), ""
    except InputError as error:
        return None, f"rows whose rank has changed are not counted: {error}"


def _amounts(moves: Sequence[TableMove]) -> tuple[int, int]:
    """Bytes between devices, bytes between tiers."""
    return sum(m.between_devices_bytes for m in moves), sum(m.between_tiers_bytes for m in moves)


def _summary(before: Plan, after: Plan, moves: Sequence[TableMove]) -> list[str]:
    faster = before.seconds / after.seconds if after.seconds else 1.0
    return [
        clipped(
            f"slowest device {milliseconds(before.seconds)} -> {milliseconds(after.seconds)} "
            f"({faster:.3f} x as fast); {before.num_devices} -> {after.num_devices} devices"
        ),
        clipped(amounts(moves)),
    ]


def amounts(moves: Sequence[TableMove]) -> str:
    """How many tables and rows change their place, and the bytes that move."""
    across, tiers = _amounts(moves)
    return (
        f"{sum(m.changed for m in moves)} of {len(moves)} tables change, "
        f"{short_count(sum(m.rows for m in moves))} rows: {megabytes(across)} to other devices, "
        f"{megabytes(tiers)} between the tiers of a device"
    )


def table_moves(moves: Sequence[TableMove], top: int) -> list[str]:
    """A line for each of the `top` tables of which most moves, under a heading."""
    changed = sorted(
        (m for m in moves if m.changed), key=lambda m: -m.between_devices_bytes - m.between_tiers_bytes
    )
    if not changed:
        return []
    lines = ["", f"{'table':<20}{'rows':>8}{'to devices':>12}{'between tiers':>15}  place"]
    for m in changed[:top]:
        where, now = place(m.before), place(m.after)
        lines.append(
            clipped(
                f"{clipped(m.name, 20):<20}{short_count(m.rows):>8}{megabytes(m.between_devices_bytes):>12}"
                f"{megabytes(m.between_tiers_bytes):>15}  {where if where == now else f'{where} -> {now}'}"
            )
        )
    if len(changed) > top:
        lines.append(f"... and {len(changed) - top:,} more (--top {len(changed)} shows all)")
    return lines
