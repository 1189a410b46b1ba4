"""`recsys-opt bench tt-freeze`: bytes, error and lookup time of a tensor train's serving levels."""

from __future__ import annotations

import argparse

from recsys_opt.bench.record import write_record
from recsys_opt.bench.tt_cases import IDS
from recsys_opt.bench.tt_freeze import DTYPES, Settings, text
from recsys_opt.bench.tt_freeze import run as measure
from recsys_opt.cli.arguments import add_record_argument, shape
from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.progress import ConsoleProgress
from recsys_opt.quantities import whole_number

EXAMPLE = "recsys-opt bench tt-freeze --batch-size 1 128 2048 --dtype fp32 bf16"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    default = Settings()
    parser.add_argument(
        "--rows", type=whole_number, default=default.num_embeddings, help="of the table (%(default)s)"
    )
    for flag, factors, what in (("--p", default.tt_p_shapes, "row"), ("--q", default.tt_q_shapes, "column")):
        written = ",".join(map(str, factors))
        parser.add_argument(
            flag, type=shape, default=factors, metavar="N,N,N", help=f"{what} factors ({written})"
        )
    parser.add_argument(
        "--rank", type=int, default=default.rank, metavar="R", help="of every bond (%(default)s)"
    )
    parser.add_argument(
        "--dtype",
        nargs="+",
        choices=tuple(DTYPES),
        default=list(default.dtypes),
        help="of what is stored (%(default)s)",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        nargs="+",
        default=list(default.batch_sizes),
        metavar="B",
        help="ids of a batch (%(default)s)",
    )
    parser.add_argument(
        "--ids", nargs="+", choices=IDS, default=list(default.ids), help="their distribution (%(default)s)"
    )
    parser.add_argument(
        "--threads", type=int, default=default.threads, metavar="N", help="of torch (%(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=default.rounds, help="turns (%(default)s)")
    add_record_argument(parser, "tt_freeze.json")


def run(args: argparse.Namespace) -> Outcome:
    """Measures, writes the record, prints a table."""
    dim = 1
    for factor in args.q:
        dim *= factor
    settings = Settings(
        num_embeddings=args.rows,
        embedding_dim=dim,
        tt_p_shapes=tuple(args.p),
        tt_q_shapes=tuple(args.q),
        rank=args.rank,
        dtypes=tuple(args.dtype),
        batch_sizes=tuple(args.batch_size),
        ids=tuple(args.ids),
        threads=args.threads,
        rounds=args.rounds,
    )
    with ConsoleProgress() as progress:
        rows = measure(settings, progress)
    write_record(args.record, "tt_freeze", rows, num_embeddings=args.rows, rank=args.rank)
    return Outcome(f"{text(rows)}\nwritten: {args.record}", {"rows": rows, "record": str(args.record)})
