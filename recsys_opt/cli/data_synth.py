"""`recsys-opt data synth`: writes generated rows as a dataset folder."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.progress import ConsoleProgress, short_count

EXAMPLE = "recsys-opt data synth --rows 1000000 --out synth/ --seed 1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("--rows", type=int, required=True, metavar="N", help="rows to generate")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="dataset folder to write")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other rows (default 0)")
    parser.add_argument(
        "--profile",
        default="criteo_kaggle",
        help="statistics to follow: a shipped name or a .json of `data calibrate` (default criteo_kaggle)",
    )
    parser.add_argument(
        "--max-cardinality",
        type=int,
        metavar="K",
        help="fold the ids of larger tables into K rows (default: the published cardinalities)",
    )
    parser.add_argument(
        "--split", default="80/10/10", help="shares of train/validation/test in time order (default 80/10/10)"
    )
    parser.add_argument(
        "--threads", type=int, metavar="T", help="default: all cores; the rows do not depend on it"
    )


def run(args: argparse.Namespace) -> Outcome:
    """Generates the rows."""
    from recsys_opt.data.splits import Split
    from recsys_opt.data.synth import SyntheticCriteo, write_dataset
    from recsys_opt.errors import InputError

    if args.threads is not None and args.threads < 1:
        raise InputError(f"--threads {args.threads}: it must be at least 1")
    split = Split.parse(args.split)
    source = SyntheticCriteo(
        args.rows, seed=args.seed, profile=args.profile, max_cardinality=args.max_cardinality
    )
    began = time.perf_counter()
    with ConsoleProgress() as progress:
        info = write_dataset(source, args.out, split=split, threads=args.threads, progress=progress)
    seconds = time.perf_counter() - began
    total = sum(c.num_embeddings for c in info.sparse_columns)
    lines = [
        f"{args.out}: {args.rows:,} rows in {seconds:.2f} s ({short_count(args.rows / seconds)} rows/s), "
        f"{total:,} ids in {len(info.sparse_columns)} columns",
        "best possible on these rows (what the true probabilities achieve):",
        "  split          rows         AUC    logloss   clicks",
    ]
    for name, best in (info.bayes or {}).items():
        start, stop = info.splits[name]
        lines.append(
            f"  {name:<10} {stop - start:>12,}   {best['auc']:.4f}   {best['logloss']:.4f}   "
            f"{best['click_rate']:.4f}"
        )
    result = {
        "path": str(args.out),
        "rows": args.rows,
        "seconds": round(seconds, 3),
        "splits": {k: list(v) for k, v in info.splits.items()},
        "bayes": info.bayes,
        "num_embeddings": {c.name: c.num_embeddings for c in info.sparse_columns},
        "input_hash": info.input_hash,
    }
    return Outcome("\n".join(lines), result)
