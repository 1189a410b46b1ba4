"""`recsys-opt bench curves`: which curve of access tells best what lookups to come will do."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from recsys_opt.bench import access_curves
from recsys_opt.bench.record import write_record
from recsys_opt.cli.arguments import add_record_argument
from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.progress import ConsoleProgress
from recsys_opt.data.dataset import Dataset
from recsys_opt.errors import InputError
from recsys_opt.quantities import whole_number

EXAMPLE = "recsys-opt bench curves --dataset kaggle/"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    parser.add_argument(
        "--rows", type=whole_number, default=40_000_000, metavar="N", help="of the Zipf table (default 40M)"
    )
    parser.add_argument(
        "--lookups",
        type=whole_number,
        nargs="+",
        default=[10**6, 10**7, 10**8],
        metavar="N",
        help="of the Zipf table (default 1M 10M 100M)",
    )
    parser.add_argument("--tables", type=int, default=40, metavar="N", help="of the trace (default 40)")
    parser.add_argument("--batch", type=int, default=16384, metavar="B", help="its batches (default 16384)")
    parser.add_argument(
        "--batches", type=int, default=4, metavar="K", help="that rank, and as many that judge (default 4)"
    )
    parser.add_argument(
        "--dataset",
        type=Path,
        metavar="FOLDER",
        help="also a dataset: its first half ranks, its second judges",
    )
    add_record_argument(parser, "access_curves.json")


def run(args: argparse.Namespace) -> Outcome:
    """Measures, writes the record, prints tables."""
    if args.rows < 1 or min(args.lookups) < 2 or args.batches < 1:
        raise InputError("--rows and --batches must be at least 1, --lookups at least 2")
    with ConsoleProgress() as progress:
        rows = list(access_curves.known(args.rows, args.lookups, progress=progress))
        rows += access_curves.later_in_trace(args.tables, args.batch, args.batches, progress=progress)
        if args.dataset is not None:
            rows += access_curves.later_in_dataset(Dataset(args.dataset), progress=progress)
    means = access_curves.summary([r for r in rows if not r["data"].startswith("Zipf")])
    write_record(args.record, "access_curves", rows, summary=means)
    lines = [f"share of lookups (%) that miss the hottest 10 % of {args.rows:,} rows"]
    by_table: dict[str, list[dict[str, Any]]] = {}
    for r in rows:
        if r["data"].startswith("Zipf"):
            by_table.setdefault(r["table"], []).append(r)
    lines.append(f"  {'':<18}" + "".join(f"{way:>17}" for way in _short(by_table)) + f"{'truth':>9}")
    for table, found in by_table.items():
        told = "".join(f"{100 * r['missed_0.1']:>17.2f}" for r in found[:4])
        lines.append(f"  {table:<18}{told}{100 * found[0]['truly_missed_0.1']:>9.2f}")
    lines += [
        "",
        f"{'judged by later lookups; mean of tables':<40}{'bias':>9}{'error':>9}{'worst':>9}"
        f"{'10 % hot':>12}{'truth':>9}",
    ]
    lines += [
        f"  {m['data']:<9}{m['way']:<29}{100 * m['mean_error']:>+9.2f}{100 * m['mean_absolute_error']:>9.2f}"
        f"{100 * m['largest_error']:>9.2f}{100 * m['missed_0.1']:>12.2f}{100 * m['truly_missed_0.1']:>9.2f}"
        for m in means
    ]
    lines += ["points of a percent of the lookups; error and worst over the points of each curve"]
    return Outcome("\n".join([*lines, f"record  {args.record}"]), {"rows": rows, "summary": means})


def _short(by_table: dict[str, list[dict[str, Any]]]) -> list[str]:
    return [r["way"] for r in next(iter(by_table.values()))[:4]]
