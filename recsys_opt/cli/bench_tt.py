"""`recsys-opt bench tt`: a tensor-train table's lookup and update beside dense ones."""

from __future__ import annotations

import argparse
from pathlib import Path

from recsys_opt.bench.record import write_record
from recsys_opt.bench.tt import CANDIDATES, IDS, Settings
from recsys_opt.bench.tt import run as measure
from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.progress import ConsoleProgress

EXAMPLE = "recsys-opt bench tt --batch-size 2048 65536 --rank 16 32 --threads 1 2"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    default = Settings()
    parser.add_argument("--rows", type=int, default=default.num_embeddings, help="%(default)s")
    parser.add_argument("--dim", type=int, default=default.embedding_dim, help="columns (%(default)s)")
    parser.add_argument("--rank", type=int, nargs="+", default=list(default.ranks), metavar="R")
    parser.add_argument("--batch-size", type=int, nargs="+", default=list(default.batch_sizes), metavar="B")
    parser.add_argument("--ids", nargs="+", choices=IDS, default=list(default.ids))
    parser.add_argument("--threads", type=int, nargs="+", default=list(default.threads), metavar="N")
    parser.add_argument("--repeats", type=int, default=default.repeats, help="turns (%(default)s)")
    parser.add_argument(
        "--candidates",
        nargs="+",
        choices=CANDIDATES,
        default=list(default.candidates),
        help="dense: nn.EmbeddingBag; fbgemm: its fused table; torch: a tensor train by gathers and batched "
        "products; tt: TTEmbeddingBag (%(default)s)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("benchmarks/results/tt_cpu.json"),
        help="the record (%(default)s)",
    )


def run(args: argparse.Namespace) -> Outcome:
    """Measures, writes the record, prints a table."""
    settings = Settings(
        num_embeddings=args.rows,
        embedding_dim=args.dim,
        ranks=tuple(args.rank),
        batch_sizes=tuple(args.batch_size),
        ids=tuple(args.ids),
        threads=tuple(args.threads),
        repeats=args.repeats,
        candidates=tuple(args.candidates),
    )
    with ConsoleProgress() as progress:
        rows = measure(settings, progress)
    write_record(args.out, "tt_cpu", rows, num_embeddings=args.rows, embedding_dim=args.dim)
    header = ("threads", "rank", "ids", "B", "work", *settings.candidates)
    table: dict[tuple[object, ...], dict[str, str]] = {}
    for row in rows:
        key = (row["threads"], row["rank"], row["ids"], row["batch_size"], row["work"])
        table.setdefault(key, {})[row["candidate"]] = f"{row['median_us']:.0f}"
    cells = [[str(v) for v in key] + [found[c] for c in settings.candidates] for key, found in table.items()]
    widths = [max(len(str(line[i])) for line in (header, *cells)) for i in range(len(header))]
    lines = ["  ".join(f"{v:>{w}}" for v, w in zip(line, widths, strict=True)) for line in (header, *cells)]
    note = f"\nmedian us per batch; spread in {args.out}"
    return Outcome("\n".join([*lines, note]), {"rows": rows, "record": str(args.out)})
