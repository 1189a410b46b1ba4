"""`recsys-opt bench serving-engines`: a DLRM without its tables, by torch's compilers and as it is served."""

from __future__ import annotations

import argparse

from recsys_opt.bench.record import write_record
from recsys_opt.bench.serving_engines import LARGEST, text
from recsys_opt.bench.serving_engines import run as measure
from recsys_opt.cli.arguments import add_record_argument
from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.progress import ConsoleProgress
from recsys_opt.cli.values import at_least
from recsys_opt.errors import InputError
from recsys_opt.models import recipes

EXAMPLE = "recsys-opt bench serving-engines --batch-size 1 128 1024"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    parser.add_argument(
        "--recipe",
        choices=("criteo_kaggle", "criteo_terabyte"),
        default="criteo_kaggle",
        help="widths of the MLPs (default %(default)s)",
    )
    parser.add_argument(
        "--batch-size",
        type=at_least(1),
        nargs="+",
        default=[1, 16, 128, 1024, 4096],
        metavar="B",
        help="samples (default %(default)s)",
    )
    parser.add_argument("--rounds", type=at_least(1), default=20, help="turns (default %(default)s)")
    add_record_argument(parser, "serving_engines.json")


def run(args: argparse.Namespace) -> Outcome:
    """Measures, writes the record, prints a table."""
    if max(args.batch_size) > LARGEST:
        raise InputError(f"--batch-size {max(args.batch_size)}; the engines are made for up to {LARGEST}")
    rows = measure(getattr(recipes, args.recipe)(), args.batch_size, args.rounds, progress=ConsoleProgress())
    if args.record is not None:
        write_record(args.record, "serving_engines", rows, recipe=args.recipe)
    return Outcome(f"milliseconds by samples, one thread\n{text(rows)}", {"rows": rows})
