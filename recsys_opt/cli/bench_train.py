"""`recsys-opt bench train`: a training step's throughput, side by side with the DLRM repository's script."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

from recsys_opt.bench.record import write_record
from recsys_opt.bench.train import Settings
from recsys_opt.bench.train import run as measure
from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.progress import ConsoleProgress

EXAMPLE = (
    "recsys-opt bench train --batch-size 128 2048 16384 "
    "--dlrm-script ~/dlrm/dlrm_s_pytorch.py --dlrm-python ~/dlrm/venv/bin/python"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    default = Settings()
    parser.add_argument("--batch-size", type=int, nargs="+", default=list(default.batch_sizes), metavar="B")
    parser.add_argument(
        "--rounds", type=int, default=default.rounds, help="turns of every candidate (%(default)s)"
    )
    parser.add_argument("--steps", type=int, default=default.steps, help="timed steps per turn (%(default)s)")
    parser.add_argument(
        "--tt-tables", type=int, default=default.tt_tables, help="largest tables in TT (%(default)s)"
    )
    parser.add_argument("--tt-rank", type=int, default=default.tt_rank, help="their rank (%(default)s)")
    parser.add_argument("--max-rows", type=int, help="cut the tables to so many rows, for a quick look")
    kinds = [k for k in default.tables if k != "fbgemm" or importlib.util.find_spec("fbgemm_gpu")]
    parser.add_argument(
        "--tables",
        nargs="+",
        choices=default.tables,
        default=kinds,
        help="candidates' kinds of tables; dense takes 2.2 GB, fbgemm 4.4 (%(default)s)",
    )
    parser.add_argument(
        "--dlrm-script", type=Path, help="the DLRM repository's dlrm_s_pytorch.py, to run beside"
    )
    parser.add_argument(
        "--dlrm-python", default=default.dlrm_python, help="the Python that runs it (%(default)s)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("benchmarks/results/train_throughput.json"),
        help="the record (%(default)s)",
    )


def run(args: argparse.Namespace) -> Outcome:
    """Measures, writes the record, prints a table."""
    script: Path | None = args.dlrm_script
    settings = Settings(
        batch_sizes=tuple(args.batch_size),
        rounds=args.rounds,
        steps=args.steps,
        tt_tables=args.tt_tables,
        tt_rank=args.tt_rank,
        max_rows=args.max_rows,
        tables=tuple(args.tables),
        dlrm_script=script.expanduser().resolve() if script else None,
        dlrm_python=str(Path(args.dlrm_python).expanduser()),
    )
    with ConsoleProgress() as progress:
        rows = measure(settings, progress)
    write_record(args.out, "train_throughput", rows, rows_of_tables=list(settings.rows))
    width = max(len(str(row["candidate"])) for row in rows)
    lines = [f"{'':{width}}  {'B':>6} {'median':>9} {'p20':>8} {'p80':>8} {'samples/s':>10} {'x script':>9}"]
    for row in rows:
        ratio = "" if row["ratio_to_script"] is None else f"{row['ratio_to_script']:.2f}"
        times = f"{row['median_ms']:>6.2f} ms {row['p20_ms']:>8.2f} {row['p80_ms']:>8.2f}"
        where = f"{row['candidate']:{width}}  {row['batch_size']:>6}"
        lines.append(f"{where} {times} {row['samples_per_s']:>10} {ratio:>9}")
    return Outcome("\n".join([*lines, f"\nwritten: {args.out}"]), {"rows": rows, "record": str(args.out)})
