"""`recsys-opt bench replay`: lookups a second of `plan replay`'s counting, on one core."""

from __future__ import annotations

import argparse

from recsys_opt.bench.record import write_record
from recsys_opt.bench.replay import TABLE_ROWS, measure
from recsys_opt.cli.arguments import add_record_argument
from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.progress import ConsoleProgress, short_count
from recsys_opt.quantities import whole_number

EXAMPLE = "recsys-opt bench replay --rows 100k 10M"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    parser.add_argument(
        "--rows",
        type=whole_number,
        nargs="+",
        default=list(TABLE_ROWS),
        metavar="N",
        help="of the tables (%(default)s)",
    )
    parser.add_argument(
        "--lookups", type=whole_number, default=1 << 22, metavar="N", help="of a batch (%(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=7, help="turns of each candidate (%(default)s)")
    add_record_argument(parser, "replay.json")


def run(args: argparse.Namespace) -> Outcome:
    """Measures, writes the record, prints a table."""
    with ConsoleProgress() as progress:
        rows = measure(args.rows, lookups=args.lookups, rounds=args.rounds, progress=progress)
    write_record(args.record, "replay", rows, lookups=args.lookups)
    lines = [f"{'table rows':>12}{'ids':>9}{'candidate':>11}{'lookups/s':>11}    20 % .. 80 %"]
    lines += [
        f"{r['rows']:>12,}{r['ids']:>9}{r['candidate']:>11}{short_count(r['lookups_per_s']):>11}"
        f"    {short_count(r['p20'])} .. {short_count(r['p80'])}"
        for r in rows
    ]
    return Outcome("\n".join([*lines, f"record     {args.record}"]), {"rows": rows})
