"""`recsys-opt bench stats`: lookups counted a second."""

from __future__ import annotations

import argparse
from pathlib import Path

from recsys_opt.bench.access_counting import measure
from recsys_opt.bench.record import write_record
from recsys_opt.cli.arguments import add_record_argument
from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.progress import ConsoleProgress
from recsys_opt.errors import InputError
from recsys_opt.quantities import whole_number

EXAMPLE = "recsys-opt bench stats --samples 1M"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    parser.add_argument(
        "--samples",
        type=whole_number,
        default=1_000_000,
        metavar="N",
        help="rows of the 26 Kaggle columns; the tables of 40 M rows get 10 N lookups (default 1M)",
    )
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="turns of each way (default 7)")
    parser.add_argument(
        "--work", type=Path, metavar="FOLDER", help="disk for the whole run (default: the temporary folder)"
    )
    add_record_argument(parser, "stats_rate.json")


def run(args: argparse.Namespace) -> Outcome:
    """Measures, writes the record, prints a table."""
    if args.samples < 1 or args.rounds < 1:
        raise InputError(f"--samples {args.samples} --rounds {args.rounds}: both must be at least 1")
    with ConsoleProgress() as progress:
        rows = measure(args.samples, rounds=args.rounds, folder=args.work, progress=progress)
    write_record(args.record, "stats_rate", rows, samples=args.samples)
    lines: list[str] = []
    case = ""
    for r in rows:
        if r["case"] != case:
            case = r["case"]
            title = f"{case}, {r['lookups']:,} lookups"
            lines.append(f"{title:<64}{'M/s':>8}{'20-80 %':>14}{'time':>9}")
        spread = f"{r['lookups_per_s_p20'] / 1e6:.0f}-{r['lookups_per_s_p80'] / 1e6:.0f}"
        lines.append(
            f"  {r['way']:<62}{r['lookups_per_s'] / 1e6:>8.1f}{spread:>14}{r['times_as_long']:>8.2f}x"
        )
    return Outcome("\n".join([*lines, f"record  {args.record}"]), {"rows": rows})
