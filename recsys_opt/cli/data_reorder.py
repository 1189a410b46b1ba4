"""`recsys-opt data reorder`: a dataset with its ids in an order that suits tensor trains."""

from __future__ import annotations

import argparse
from pathlib import Path

from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.progress import ConsoleProgress
from recsys_opt.data.dataset import Dataset
from recsys_opt.data.id_order import FILE_NAME, ORDERS
from recsys_opt.data.reorder import reorder

EXAMPLE = "recsys-opt data reorder kaggle/ --by frequency --out kaggle_by_frequency/"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("dataset", metavar="DATASET", help="a dataset folder; it stays as it is")
    parser.add_argument("--out", type=Path, required=True, metavar="DATASET2", help="the folder to make")
    parser.add_argument(
        "--by",
        choices=ORDERS,
        default="frequency",
        help="frequency: ids by falling lookups; cooccurrence: ids of fewer than one lookup a batch by the "
        "mean row of their lookups instead. The training rows decide; ids that they lack come last, in "
        "their old order. Fewer distinct prefixes a batch, so less time; tables of low rank (8) lose some "
        "quality (default frequency)",
    )
    parser.add_argument(
        "--batch-size", type=int, default=2048, metavar="B", help="for cooccurrence (default 2048)"
    )


def run(args: argparse.Namespace) -> Outcome:
    """Reorders."""
    with ConsoleProgress() as progress:
        info = reorder(
            Dataset(args.dataset), args.out, args.by, batch_size=args.batch_size, progress=progress
        )
    ranked = info.ids["order"]["ranked"]
    ids = sum(c.num_embeddings for c in info.sparse_columns)
    text = (
        f"{args.out}: {sum(ranked):,} of {ids:,} ids were seen in the training rows and come first; "
        f"{args.out / FILE_NAME} lists them, for the ids of new rows"
    )
    result = {
        "out": str(args.out),
        "order": info.ids["order"],
        "input_hash": info.input_hash,
        "seen_ids": sum(ranked),
        "ids": ids,
    }
    return Outcome(text, result)
