"""`recsys-opt bench order`: what the order of ids does to distinct prefixes and to the op's time."""

from __future__ import annotations

import argparse

import torch

from recsys_opt.bench import id_order
from recsys_opt.bench.record import write_record
from recsys_opt.cli.arguments import add_record_argument
from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.progress import ConsoleProgress
from recsys_opt.data.dataset import Dataset

EXAMPLE = "recsys-opt bench order kaggle/ --batch-size 2048 65536 --record order.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("dataset", metavar="DATASET", help="a dataset folder, ids as they were made")
    parser.add_argument("--rank", type=int, default=32, metavar="R", help="of the tensor trains (default 32)")
    parser.add_argument("--tables", type=int, default=7, metavar="N", help="the largest N (default 7)")
    parser.add_argument(
        "--batch-size",
        type=int,
        nargs="+",
        default=[2048, 16384, 65536],
        metavar="B",
        help="samples of a batch (%(default)s)",
    )
    parser.add_argument("--rounds", type=int, default=10, metavar="N", help="turns (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of the op (%(default)s)")
    add_record_argument(parser)


def run(args: argparse.Namespace) -> Outcome:
    """Measures and prints a table."""
    settings = id_order.Settings(
        rank=args.rank, tables=args.tables, batch_sizes=tuple(args.batch_size), repeats=args.rounds
    )
    before = torch.get_num_threads()
    torch.set_num_threads(max(args.threads, 1))
    try:
        with ConsoleProgress() as progress:
            rows = id_order.run(Dataset(args.dataset), settings, progress)
    finally:
        torch.set_num_threads(before)
    about = {"rank": args.rank, "tables": args.tables, "threads": args.threads}
    if args.record:
        write_record(args.record, "id_order", rows, **about)
    lines = [
        f"{'rows':<6}{'batch':>7}  {'order':<24}{'ids':>9}{'prefixes':>10}{'middle':>8}"
        f"{'forward':>12}{'ratio':>7}{'+ backward':>13}{'ratio':>7}"
    ]
    lines += [
        f"{r['rows']:<6}{r['batch_size']:>7,}  {r['order']:<24}{r['distinct_ids']:>9,}"
        f"{r['distinct_prefixes']:>10,}{r['distinct_middle_indices']:>8,}"
        f"{r['forward_ms']:>9.2f} ms{r['forward_ratio']:>6.2f}x"
        f"{r['forward_backward_ms']:>10.2f} ms{r['forward_backward_ratio']:>6.2f}x"
        for r in rows
    ]
    return Outcome("\n".join(lines), {**about, "rows": rows})
