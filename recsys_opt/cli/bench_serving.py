"""`recsys-opt bench serving`: queries simulated in a second of one core, beside SimPy."""

from __future__ import annotations

import argparse

from recsys_opt.bench import serving_rate
from recsys_opt.bench.record import write_record
from recsys_opt.cli.arguments import add_record_argument
from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.progress import ConsoleProgress, short_count
from recsys_opt.cli.values import at_least

EXAMPLE = "recsys-opt bench serving --queries 10M"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    parser.add_argument(
        "--queries", type=at_least(1000), default=10_000_000, metavar="N", help="to simulate (default 10M)"
    )
    parser.add_argument(
        "--simpy-queries", type=at_least(100), default=100_000, metavar="N", help="with SimPy (default 100k)"
    )
    parser.add_argument("--rounds", type=at_least(1), default=3, metavar="N", help="default 3")
    add_record_argument(parser, "serving_rate.json")


def run(args: argparse.Namespace) -> Outcome:
    """Measures, writes the record, prints a table."""
    with ConsoleProgress() as progress:
        rows = serving_rate.measure(args.queries, args.simpy_queries, args.rounds, progress)
    write_record(args.record, "serving_rate", rows)
    lines = [f"{'model':<26}{'by':<14}{'queries':>10}{'queries/s of a core':>22}{'times SimPy':>14}"]
    for row in rows:
        lines.append(
            f"{row['model']:<26}{row['way']:<14}{short_count(row['queries']):>10}"
            f"{short_count(row['queries_per_s']):>22}{row['times_simpy']:>14,.0f}"
        )
    return Outcome("\n".join([*lines, f"record  {args.record}"]), {"rows": rows})
