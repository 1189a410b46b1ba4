"""`recsys-opt data compare`: how alike two data sets are, e.g. real and generated rows."""

from __future__ import annotations

import argparse
from pathlib import Path

from recsys_opt.cli.arguments import add_record_argument
from recsys_opt.cli.outcome import Outcome

EXAMPLE = "recsys-opt data compare kaggle_sample.tsv.gz synth/"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    what = "a dataset folder, or labelled Criteo text (plain or .gz)"
    parser.add_argument("a", type=Path, help=what)
    parser.add_argument("b", type=Path, help=what)
    parser.add_argument(
        "--rows",
        type=int,
        metavar="N",
        help="take N rows, evenly over time, of each: figures of ids depend on the number of rows",
    )
    add_record_argument(parser)


def run(args: argparse.Namespace) -> Outcome:
    """Measures both and compares."""
    from recsys_opt.bench.record import write_record
    from recsys_opt.data.compare import compare, format_comparison, load_table
    from recsys_opt.errors import InputError

    if args.rows is not None and args.rows < 100:
        raise InputError(f"--rows {args.rows}: at least 100 are needed for shares to mean something")
    found = compare(load_table(args.a, args.rows), load_table(args.b, args.rows))
    if args.record is not None:
        rest = {("row_counts" if k == "rows" else k): v for k, v in found.items() if k != "sparse"}
        # names only: where the data lie is nobody's business
        command = f"recsys-opt data compare {args.a.name} {args.b.name}"
        write_record(args.record, "synth_vs_real", found["sparse"], command=command, **rest)
    return Outcome(format_comparison(found), found)
