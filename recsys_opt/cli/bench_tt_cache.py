"""`recsys-opt bench tt-cache`: when holding frequent rows of a tensor train dense pays."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from recsys_opt.bench.record import write_record
from recsys_opt.bench.tt_cache import Settings, curves
from recsys_opt.bench.tt_cache import run as measure
from recsys_opt.cli.arguments import add_record_argument
from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.progress import ConsoleProgress
from recsys_opt.files import write_text

EXAMPLE = "recsys-opt bench tt-cache --fraction 0.001 0.01 --batch-size 2048"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    default = Settings()
    parser.add_argument("--rows", type=int, default=default.num_embeddings, help="of the table (%(default)s)")
    parser.add_argument("--dim", type=int, default=default.embedding_dim, help="columns (%(default)s)")
    parser.add_argument(
        "--rank", type=int, default=default.rank, metavar="R", help="of every bond (%(default)s)"
    )
    parser.add_argument(
        "--fraction",
        type=float,
        nargs="+",
        default=list(default.fractions),
        metavar="X",
        help="rows held, as a share of the table's (%(default)s)",
    )
    parser.add_argument(
        "--zipf",
        type=float,
        nargs="*",
        default=list(default.zipf_exponents),
        metavar="X",
        help="exponents of the ids' distributions, besides the uniform one (%(default)s)",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        nargs="+",
        default=list(default.batch_sizes),
        metavar="B",
        help="ids of a batch (%(default)s)",
    )
    parser.add_argument(
        "--threads", type=int, default=default.threads, metavar="N", help="of the op (%(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=default.rounds, help="turns (%(default)s)")
    parser.add_argument(
        "--refresh-every",
        type=int,
        default=default.refresh_every,
        metavar="N",
        help="steps over which the cost of a refresh is spread (%(default)s)",
    )
    add_record_argument(parser, "tt_cache_cpu.json", also="; the curves go beside it as .svg")


def run(args: argparse.Namespace) -> Outcome:
    """Measures, writes the record and the curves, prints a table."""
    settings = Settings(
        num_embeddings=args.rows,
        embedding_dim=args.dim,
        rank=args.rank,
        fractions=tuple(args.fraction),
        zipf_exponents=tuple(args.zipf),
        batch_sizes=tuple(args.batch_size),
        threads=args.threads,
        rounds=args.rounds,
        refresh_every=args.refresh_every,
    )
    with ConsoleProgress() as progress:
        rows = measure(settings, progress)
    write_record(args.record, "tt_cache", rows)
    figure = args.record.with_suffix(".svg")
    write_text(figure, curves(rows))
    result = {"rows": rows, "record": str(args.record), "figure": str(figure)}
    return Outcome(f"{_text(rows)}\nwritten: {args.record}, {figure}", result)


def _text(rows: Sequence[Mapping[str, Any]]) -> str:
    """One block per distribution, batch size and work, one line per candidate."""
    lines: list[str] = []
    title = ""
    for row in rows:
        case = f"{row['ids']}, {row['batch_size']} ids: {row['work']}"
        if case != title:
            title = case
            columns = f"{'us':>10}{'x tt':>8}{'x dense':>9}{'hits':>8}{'refresh':>11}{'x tt with it':>14}"
            lines += ["", case, f"  {'':12}{columns}{'MB':>9}"]
        hits = f"{100 * row['hit_rate']:.1f}%" if "hit_rate" in row else ""
        refresh = f"{row['refresh_ms']:.1f} ms" if "refresh_ms" in row else ""
        with_it = f"{row['with_refresh_to_tt']:.2f}" if "with_refresh_to_tt" in row else ""
        lines.append(
            f"  {row['candidate']:12}{row['median_us']:10,.0f}{row['ratio_to_tt']:8.2f}"
            f"{row['ratio_to_dense']:9.2f}{hits:>8}{refresh:>11}{with_it:>14}"
            f"{row['storage_bytes'] / 1e6:9.1f}"
        )
    return "\n".join(lines[1:])
