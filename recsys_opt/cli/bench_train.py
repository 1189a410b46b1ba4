"""`recsys-opt bench train`: a DLRM's training step with tensor trains beside dense tables of three makes."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from recsys_opt.allocator import keeping_freed_memory
from recsys_opt.bench.record import write_record
from recsys_opt.bench.train import Settings
from recsys_opt.bench.train import run as measure
from recsys_opt.bench.train_models import TABLES
from recsys_opt.cli.arguments import add_record_argument, shape
from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.progress import ConsoleProgress
from recsys_opt.embeddings.tt_shapes import column_factors
from recsys_opt.models.recipes import criteo_kaggle

EXAMPLE = "recsys-opt bench train --batch-size 2048 16384"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    parser.description = (
        f"{parser.description} They take turns in one process, which keeps freed memory as `train` "
        "does. With as many threads as cores, other work on the machine makes everybody's times jump: the "
        "record's core_wait_s tells how long the threads waited for a core."
    )
    default = Settings()
    parser.add_argument(
        "--batch-size",
        type=int,
        nargs="+",
        default=list(default.batch_sizes),
        metavar="B",
        help="rows of a step (%(default)s)",
    )
    parser.add_argument(
        "--rounds", type=int, default=default.rounds, help="turns of every candidate (%(default)s)"
    )
    parser.add_argument(
        "--block-ms", type=float, default=default.block_ms, help="a turn, about (%(default)s)"
    )
    parser.add_argument(
        "--tables",
        nargs="+",
        choices=TABLES,
        default=list(default.tables),
        help="candidates' kinds of tables. "
        + "; ".join(f"{name}: {what}" for name, what in TABLES.items())
        + ". nn and dense share 2.2 GB, fbgemm takes 2.2 more per algorithm (%(default)s)",
    )
    parser.add_argument(
        "--precision", nargs="+", choices=("fp32", "bf16"), default=list(default.precisions), help="of "
        "products: the MLPs' (autocast) and, in bf16, those of tensor trains where the processor multiplies "
        "bf16 (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--algorithm", nargs="+", choices=("sgd", "adagrad"), default=list(default.algorithms), help="update "
        "rules; nn has SGD alone (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--ids", choices=("criteo", "uniform"), default=default.ids, help="criteo: rows like Kaggle's, from "
        "the generator; uniform: every row of a table alike (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--tt-tables", type=int, default=default.tt_tables, help="largest tables in TT (%(default)s)"
    )
    parser.add_argument("--tt-rank", type=int, default=default.tt_rank, help="their rank (%(default)s)")
    parser.add_argument(
        "--tt-q",
        type=shape,
        metavar="N,N,N",
        help="their column factors, e.g. 2,1,8 (the library's default)",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="of torch (default: its own choice)")
    parser.add_argument("--max-rows", type=int, help="cut the tables to so many rows, for a quick look")
    parser.add_argument(
        "--dlrm-script", type=Path, help="the DLRM repository's dlrm_s_pytorch.py, to run beside"
    )
    parser.add_argument(
        "--dlrm-python", default=default.dlrm_python, help="the Python that runs it (%(default)s)"
    )
    add_record_argument(parser, "train_throughput.json")


def run(args: argparse.Namespace) -> Outcome:
    """Measures, writes the record, prints a table."""
    script: Path | None = args.dlrm_script
    settings = Settings(
        batch_sizes=tuple(args.batch_size),
        rounds=args.rounds,
        block_ms=args.block_ms,
        tables=tuple(args.tables),
        precisions=tuple(args.precision),
        algorithms=tuple(args.algorithm),
        ids=args.ids,
        tt_tables=args.tt_tables,
        tt_rank=args.tt_rank,
        tt_q_shapes=args.tt_q,
        threads=args.threads,
        max_rows=args.max_rows,
        dlrm_script=script.expanduser().resolve() if script else None,
        dlrm_python=str(Path(args.dlrm_python).expanduser()),
    )
    with ConsoleProgress() as progress, keeping_freed_memory() as keeps_memory:
        rows = measure(settings, progress)
    extra = {
        "ids": args.ids,
        "tt_tables": args.tt_tables,
        "tt_rank": args.tt_rank,
        "tt_q": args.tt_q or column_factors(criteo_kaggle().embedding_dim, 3),
        "threads": args.threads or torch.get_num_threads(),
        "keeps_freed_memory": keeps_memory,
    }
    write_record(args.record, "train_throughput", rows, rows_of_tables=list(settings.rows), **extra)
    return Outcome(f"{_text(rows)}\n\nwritten: {args.record}", {"rows": rows, "record": str(args.record)})


def _text(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line per candidate, at most 100 columns; ratios are times, so below 1 is faster."""
    others = [o for o in ("nn", "fbgemm", "script") if any(f"ratio_to_{o}" in row for row in rows)]
    heads = {"nn": "/ nn.EmbeddingBag", "fbgemm": "/ FBGEMM", "script": "/ script"}
    lines = [f"{'step, ms':18}{'B':>6}{'median':>9}{'p20':>8}{'p80':>8}{'rows/s':>9}"]
    lines[0] += "".join(f"{heads[o]:>19}" for o in others)
    for row in rows:
        lines.append(
            f"{row['candidate'][:18]:18}{row['batch_size']:>6}{row['median_ms']:>9.2f}{row['p20_ms']:>8.2f}"
            f"{row['p80_ms']:>8.2f}{row['samples_per_s']:>9,}"
            + "".join(f"{_ratio(row.get(f'ratio_to_{o}')):>19}" for o in others)
        )
    return "\n".join(lines)


def _ratio(found: Mapping[str, float] | None) -> str:
    return "" if found is None else f"{found['median']:.3f} ({found['p20']:.2f}-{found['p80']:.2f})"
