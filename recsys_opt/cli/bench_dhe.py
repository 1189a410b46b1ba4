"""`recsys-opt bench dhe`: time of deep hash embeddings and hybrids on the CPU, against their plain form."""

from __future__ import annotations

import argparse

from recsys_opt.bench.dhe import KINDS, Settings, text
from recsys_opt.bench.dhe import run as measure
from recsys_opt.bench.record import write_record
from recsys_opt.cli.arguments import add_record_argument
from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.progress import ConsoleProgress
from recsys_opt.quantities import whole_number

EXAMPLE = "recsys-opt bench dhe --kind dhe --query-size 128 1024 --threads 1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    default = Settings()
    parser.add_argument(
        "--kind", nargs="+", choices=KINDS, default=list(default.kinds), help="of the tables (%(default)s)"
    )
    parser.add_argument(
        "--query-size", type=int, nargs="+", default=list(default.sizes), metavar="B", help="(%(default)s)"
    )
    parser.add_argument(
        "--threads", type=int, nargs="+", default=list(default.threads), metavar="N", help="(%(default)s)"
    )
    parser.add_argument(
        "--hashes", type=int, default=default.hashes, metavar="K", help="of a table (%(default)s)"
    )
    parser.add_argument(
        "--widths",
        type=int,
        nargs="+",
        default=list(default.widths),
        metavar="N",
        help="of the network's hidden layers (%(default)s)",
    )
    parser.add_argument(
        "--max-cardinality",
        type=whole_number,
        metavar="K",
        help="fold the ids of larger tables into K rows (default: all of Kaggle's, 33.8 M)",
    )
    parser.add_argument(
        "--cache-rows",
        type=whole_number,
        default=default.cache_rows,
        metavar="N",
        help="rows stored of each table that is computed, where cached (%(default)s)",
    )
    parser.add_argument(
        "--counted-rows",
        type=whole_number,
        default=default.counted_rows,
        metavar="N",
        help="earlier rows whose lookups say which (%(default)s)",
    )
    parser.add_argument("--rounds", type=int, default=default.rounds, help="turns (%(default)s)")
    add_record_argument(parser, "dhe_cpu.json")


def run(args: argparse.Namespace) -> Outcome:
    """Measures, writes the record, prints a table."""
    settings = Settings(
        kinds=tuple(args.kind),
        sizes=tuple(args.query_size),
        threads=tuple(args.threads),
        hashes=args.hashes,
        widths=tuple(args.widths),
        max_cardinality=args.max_cardinality,
        cache_rows=args.cache_rows,
        counted_rows=args.counted_rows,
        rounds=args.rounds,
    )
    with ConsoleProgress() as progress:
        rows = measure(settings, progress)
    write_record(args.record, "dhe", rows, hashes=args.hashes, widths=args.widths, cache_rows=args.cache_rows)
    return Outcome(f"{text(rows)}\nwritten: {args.record}", {"rows": rows, "record": str(args.record)})
