"""`recsys-opt bench tt`: a tensor-train table's lookup and update beside dense ones."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recsys_opt.bench.record import write_record
from recsys_opt.bench.tt import run as measure
from recsys_opt.bench.tt_cases import CANDIDATES, IDS, PRESETS, WORKS, Settings
from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.progress import ConsoleProgress

EXAMPLE = "recsys-opt bench tt --preset floors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    default = Settings()
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        help="floors: what the README quotes (4 minutes); full: every rank, dimension and batch; "
        "the flags that a preset varies are then its own (default: the combinations of the flags)",
    )
    parser.add_argument("--rows", type=int, default=default.num_embeddings, help="%(default)s")
    parser.add_argument(
        "--dim", type=int, nargs="+", default=list(default.embedding_dims), metavar="D", help="columns (16)"
    )
    parser.add_argument("--rank", type=int, nargs="+", default=list(default.ranks), metavar="R")
    parser.add_argument("--p", type=_numbers, metavar="N,N,N", help="row factors (default: published ones)")
    parser.add_argument(
        "--q", type=_numbers, nargs="+", default=[], metavar="N,N,N", help="column factors, one or several"
    )
    parser.add_argument("--bag-size", type=int, nargs="+", default=list(default.bag_sizes), metavar="L")
    parser.add_argument("--batch-size", type=int, nargs="+", default=list(default.batch_sizes), metavar="B")
    parser.add_argument("--ids", nargs="+", choices=IDS, default=list(default.ids))
    parser.add_argument("--threads", type=int, nargs="+", default=list(default.threads), metavar="N")
    parser.add_argument("--work", nargs="+", choices=WORKS, default=list(default.works))
    parser.add_argument("--rounds", type=int, default=default.rounds, help="turns (%(default)s)")
    parser.add_argument(
        "--block-ms", type=float, default=default.block_ms, help="a candidate's turn, about (%(default)s)"
    )
    parser.add_argument("--device", default=default.device, help="cpu or cuda (%(default)s)")
    parser.add_argument(
        "--candidates",
        nargs="+",
        choices=CANDIDATES,
        default=list(default.candidates),
        help="; ".join(f"{name}: {what}" for name, what in CANDIDATES.items()).replace("%", "%%"),
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("benchmarks/results/tt_cpu.json"),
        help="the record (%(default)s)",
    )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def run(args: argparse.Namespace) -> Outcome:
    """Measures, writes the record, prints a table."""
    settings = Settings(
        num_embeddings=args.rows,
        embedding_dims=tuple(args.dim),
        ranks=tuple(args.rank),
        tt_p_shapes=args.p,
        tt_q_shapes=tuple(args.q),
        bag_sizes=tuple(args.bag_size),
        batch_sizes=tuple(args.batch_size),
        ids=tuple(args.ids),
        threads=tuple(args.threads),
        works=tuple(args.work),
        rounds=args.rounds,
        block_ms=args.block_ms,
        device=args.device,
        candidates=tuple(args.candidates),
    )
    preset = PRESETS[args.preset](settings) if args.preset else [settings]
    with ConsoleProgress() as progress:
        rows = measure(preset, progress)
    write_record(args.out, "tt_cpu", rows)
    return Outcome(f"{_text(rows)}\nwritten: {args.out}", {"rows": rows, "record": str(args.out)})


def _text(rows: Sequence[Mapping[str, Any]]) -> str:
    """One block per case and work, one line per candidate."""
    lines: list[str] = []
    title = ""
    for row in rows:
        case = (
            f"{row['num_embeddings']:,} x {row['embedding_dim']}, {row['shapes']}, R={row['rank']}, "
            f"{row['ids']}, {row['bag_size']} x {row['batch_size']} ids, {row['threads']} thread(s): "
            f"{row['work']}"
        )
        if case != title:
            title = case
            lines += [
                "",
                case,
                f"  {'':10}{'us':>11}{'p20':>11}{'p80':>11}{'x nn.EmbeddingBag':>26}{'MB':>10}",
            ]
        ratio = (
            f"{row['ratio']:.2f} ({row['ratio_p20']:.2f}-{row['ratio_p80']:.2f})" if "ratio" in row else ""
        )
        lines.append(
            f"  {row['candidate']:10}{row['median_us']:11,.1f}{row['p20_us']:11,.1f}{row['p80_us']:11,.1f}"
            f"{ratio:>26}{row['storage_bytes'] / 1e6:10.1f}"
        )
    return "\n".join(lines[1:])
