"""`recsys-opt bench synth`: how fast the generator makes and writes rows."""

from __future__ import annotations

import argparse
from pathlib import Path

from recsys_opt.bench.record import write_record
from recsys_opt.bench.synth import measure
from recsys_opt.cli.arguments import add_record_argument
from recsys_opt.cli.outcome import Outcome

EXAMPLE = "recsys-opt bench synth --rows 2000000"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    parser.add_argument("--rows", type=int, default=2_000_000, metavar="N", help="per run (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each way (%(default)s)")
    parser.add_argument(
        "--work", type=Path, metavar="FOLDER", help="disk to write to (default: the temporary folder)"
    )
    add_record_argument(parser, "synth_rate.json")


def run(args: argparse.Namespace) -> Outcome:
    """Measures, writes the record, prints a table."""
    rows = measure(args.rows, repeats=args.rounds, folder=args.work)
    write_record(args.record, "synth_rate", rows)
    lines = ["                        rows/s  rows/CPU-s     (20 % .. 80 %)"]
    lines += [
        f"{r['way']:<20}{r['rows_per_s']:>10,.0f}{r['rows_per_cpu_s']:>12,.0f}"
        f"     ({r['rows_per_cpu_s_p20']:,.0f} .. {r['rows_per_cpu_s_p80']:,.0f})"
        for r in rows
    ]
    return Outcome("\n".join([*lines, f"record     {args.record}"]), {"rows": rows})
