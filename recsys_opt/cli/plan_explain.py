"""`recsys-opt plan explain`: one table's place, its threshold, and what every other way to cut it costs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.plan_text import clipped, place
from recsys_opt.cli.progress import short_count
from recsys_opt.plan import Plan
from recsys_opt.planner.cost import CostModel, accesses
from recsys_opt.planner.inputs import PlanInputs
from recsys_opt.planner.options import make_options
from recsys_opt.planner.problem import PlannedTable
from recsys_opt.report.page import megabytes, milliseconds

EXAMPLE = "recsys-opt plan explain plan.json C3"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("plan", type=Path, metavar="PLAN", help="plan.json")
    parser.add_argument("table", metavar="TABLE", help="the table's name")
    parser.add_argument("--stats", type=Path, metavar="NPZ", help="the plan's statistics, if they have moved")


def run(args: argparse.Namespace) -> Outcome:
    """Explains."""
    plan = Plan.load(args.plan)
    placed = plan.table(args.table)
    inputs = PlanInputs.of(plan, args.stats)
    table = next(t for t in inputs.tables if t.config.name == placed.name)
    model = CostModel(inputs.hardware, inputs.settings)
    lookups = table.lookups_per_sample * plan.batch_size
    fast = inputs.hardware.fast.name
    size = placed.num_embeddings * inputs.settings.row_bytes(placed.embedding_dim)
    lines = [
        clipped(
            f"{placed.name}: {placed.num_embeddings:,} rows of {placed.embedding_dim} columns, "
            f"{megabytes(size)}; {short_count(lookups)} lookups an iteration"
        ),
        clipped(f"{place(placed)}; {milliseconds(model.table_seconds(placed, table))} over all its devices"),
        "",
        clipped(
            f"{'device':>6}{'columns':>10}{'stripe':>9}{'rows':>9}{'in ' + fast:>10}"
            f"{'lookups there':>15}{'threshold':>26}"
        ),
    ]
    pieces = []
    rates = table.share / table.rows * lookups
    dealt = bool(placed.striped_by)
    for piece in placed.pieces():
        (hot, _), (cold, _) = accesses(table, lookups, piece.stripe, piece.hot_rows, dealt=dealt)
        ends = np.cumsum(table.stripe_rows(piece.stripe, dealt=dealt))
        inside = int(np.searchsorted(ends, piece.hot_rows, side="right"))
        rate = float(rates[min(inside, len(rates) - 1)])
        threshold = "all" if not piece.cold_rows else f"{rate:.3g} lookups / iteration"
        share = hot / (hot + cold) if hot + cold else 1.0
        pieces.append(
            {
                "device": piece.device,
                "columns": list(piece.columns),
                "stripe": list(piece.stripe),
                "rows": piece.rows,
                "hot_rows": piece.hot_rows,
                "hot_share": share,
                "threshold_lookups": None if not piece.cold_rows else rate,
            }
        )
        if len(pieces) <= 16:
            lines.append(
                clipped(
                    f"{piece.device:>6}{f'{piece.columns[0]}-{piece.columns[1] - 1}':>10}"
                    f"{f'{piece.stripe[0]} of {piece.stripe[1]}':>9}{short_count(piece.rows):>9}"
                    f"{short_count(piece.hot_rows):>10}{share:>15.2%}{threshold:>26}"
                )
            )
    if len(pieces) > 16:
        lines.append(f"... and {len(pieces) - 16} pieces alike")
    options = _other_ways(model, table, placed.hot_row_count)
    lines += [
        "",
        f"ways to cut it, with as much {fast} as it has now:",
        f"{'':<18}{'pieces':>7}{'time of a piece':>17}{'over all':>12}{'of which links':>16}",
    ]
    for option in options:
        lines.append(
            f"{option['sharding']:<18}{option['pieces']:>7}{milliseconds(option['piece_seconds']):>17}"
            f"{milliseconds(option['seconds']):>12}{milliseconds(option['communication_seconds']):>16}"
        )
    return Outcome("\n".join(lines), {"table": placed.name, "pieces": pieces, "options": options})


def _other_ways(model: CostModel, table: PlannedTable, hot_rows: int) -> list[dict[str, Any]]:
    """Every option of the table with so many of its rows in the fast tier."""
    options = make_options(model, [table])
    a = options.arrays
    lookups = table.lookups_per_sample * model.settings.batch_size
    rows = []
    for at in range(len(options.cut)):
        cut = options.cuts[options.cut[at]]
        (hot, hot_touched), (cold, cold_touched) = accesses(table, lookups, (0, 1), hot_rows)
        work = (
            hot * a["read_fast"][at]
            + cold * a["read_slow"][at]
            + hot_touched * a["update_fast"][at]
            + cold_touched * a["update_slow"][at]
        ) / a["parts"][at]
        piece = float(work + a["communication"][at])
        rows.append(
            {
                "sharding": cut.sharding,
                "pieces": int(a["pieces"][at]),
                "piece_seconds": piece,
                "seconds": piece * int(a["pieces"][at]),
                "communication_seconds": float(a["communication"][at]) * int(a["pieces"][at]),
            }
        )
    return rows
