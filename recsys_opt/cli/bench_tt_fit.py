"""`recsys-opt bench tt-fit`: time, memory and error of fitting tensor trains to tables."""

from __future__ import annotations

import argparse

from recsys_opt.bench.record import write_record
from recsys_opt.bench.tt_fit import METHODS, Settings, text
from recsys_opt.bench.tt_fit import run as measure
from recsys_opt.cli.arguments import add_record_argument
from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.progress import ConsoleProgress
from recsys_opt.quantities import whole_number

EXAMPLE = """recsys-opt bench tt-fit --rows 1M --rank 16 --file-bytes 0 \\
    --table runs/dense/checkpoint/model.safetensors#embeddings.tables.C3.weight"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    default = Settings()
    parser.add_argument(
        "--rows",
        type=whole_number,
        nargs="+",
        default=list(default.rows),
        metavar="N",
        help="of the tables in memory (%(default)s)",
    )
    parser.add_argument("--dim", type=int, default=default.dim, help="columns (%(default)s)")
    parser.add_argument(
        "--rank", type=int, default=default.rank, metavar="R", help="of every bond (%(default)s)"
    )
    parser.add_argument(
        "--kind",
        nargs="+",
        choices=("planted", "random"),
        default=list(default.kinds),
        help="of the tables in memory: planted, a tensor train and noise; random, noise alone (%(default)s)",
    )
    parser.add_argument(
        "--method",
        nargs="+",
        choices=METHODS,
        default=list(default.methods),
        help="how to fit them (%(default)s)",
    )
    parser.add_argument(
        "--file-bytes",
        type=whole_number,
        default=default.file_bytes,
        metavar="BYTES",
        help="a table in a temporary file, fitted within --work-bytes; 0: none (%(default)s)",
    )
    parser.add_argument(
        "--work-bytes",
        type=whole_number,
        default=default.work_bytes,
        metavar="BYTES",
        help="memory of a fit (%(default)s)",
    )
    parser.add_argument("--table", help="a .npy file, or a tensor of a .safetensors file: FILE#NAME")
    parser.add_argument(
        "--threads", type=int, default=default.threads, metavar="N", help="of torch (%(default)s)"
    )
    add_record_argument(parser, "tt_fit.json")


def run(args: argparse.Namespace) -> Outcome:
    """Measures, writes the record, prints a table."""
    settings = Settings(
        rows=tuple(args.rows),
        dim=args.dim,
        rank=args.rank,
        kinds=tuple(args.kind),
        methods=tuple(args.method),
        file_bytes=args.file_bytes,
        work_bytes=args.work_bytes,
        threads=args.threads,
        table=args.table,
    )
    with ConsoleProgress() as progress:
        rows = measure(settings, progress)
    write_record(args.record, "tt_fit", rows)
    return Outcome(f"{text(rows)}\nwritten: {args.record}", {"rows": rows, "record": str(args.record)})
