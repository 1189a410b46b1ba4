"""`recsys-opt data tables`: a dataset's tables under a memory budget, or lookups of many generated tables."""

from __future__ import annotations

import argparse
from pathlib import Path

from recsys_opt.cli.budget_table import budget_table
from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.progress import ConsoleProgress
from recsys_opt.cli.values import memory_size
from recsys_opt.data.dataset import Dataset
from recsys_opt.errors import InputError
from recsys_opt.training.budget import choose_for_dataset
from recsys_opt.training.config import RECIPES, recipe

EXAMPLE = "\n  ".join(
    (
        "recsys-opt data tables kaggle/ --memory-budget 20MB",
        "recsys-opt data tables --tables 856 --batch 4096 --out trace/",
        "recsys-opt data tables --tables 856 --batch 4096 --day 1 --drift 0.2 --out next/",
    )
)
# Of generated tables only; a dataset brings its own.
GENERATED = {
    "tables": 856,
    "batch": 65536,
    "batches": 1,
    "embedding_dim": 64,
    "seed": 0,
    "shrink": 1,
    "day": 0,
    "drift": 0.1,
    "out": None,
    "record": None,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument(
        "dataset",
        nargs="?",
        metavar="DATASET",
        help="choose the tables of this dataset folder; nothing is trained",
    )
    budget = parser.add_argument_group("a dataset's tables under a memory budget")
    budget.add_argument(
        "--memory-budget",
        type=memory_size,
        metavar="BYTES",
        help="for all embedding tables, e.g. 20MB or 16MiB: which become tensor trains, with which ranks",
    )
    budget.add_argument(
        "--recipe", choices=sorted(RECIPES), help="columns of a table, optimizer (default criteo_kaggle)"
    )
    generated = parser.add_argument_group("lookups of generated tables")
    generated.add_argument("--tables", type=int, metavar="N", help="default 856")
    generated.add_argument("--batch", type=int, metavar="B", help="samples in a batch (default 65536)")
    generated.add_argument("--batches", type=int, metavar="K", help="to write (default 1)")
    generated.add_argument("--embedding-dim", type=int, metavar="D", help="default 64")
    generated.add_argument(
        "--shrink",
        type=int,
        metavar="N",
        help="an N-th of the rows: 65536 / N samples have the reuse of the published 65536 (default 1)",
    )
    generated.add_argument(
        "--day", type=int, metavar="D", help="lookups of a later day of the same tables (default 0)"
    )
    generated.add_argument(
        "--drift",
        type=float,
        metavar="SHARE",
        help="of a table's rows, those that change places with others from a day to the next (default 0.1)",
    )
    generated.add_argument("--seed", type=int, help="default 0")
    generated.add_argument("--record", type=Path, metavar="JSON", help="also write the reuse, as a record")
    generated.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="trace folder to write: 8 bytes a lookup, 7 GB for the defaults; without it, only measure",
    )


def run(args: argparse.Namespace) -> Outcome:
    """Chooses a dataset's tables, or makes a trace."""
    given = [name for name in GENERATED if getattr(args, name) is not None]
    if args.dataset is None:
        if args.memory_budget is not None or args.recipe is not None:
            raise InputError("--memory-budget and --recipe need a DATASET, whose tables they are about")
        if args.batches is not None and args.out is None:
            raise InputError(
                f"--batches {args.batches} says how many batches to write; add --out DIR (without it, the "
                "reuse of one batch is measured)"
            )
        for name, default in GENERATED.items():
            if name not in given:
                setattr(args, name, default)
        return _make_trace(args)
    if given:
        raise InputError(
            f"--{given[0].replace('_', '-')} is about generated tables; leave it out, or leave out "
            f"{args.dataset}"
        )
    if args.memory_budget is None:
        raise InputError("give the memory that the tables may take, e.g. --memory-budget 20MB")
    with ConsoleProgress() as progress:
        choice = choose_for_dataset(
            recipe(args.recipe or "criteo_kaggle"), Dataset(args.dataset), args.memory_budget, progress
        )
    return Outcome(budget_table(choice), choice.to_json())


def _make_trace(args: argparse.Namespace) -> Outcome:
    from recsys_opt.bench.record import write_record
    from recsys_opt.data.table_traces import (
        PUBLISHED_MEAN_REUSE,
        PUBLISHED_REUSE,
        REUSE_BINS,
        TableTraces,
        measure_reuse,
        write_traces,
    )
    from recsys_opt.data.trace_drift import Drift

    traces = TableTraces(
        tables=args.tables,
        batch_size=args.batch,
        seed=args.seed,
        embedding_dim=args.embedding_dim,
        shrink=args.shrink,
        drift=Drift(args.day, args.drift),
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
