"""`recsys-opt bench prepare`: rows per CPU-second and peak memory of `data prepare`, beside its peers."""

from __future__ import annotations

import argparse
from pathlib import Path

from recsys_opt.bench.prepare import Settings
from recsys_opt.bench.prepare import run as measure
from recsys_opt.bench.record import write_record
from recsys_opt.cli.arguments import add_record_argument
from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.progress import ConsoleProgress
from recsys_opt.integrations.dataframes import available

EXAMPLE = "recsys-opt bench prepare --base kaggle_sample.tsv.gz"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    default = Settings()
    parser.add_argument(
        "--base",
        type=Path,
        metavar="FILE",
        help="rows to make the text from: copies of them, the rare values perturbed (default: invented rows)",
    )
    parser.add_argument("--rows", type=int, default=default.rows, help="of the text (%(default)s)")
    parser.add_argument(
        "--peer-rows",
        type=int,
        default=default.peer_rows,
        help="of the text for pandas and polars, which hold it in memory (%(default)s)",
    )
    parser.add_argument(
        "--threads",
        type=int,
        nargs="+",
        default=list(default.threads),
        metavar="N",
        help="of `data prepare` (%(default)s)",
    )
    parser.add_argument("--rounds", type=int, default=default.repeats, help="turns (%(default)s)")
    parser.add_argument(
        "--work", type=Path, metavar="FOLDER", help="for the text and the results (default: temporary)"
    )
    add_record_argument(parser, "prepare.json")


def run(args: argparse.Namespace) -> Outcome:
    """Measures, writes the record, prints a table."""
    settings = Settings(
        base=args.base,
        rows=args.rows,
        peer_rows=args.peer_rows,
        threads=tuple(args.threads),
        repeats=args.rounds,
        work=args.work,
    )
    with ConsoleProgress() as progress:
        rows = measure(settings, progress)
    absent = [name for name, there in available().items() if not there]
    write_record(args.record, "prepare", rows, base="given" if args.base else "invented", absent=absent)
    columns = f"{'candidate':<22}{'threads':>8}{'rows':>11}{'distinct':>11}"
    lines = [f"{columns}{'rows/CPU-s':>12}{'wall s':>8}{'peak MiB':>10}"]
    lines += [
        f"{r['candidate']:<22}{r['threads'] or '-':>8}{r['rows']:>11,}{r['distinct_values']:>11,}"
        f"{r['rows_per_cpu_s']:>12,}{r['wall_s']:>8.2f}{r['peak_rss_bytes'] / 2**20:>10.0f}"
        for r in rows
    ]
    lines += [f"not installed, left out: {name} (pip install {name})" for name in absent]
    return Outcome("\n".join(lines), {"rows": rows, "absent": absent, "record": str(args.record)})
