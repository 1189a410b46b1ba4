"""`recsys-opt bench hardware`: bandwidth by the size of a row, for the planner."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

import torch

from recsys_opt.bench.hardware import KINDS, Measured, Rate, Settings, measure
from recsys_opt.bench.hardware_bags import BagSettings, measure_gpu
from recsys_opt.bench.record import write_record
from recsys_opt.cli.arguments import add_record_argument
from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.progress import ConsoleProgress, short_count
from recsys_opt.cli.values import memory_size, output_file

EXAMPLE = "recsys-opt bench hardware --out hardware.toml --disk /mnt/nvme"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    default = Settings()
    parser.add_argument(
        "--out",
        type=output_file,
        default=Path("hardware.toml"),
        metavar="FILE",
        help="what `plan --hardware` reads (%(default)s)",
    )
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="cpu: memory and a mapped file; cuda: a GPU's memory and pinned host memory (%(default)s)",
    )
    parser.add_argument(
        "--disk",
        type=Path,
        default=Path(),
        metavar="FOLDER",
        help="on the disk to measure: a file is made there and removed (default: the current folder)",
    )
    parser.add_argument(
        "--file-bytes",
        type=memory_size,
        default=default.file_bytes,
        metavar="BYTES",
        help="of this file (%(default)s)",
    )
    parser.add_argument(
        "--memory-bytes",
        type=memory_size,
        default=default.memory_bytes,
        metavar="BYTES",
        help="of the table in memory, many times the caches' size (%(default)s)",
    )
    parser.add_argument(
        "--row-bytes",
        type=int,
        nargs="+",
        default=list(default.row_bytes),
        metavar="N",
        help="sizes of rows (%(default)s)",
    )
    parser.add_argument(
        "--rounds", type=int, default=default.rounds, help="the median of so many counts (%(default)s)"
    )
    add_record_argument(parser, "hardware.json")


def run(args: argparse.Namespace) -> Outcome:
    """Measures, writes hardware.toml and the record, prints a table."""
    sizes = tuple(sorted(set(args.row_bytes)))
    with ConsoleProgress() as progress:
        if args.device == "cuda":
            found = measure_gpu(BagSettings(sizes, args.rounds), torch.device("cuda"), progress)
        else:
            settings = Settings(
                sizes, args.rounds, memory_bytes=args.memory_bytes, file_bytes=args.file_bytes
            )
            found = measure(settings, args.disk, progress)
    found.hardware.save(args.out)
    rows = [asdict(rate) for rate in found.rates]
    write_record(args.record, "hardware", rows, device=args.device, remarks=list(found.remarks))
    lines = [*_table(found), *(f"note       {remark}" for remark in found.remarks)]
    lines += [f"hardware   {args.out}", f"record     {args.record}"]
    result = {"hardware": found.hardware.to_json(), "rates": rows, "remarks": list(found.remarks)}
    return Outcome("\n".join(lines), {**result, "path": str(args.out), "record": str(args.record)})


def _table(found: Measured) -> list[str]:
    rates = {(r.tier, r.kind, r.row_bytes): r for r in found.rates}
    tiers = (found.hardware.fast.name, found.hardware.slow.name)
    columns = [(tier, kind) for tier in tiers for kind in KINDS]
    lines = [f"{'bytes of a row':<14}" + "".join(f"{f'{tier} {kind}':>21}" for tier, kind in columns)]
    for size in sorted({r.row_bytes for r in found.rates if r.kind in KINDS}):
        cells = [_amount(rates.get((tier, kind, size))) for tier, kind in columns]
        lines.append(f"{size:<14}" + "".join(f"{cell:>21}" for cell in cells))
    lines.append(
        "bytes of rows a second, (20 % .. 80 %) of the rounds; an update reads and writes, and counts once"
    )
    copies = {tier: rates[tier, "copy", 0] for tier in tiers if (tier, "copy", 0) in rates}
    for tier, rate in copies.items():
        lines.append(f"in order       {tier} {_amount(rate)} {'read' if tier == 'disk' else 'copied'}")
    return lines


def _amount(rate: Rate | None) -> str:
    if rate is None:
        return "-"
    return f"{short_count(rate.bytes_per_s)} ({short_count(rate.p20)}..{short_count(rate.p80)})"
