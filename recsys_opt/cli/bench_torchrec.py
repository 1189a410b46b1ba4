"""`recsys-opt bench torchrec`: what a plan exchanges on TorchRec, and how long its steps take there."""

from __future__ import annotations

import argparse

from recsys_opt.bench.record import write_record
from recsys_opt.bench.torchrec_exchange import measure, split_tables
from recsys_opt.cli.arguments import add_record_argument
from recsys_opt.cli.outcome import Outcome
from recsys_opt.plan import Plan

EXAMPLE = """recsys-opt bench torchrec --devices 2 --batch-size 4096 --record torchrec.json

of a plan of your own, in as many processes as it has devices:
  recsys-opt bench torchrec --plan plan.json"""
ROWS = (
    500_000,
    400_000,
    350_000,
    300_000,
    110_000,
    90_000,
    30_000,
    15_000,
    12_000,
    5_000,
    3_000,
    3_000,
    2_000,
)
SMALL = (1_000, 600, 600, 300, 100, 24, 27, 18, 15, 10, 4, 4, 3)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("--plan", metavar="PLAN", help="plan.json; instead of the tables below")
    parser.add_argument(
        "--rows",
        type=int,
        nargs="+",
        default=[*ROWS, *SMALL],
        metavar="N",
        help="of each table (default: 26 tables of 3 to 500,000)",
    )
    parser.add_argument("--embedding-dim", type=int, default=16, metavar="D", help="columns (%(default)s)")
    parser.add_argument(
        "--hot-share", type=float, default=0.1, metavar="SHARE", help="of a large table's rows (%(default)s)"
    )
    parser.add_argument("--devices", type=int, default=2, metavar="N", help="processes (%(default)s)")
    parser.add_argument(
        "--batch-size", type=int, default=4096, metavar="B", help="samples, over all devices (%(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=20, metavar="N", help="steps of each way (%(default)s)")
    add_record_argument(parser)


def run(args: argparse.Namespace) -> Outcome:
    """Measures and prints a table."""
    plan = (
        Plan.load(args.plan)
        if args.plan
        else split_tables(
            args.rows,
            devices=args.devices,
            embedding_dim=args.embedding_dim,
            hot_share=args.hot_share,
            batch_size=args.batch_size,
        )
    )
    found = measure(plan, args.rounds)
    if args.record:
        about = {key: value for key, value in found.items() if key != "ways"}
        write_record(args.record, "torchrec", found["ways"], **about)
    lines = [f"{'':<14}{'pooled rows':>14}{'ids':>12}{'step':>12}{'p20-p80':>18}"]
    lines += [
        f"{w['way']:<14}{w['pooled_bytes'] / 1e6:>11.2f} MB{w['id_bytes'] / 1e6:>9.2f} MB"
        f"{w['median_ms']:>9.2f} ms{w['p20_ms']:>9.2f}-{w['p80_ms']:.2f} ms"
        for w in found["ways"]
    ]
    lines.append(
        f"of a step of {found['batch_size']:,} samples over {found['devices']} processes, pooled rows with "
        f"their gradients; a process remaps its batch in {found['remap_ms']:.2f} ms"
    )
    return Outcome("\n".join(lines), found)
