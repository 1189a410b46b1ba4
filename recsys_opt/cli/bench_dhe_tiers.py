"""`recsys-opt bench dhe-tiers`: a trained run's deep hash embeddings served through a cache of two tiers."""

from __future__ import annotations

import argparse

from recsys_opt.bench.dhe_tiers import Settings, text
from recsys_opt.bench.dhe_tiers import run as measure
from recsys_opt.bench.record import write_record
from recsys_opt.cli.arguments import add_record_argument
from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.progress import ConsoleProgress
from recsys_opt.quantities import whole_number

EXAMPLE = "recsys-opt bench dhe-tiers runs/dhe kaggle/ --cache-rows 1k 10k --centroids 0 64"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the run, the dataset and the sizes."""
    default = Settings()
    parser.add_argument("run", metavar="RUN", help="trained with --representation dhe or select")
    parser.add_argument("dataset", metavar="DATASET", help="the dataset that it was trained on")
    parser.add_argument(
        "--cache-rows",
        type=whole_number,
        nargs="+",
        default=list(default.cache_rows),
        metavar="N",
        help="rows stored of each table, those that training rows look up most often (%(default)s)",
    )
    parser.add_argument(
        "--centroids",
        type=whole_number,
        nargs="+",
        default=list(default.centroids),
        metavar="C",
        help="whose rows answer for the other ids; 0: they are computed (%(default)s)",
    )
    parser.add_argument(
        "--tables",
        type=int,
        default=default.tables,
        metavar="N",
        help="so many of the largest are served through a cache (%(default)s)",
    )
    add_record_argument(parser, "dhe_tiers.json")


def run(args: argparse.Namespace) -> Outcome:
    """Measures, writes the record, prints a table."""
    settings = Settings(tuple(args.cache_rows), tuple(args.centroids), args.tables)
    with ConsoleProgress() as progress:
        rows = measure(args.run, args.dataset, settings, progress)
    write_record(args.record, "dhe_tiers", rows, tables=args.tables)
    return Outcome(f"{text(rows)}\nwritten: {args.record}", {"rows": rows, "record": str(args.record)})
