"""`recsys-opt data tables`: lookups of many tables with production-like reuse."""

from __future__ import annotations

import argparse
from pathlib import Path

from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.progress import ConsoleProgress

EXAMPLE = "recsys-opt data tables --tables 856 --batch 4096 --out trace/"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("--tables", type=int, default=856, metavar="N", help="default 856")
    parser.add_argument(
        "--batch", type=int, default=65536, metavar="B", help="samples in a batch (default 65536)"
    )
    parser.add_argument("--batches", type=int, default=1, metavar="K", help="default 1")
    parser.add_argument("--embedding-dim", type=int, default=64, metavar="D", help="default 64")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument("--record", type=Path, metavar="JSON", help="also write the reuse, as a record")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="trace folder to write: 8 bytes a lookup, 7 GB for the defaults; without it, only measure",
    )


def run(args: argparse.Namespace) -> Outcome:
    """Makes the trace."""
    from recsys_opt.bench.record import write_record
    from recsys_opt.data.table_traces import (
        PUBLISHED_MEAN_REUSE,
        PUBLISHED_REUSE,
        REUSE_BINS,
        TableTraces,
        measure_reuse,
        write_traces,
    )

    traces = TableTraces(
        tables=args.tables, batch_size=args.batch, seed=args.seed, embedding_dim=args.embedding_dim
    )
    with ConsoleProgress() as progress:
        if args.out is None:
            reuse = measure_reuse(traces, 0, progress)
        else:
            reuse = write_traces(traces, args.out, batches=args.batches, progress=progress)
    rows = sum(s.config.num_embeddings for s in traces.specs)
    lines = [
        f"{args.tables} tables, {rows:,} rows; {reuse.lookups:,} lookups of {reuse.unique:,} distinct rows "
        f"in {args.batches if args.out else 1} x {args.batch} samples",
        "distinct rows touched  " + "".join(f"{b:>8}" for b in REUSE_BINS) + "    mean",
        "this trace             "
        + "".join(f"{100 * s:>7.1f}%" for s in reuse.shares)
        + f"{reuse.mean:>8.2f}",
        "published, B = 65536   "
        + "".join(f"{100 * s:>7.1f}%" for s in PUBLISHED_REUSE)
        + f"{PUBLISHED_MEAN_REUSE:>8.2f}",
    ]
    result = {
        "path": None if args.out is None else str(args.out),
        "tables": args.tables,
        "rows": rows,
        "lookups": reuse.lookups,
        "unique": reuse.unique,
        "mean_reuse": reuse.mean,
        "reuse": dict(zip(REUSE_BINS, reuse.shares, strict=True)),
        "published_reuse": dict(zip(REUSE_BINS, PUBLISHED_REUSE, strict=True)),
    }
    if args.record is not None:
        write_record(args.record, "table_traces", [result])
    return Outcome("\n".join(lines), result)
