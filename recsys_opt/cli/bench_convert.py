"""`recsys-opt bench convert`: AUC of a trained model whose tables are cut to less rank."""

from __future__ import annotations

import argparse

from recsys_opt.bench.convert import Settings, text
from recsys_opt.bench.convert import run as measure
from recsys_opt.bench.record import write_record
from recsys_opt.cli.arguments import add_record_argument
from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.progress import ConsoleProgress
from recsys_opt.data.dataset import Dataset
from recsys_opt.quantities import whole_number

EXAMPLE = "recsys-opt bench convert runs/tt kaggle/ --rank 16 8 --tolerance 0.05 0.2"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    default = Settings()
    parser.add_argument("run", metavar="RUN", help="a trained run folder, with dense tables or tensor trains")
    parser.add_argument("dataset", metavar="DATASET", help="the dataset to evaluate on")
    parser.add_argument(
        "--rank",
        type=int,
        nargs="*",
        default=list(default.ranks),
        metavar="R",
        help="ranks to cut to (%(default)s)",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        nargs="*",
        default=list(default.tolerances),
        metavar="SHARE",
        help="relative errors to cut to, at the least ranks within them (%(default)s)",
    )
    parser.add_argument(
        "--least-rows",
        type=whole_number,
        default=default.least_rows,
        metavar="N",
        help="dense tables of at least so many rows are fitted (%(default)s)",
    )
    parser.add_argument("--split", default=default.split, help="rows to evaluate on (%(default)s)")
    add_record_argument(parser, "convert.json")


def run(args: argparse.Namespace) -> Outcome:
    """Measures, writes the record, prints a table."""
    settings = Settings(args.least_rows, tuple(args.rank), tuple(args.tolerance), args.split)
    dataset = Dataset(args.dataset)
    with ConsoleProgress() as progress:
        rows = measure(args.run, dataset, settings, progress)
    info = dataset.info
    words = {"name": info.name, "labelled_rows": info.labelled_rows, "ids": dict(info.ids)}
    write_record(args.record, "convert", rows, dataset=words)
    return Outcome(f"{text(rows)}\nwritten: {args.record}", {"rows": rows, "record": str(args.record)})
