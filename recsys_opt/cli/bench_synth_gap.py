"""`recsys-opt bench synth-gap`: a small DLRM's distance to the best possible AUC of generated rows."""

from __future__ import annotations

import argparse

from recsys_opt.bench.record import write_record
from recsys_opt.bench.synth_gap import measure
from recsys_opt.cli.arguments import add_record_argument
from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.progress import ConsoleProgress

EXAMPLE = "recsys-opt bench synth-gap --rows 137139 2000000"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    parser.add_argument(
        "--rows",
        type=int,
        nargs="+",
        default=[137_139, 2_000_000],
        metavar="N",
        help="training, validation and test rows together (%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the rows (default 0)")
    parser.add_argument(
        "--batch-size", type=int, default=128, metavar="B", help="rows per update (%(default)s)"
    )
    parser.add_argument(
        "--max-cardinality",
        type=int,
        metavar="K",
        help="fold larger tables into K rows (default: published cardinalities, 2.2 GB of tables)",
    )
    add_record_argument(parser, "synth_gap.json")


def run(args: argparse.Namespace) -> Outcome:
    """Measures, writes the record, prints a table."""
    settings = {"seed": args.seed, "max_cardinality": args.max_cardinality, "batch_size": args.batch_size}
    with ConsoleProgress() as progress:
        rows = measure(args.rows, progress=progress, **settings)
    write_record(args.record, "synth_gap", rows, **settings)
    lines = ["      rows   test AUC   best AUC     gap   logloss      best     gap"]
    lines += [
        f"{r['rows']:>10,}{r['auc']:>11.4f}{r['bayes_auc']:>11.4f}{r['auc_gap']:>8.4f}"
        f"{r['logloss']:>10.4f}{r['bayes_logloss']:>10.4f}{r['logloss_gap']:>8.4f}"
        for r in rows
    ]
    return Outcome("\n".join([*lines, f"record     {args.record}"]), {"rows": rows, **settings})
