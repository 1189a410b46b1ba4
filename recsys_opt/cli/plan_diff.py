"""`recsys-opt plan diff`: what moves between two plans, and what it gains."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.plan_text import clipped, place
from recsys_opt.cli.progress import short_count
from recsys_opt.plan import Plan
from recsys_opt.planner.compare import TableMove, compare_plans
from recsys_opt.planner.inputs import settings_of
from recsys_opt.report.page import megabytes, milliseconds

EXAMPLE = "recsys-opt plan diff yesterday.json today.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("before", type=Path, metavar="A", help="plan.json")
    parser.add_argument("after", type=Path, metavar="B", help="another plan of the same tables")
    parser.add_argument("--top", type=int, default=20, metavar="N", help="tables to print (default 20)")


def run(args: argparse.Namespace) -> Outcome:
    """Compares."""
    return outcome(Plan.load(args.before), Plan.load(args.after), args.top)


def outcome(before: Plan, after: Plan, top: int) -> Outcome:
    """The comparison of two plans, as text and as JSON."""
    settings = settings_of(before)
    moves = compare_plans(before, after, {t.name: settings.row_bytes(t.embedding_dim) for t in before.tables})
    same_ranks = before.inputs.get("statistics") == after.inputs.get("statistics")
    lines = [*_summary(before, after, moves), *_tables(moves, top)]
    if not same_ranks:
        lines.append(
            clipped("the plans are of different statistics: rows whose rank has changed are not counted")
        )
    across, tiers = (sum(getattr(m, k) for m in moves) for k in _AMOUNTS)
    result: dict[str, Any] = {
        "seconds": [before.seconds, after.seconds],
        "bound_seconds": [before.bound_seconds, after.bound_seconds],
        "rows": sum(m.rows for m in moves),
        "between_devices_bytes": across,
        "between_tiers_bytes": tiers,
        "same_statistics": same_ranks,
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


_AMOUNTS = ("between_devices_bytes", "between_tiers_bytes")


def _summary(before: Plan, after: Plan, moves: Sequence[TableMove]) -> list[str]:
    changed = [m for m in moves if m.changed]
    across, tiers = (sum(getattr(m, k) for m in moves) for k in _AMOUNTS)
    faster = before.seconds / after.seconds if after.seconds else 1.0
    return [
        clipped(
            f"slowest device {milliseconds(before.seconds)} -> {milliseconds(after.seconds)} "
            f"({faster:.3f} x as fast); {before.num_devices} -> {after.num_devices} devices"
        ),
        clipped(
            f"{len(changed)} of {len(moves)} tables change, {short_count(sum(m.rows for m in moves))} rows: "
            f"{megabytes(across)} to other devices, {megabytes(tiers)} between the tiers of a device"
        ),
    ]


def _tables(moves: Sequence[TableMove], top: int) -> list[str]:
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
