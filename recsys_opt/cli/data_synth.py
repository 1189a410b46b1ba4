"""`recsys-opt data synth`: writes generated rows as a dataset folder, or as Criteo's text."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.progress import ConsoleProgress, short_count
from recsys_opt.cli.values import whole

if TYPE_CHECKING:
    from recsys_opt.data.synth import SyntheticCriteo

EXAMPLE = "recsys-opt data synth --rows 1000000 --out synth/ --seed 1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("--rows", type=whole, required=True, metavar="N", help="rows to generate")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="dataset folder to write")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other rows (default 0)")
    parser.add_argument(
        "--profile",
        default="criteo_kaggle",
        help="statistics to follow: a shipped name or a .json of `data calibrate` (default criteo_kaggle)",
    )
    parser.add_argument(
        "--max-cardinality",
        type=whole,
        metavar="K",
        help="fold the ids of larger tables into K rows (default: the published cardinalities)",
    )
    parser.add_argument(
        "--cardinalities",
        metavar="WHICH",
        help="give the columns the table sizes of terabyte-10m, terabyte-40m or mlperf-v2, the largest "
        "to the largest (default: the profile's)",
    )
    parser.add_argument(
        "--text-days",
        type=int,
        metavar="N",
        help="write text as Criteo publishes it, day_0 .. day_<N-1>, for `data prepare`, not a dataset",
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
        args.rows,
        seed=args.seed,
        profile=args.profile,
        max_cardinality=args.max_cardinality,
        cardinalities=args.cardinalities,
    )
    if args.text_days is not None:
        return _text(source, args)
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


def _text(source: SyntheticCriteo, args: argparse.Namespace) -> Outcome:
    """Writes days of text."""
    from recsys_opt.data.synth_text import write_days

    began = time.perf_counter()
    with ConsoleProgress() as progress:
        paths = write_days(source, args.out, args.text_days, threads=args.threads, progress=progress)
    seconds = time.perf_counter() - began
    size = sum(path.stat().st_size for path in paths)
    line = (
        f"{args.out}: {args.rows:,} rows as text, {paths[0].name} to {paths[-1].name}, {size:,} bytes in "
        f"{seconds:.2f} s ({short_count(args.rows / seconds)} rows/s); next: recsys-opt data prepare "
        f"{args.out}"
    )
    files = [str(path) for path in paths]
    return Outcome(line, {"files": files, "rows": args.rows, "bytes": size, "seconds": round(seconds, 3)})
