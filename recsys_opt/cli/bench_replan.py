"""`recsys-opt bench replan`: what plans that go on from yesterday's gain, by replay of later lookups."""

from __future__ import annotations

import argparse
from pathlib import Path

from recsys_opt.bench.record import write_record
from recsys_opt.bench.replan import measure
from recsys_opt.cli.arguments import add_record_argument
from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.plan_replay import batch_range
from recsys_opt.cli.progress import ConsoleProgress
from recsys_opt.planner.lookup_trace import open_trace
from recsys_opt.report.page import milliseconds

EXAMPLE = "recsys-opt bench replan day0.npz day1.npz day1/ --batches 8:"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("then", type=Path, metavar="THEN", help="stats.npz that the plan that runs is of")
    parser.add_argument("now", type=Path, metavar="NOW", help="later statistics of the same tables")
    parser.add_argument("trace", type=Path, metavar="TRACE", help="still later lookups: a trace folder")
    parser.add_argument(
        "--batches", type=batch_range, metavar="FIRST:LAST", help="of the trace, LAST left out (default: all)"
    )
    parser.add_argument(
        "--embedding-dim", type=int, default=64, metavar="D", help="of all tables (%(default)s)"
    )
    parser.add_argument(
        "--hardware",
        default="h100:nodes=2,devices=8",
        metavar="NAME",
        help="a preset or a file, as for `plan`; its fast tier's size is set below (%(default)s)",
    )
    parser.add_argument(
        "--hbm-share",
        type=float,
        nargs="+",
        default=[0.1, 0.2, 0.3, 0.5],
        metavar="S",
        help="of the model that all fast tiers hold together (%(default)s)",
    )
    parser.add_argument(
        "--effort", type=float, default=1.0, metavar="X", help="of the searches (%(default)s)"
    )
    add_record_argument(parser, "replan.json")


def run(args: argparse.Namespace) -> Outcome:
    """Measures, writes the record, prints a table."""
    trace = open_trace(args.trace, batch_size=1)
    if args.batches is not None:
        trace = trace.between(*args.batches)
    with ConsoleProgress() as progress:
        rows = measure(
            args.then,
            args.now,
            trace,
            embedding_dim=args.embedding_dim,
            hardware=args.hardware,
            hbm_shares=args.hbm_share,
            effort=args.effort,
            progress=progress,
        )
    write_record(args.record, "replan", rows, hardware=args.hardware, batch_size=trace.batch_size)
    lines = [
        f"{'HBM':>5}{'way':>16}{'may move':>10}{'moved':>9}{'tiers':>9}{'predicted':>11}{'replayed':>11}"
        f"{'saved':>9}{'gap':>9}"
    ]
    for r in rows:
        limit = "any" if r["limit_share"] is None else f"{r['limit_share']:.3g}"
        gap = "" if r["gap"] is None else f"{r['gap']:.2%}"
        lines.append(
            f"{r['hbm_share']:>5.0%}{r['way']:>16}{limit:>10}{r['moved_share']:>9.2%}{r['tiers_share']:>9.2%}"
            f"{milliseconds(r['predicted_seconds']):>11}{milliseconds(r['replayed_seconds']):>11}"
            f"{r['replayed_gain']:>9.2%}{gap:>9}"
        )
    return Outcome("\n".join([*lines, f"record  {args.record}"]), {"rows": rows})
