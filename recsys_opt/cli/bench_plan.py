"""`recsys-opt bench plan`: gaps of plans to their certified bounds."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from recsys_opt.bench.plan import measure, summary
from recsys_opt.bench.record import write_record
from recsys_opt.cli.arguments import add_record_argument
from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.progress import ConsoleProgress

EXAMPLE = "recsys-opt bench plan --cases random criteo --count 200"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument(
        "--cases",
        nargs="+",
        default=["random", "criteo", "large"],
        metavar="SET",
        help="random: 26 to 2,000 tables on 2 to 128 devices, at least 6 tables a device, HBM for 5 to 60 %% "
        "of the model; criteo: Kaggle and Terabyte on 2 to 16; large: 1,000 and 5,000 tables on 128 (all)",
    )
    parser.add_argument("--count", type=int, default=200, metavar="N", help="random cases (%(default)s)")
    parser.add_argument("--effort", type=float, default=1.0, help="of the search (%(default)s)")
    parser.add_argument(
        "--torchrec-seconds",
        type=float,
        metavar="S",
        help="also run TorchRec's planner on every case, for so much CPU time at most (default: not)",
    )
    parser.add_argument(
        "--torchrec-sharding",
        nargs="+",
        default=["table_wise"],
        metavar="T",
        help="that TorchRec chooses from; with more it hardly ends for hundreds of tables (%(default)s)",
    )
    add_record_argument(parser, "plan.json")


def run(args: argparse.Namespace) -> Outcome:
    """Measures, writes the record, prints a table."""
    with ConsoleProgress() as progress:
        rows = measure(
            args.cases,
            args.count,
            effort=args.effort,
            torchrec_seconds=args.torchrec_seconds,
            torchrec_shardings=args.torchrec_sharding,
            progress=progress,
        )
    found = summary(rows)
    write_record(args.record, "plan", rows, summary=found, effort=args.effort)
    lines = [
        f"{'cases':<10}{'':>5}{'gap: median':>12}{'95 %':>8}{'largest':>9}{'<= 1 %':>8}{'<= 5 %':>8}"
        f"{'max/mean':>10}{'CPU s: median':>15}{'most':>7}{'wrong':>7}"
    ]
    for name, s in found.items():
        lines.append(
            f"{name:<10}{s['cases']:>5}{s['gap_median']:>12.2%}{s['gap_p95']:>8.2%}{s['gap_max']:>9.2%}"
            f"{s['within_1_percent']:>8.0%}{s['within_5_percent']:>8.0%}{s['max_over_mean']:>10.3f}"
            f"{s['planning_cpu_seconds_median']:>15.2f}{s['planning_cpu_seconds_max']:>7.2f}"
            f"{s['wrong_plans']:>7}"
        )
    lines += [f"  {r['case']}: gap {r['gap']:.2%}" for r in sorted(rows, key=lambda r: -r["gap"])[:5]]
    lines += [_torchrec(r) for r in rows if "torchrec_limit_seconds" in r]
    lines.append(f"record    {args.record}")
    return Outcome("\n".join(lines), {"rows": rows, "summary": found, "record": str(args.record)})


def _torchrec(row: Mapping[str, Any]) -> str:
    if "torchrec_failed" in row:
        return f"  {row['case']}: {row['torchrec_failed']}"[:100]
    ended = "" if row["torchrec_finished"] else ", stopped by its limit"
    return (
        f"  {row['case']}: TorchRec {row['torchrec_cpu_seconds']:.0f} s of CPU{ended}; its plan takes "
        f"{row['torchrec_time_over_ours']:.3g} times ours"
    )
