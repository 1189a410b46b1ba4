"""`recsys-opt bench tt-freeze`: bytes, error and lookup time of a tensor train's serving levels."""

from __future__ import annotations

import argparse
from pathlib import Path

from recsys_opt.bench.record import write_record
from recsys_opt.bench.tt_cases import IDS
from recsys_opt.bench.tt_freeze import DTYPES, Settings, text
from recsys_opt.bench.tt_freeze import run as measure
from recsys_opt.cli.arguments import whole_number
from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.progress import ConsoleProgress

EXAMPLE = "recsys-opt bench tt-freeze --batch-size 1 128 2048 --dtypes fp32 bf16"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    default = Settings()
    parser.add_argument("--rows", type=whole_number, default=default.num_embeddings, help="(%(default)s)")
    parser.add_argument("--p", type=int, nargs="+", default=list(default.tt_p_shapes), help="row factors")
    parser.add_argument("--q", type=int, nargs="+", default=list(default.tt_q_shapes), help="column factors")
    parser.add_argument("--rank", type=int, default=default.rank, metavar="R", help="(%(default)s)")
    parser.add_argument("--dtypes", nargs="+", choices=tuple(DTYPES), default=list(default.dtypes))
    parser.add_argument("--batch-size", type=int, nargs="+", default=list(default.batch_sizes), metavar="B")
    parser.add_argument("--ids", nargs="+", choices=IDS, default=list(default.ids))
    parser.add_argument("--threads", type=int, default=default.threads, metavar="N", help="(%(default)s)")
    parser.add_argument("--rounds", type=int, default=default.rounds, help="turns (%(default)s)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("benchmarks/results/tt_freeze.json"),
        help="the record (%(default)s)",
    )


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
        dtypes=tuple(args.dtypes),
        batch_sizes=tuple(args.batch_size),
        ids=tuple(args.ids),
        threads=args.threads,
        rounds=args.rounds,
    )
    with ConsoleProgress() as progress:
        rows = measure(settings, progress)
    write_record(args.out, "tt_freeze", rows, num_embeddings=args.rows, rank=args.rank)
    return Outcome(f"{text(rows)}\nwritten: {args.out}", {"rows": rows, "record": str(args.out)})
