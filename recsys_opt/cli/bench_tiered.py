"""`recsys-opt bench tiered`: tables in two tiers beside nn.EmbeddingBag and tables in one."""

from __future__ import annotations

import argparse
from pathlib import Path

from recsys_opt.bench.record import write_record
from recsys_opt.bench.tiered import PLACES, WORKS, Settings, text
from recsys_opt.bench.tiered import run as measure
from recsys_opt.cli.arguments import add_record_argument
from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.progress import ConsoleProgress
from recsys_opt.quantities import whole_number

EXAMPLE = "recsys-opt bench tiered --hot-share 0 0.1 1 --batch-size 2048 65536"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    default = Settings()
    parser.add_argument(
        "--rows", type=whole_number, default=default.num_embeddings, help="of a table (%(default)s)"
    )
    parser.add_argument("--dim", type=int, default=default.embedding_dim, help="columns (%(default)s)")
    parser.add_argument("--tables", type=int, default=default.tables, metavar="N", help="(%(default)s)")
    parser.add_argument(
        "--hot-share",
        type=float,
        nargs="+",
        default=list(default.hot_shares),
        metavar="X",
        help="rows in the hot tier, as a share of the table's (%(default)s)",
    )
    parser.add_argument(
        "--place",
        nargs="+",
        choices=tuple(PLACES),
        help="; ".join(f"{name}: {what}" for name, what in PLACES.items())
        + " (memory file ranks; on a GPU memory, with whole where there are several tables)",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        nargs="+",
        default=list(default.batch_sizes),
        metavar="B",
        help="ids of a batch and table (%(default)s)",
    )
    parser.add_argument(
        "--work",
        nargs="+",
        choices=WORKS,
        default=list(default.works),
        help="forward without gradients; step: forward, backward and update (%(default)s)",
    )
    parser.add_argument(
        "--algorithm",
        choices=("sgd", "adagrad", "rowwise_adagrad"),
        default=default.algorithm,
        help="the steps' update (%(default)s)",
    )
    parser.add_argument(
        "--zipf",
        type=float,
        default=default.zipf_exponent,
        metavar="X",
        help="exponent of the ids' distribution (%(default)s)",
    )
    parser.add_argument(
        "--threads", type=int, default=default.threads, metavar="N", help="of torch (%(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=default.rounds, help="turns (%(default)s)")
    parser.add_argument("--device", default=default.device, help="cpu or cuda (%(default)s)")
    parser.add_argument(
        "--cold-dir", type=Path, metavar="DIR", help="for the files (default: the system's temporary folder)"
    )
    add_record_argument(parser, "tiered_cpu.json")


def run(args: argparse.Namespace) -> Outcome:
    """Measures, writes the record, prints a table."""
    usual = Settings().places if args.device == "cpu" else ("memory", "whole")[: args.tables]
    settings = Settings(
        num_embeddings=args.rows,
        embedding_dim=args.dim,
        tables=args.tables,
        hot_shares=tuple(args.hot_share),
        places=tuple(args.place or usual),
        batch_sizes=tuple(args.batch_size),
        works=tuple(args.work),
        algorithm=args.algorithm,
        zipf_exponent=args.zipf,
        threads=args.threads,
        rounds=args.rounds,
        device=args.device,
        cold_dir=args.cold_dir,
    )
    with ConsoleProgress() as progress:
        rows = measure(settings, progress)
    told = {"num_embeddings": args.rows, "embedding_dim": args.dim, "algorithm": args.algorithm}
    write_record(args.record, "tiered", rows, **told, zipf_exponent=args.zipf, threads=args.threads)
    return Outcome(f"{text(rows)}\nwritten: {args.record}", {"rows": rows, "record": str(args.record)})
