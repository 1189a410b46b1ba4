"""`recsys-opt bench tt`: a tensor-train table's lookup and update beside dense ones."""

from __future__ import annotations

import argparse

from recsys_opt.bench.record import write_csv, write_record
from recsys_opt.bench.tt import run as measure
from recsys_opt.bench.tt_cases import CANDIDATES, IDS, PRESETS, WORKS, Settings
from recsys_opt.bench.tt_report import plot, text
from recsys_opt.cli.arguments import add_record_argument, shape
from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.progress import ConsoleProgress
from recsys_opt.files import write_text

EXAMPLE = "recsys-opt bench tt --preset floors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    default = Settings()
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        help="floors: what the README quotes (8 minutes); full: every rank, dimension and batch; "
        "the flags that a preset varies are then its own (default: the combinations of the flags)",
    )
    parser.add_argument("--rows", type=int, default=default.num_embeddings, help="of the table (%(default)s)")
    parser.add_argument(
        "--dim",
        type=int,
        nargs="+",
        default=list(default.embedding_dims),
        metavar="D",
        help="columns of the table (%(default)s)",
    )
    parser.add_argument(
        "--rank",
        type=int,
        nargs="+",
        default=list(default.ranks),
        metavar="R",
        help="of every bond (%(default)s)",
    )
    parser.add_argument("--p", type=shape, metavar="N,N,N", help="row factors (default: published ones)")
    parser.add_argument(
        "--q",
        type=shape,
        nargs="+",
        default=[],
        metavar="N,N,N",
        help="column factors, one or several (default: with published row factors 2,2,4, else the library's)",
    )
    parser.add_argument(
        "--bag-size",
        nargs="+",
        type=int,
        metavar="L",
        default=list(default.bag_sizes),
        help="ids of a bag (%(default)s)",
    )
    parser.add_argument(
        "--batch-size",
        nargs="+",
        type=int,
        metavar="B",
        default=list(default.batch_sizes),
        help="bags of a batch (%(default)s)",
    )
    parser.add_argument(
        "--ids",
        nargs="+",
        choices=IDS,
        default=list(default.ids),
        help="their distribution (%(default)s)",
    )
    parser.add_argument(
        "--threads",
        nargs="+",
        type=int,
        metavar="N",
        default=list(default.threads),
        help="of the op (%(default)s)",
    )
    parser.add_argument(
        "--work",
        nargs="+",
        choices=WORKS,
        default=list(default.works),
        help="what is timed (%(default)s)",
    )
    parser.add_argument("--rounds", type=int, default=default.rounds, help="turns (%(default)s)")
    parser.add_argument(
        "--block-ms", type=float, default=default.block_ms, help="a candidate's turn, about (%(default)s)"
    )
    parser.add_argument(
        "--cold",
        action="store_true",
        help="empty the caches before each call, as a model's other layers do (default: a candidate's calls "
        "follow each other; their batches are new, so that only rows in common are in the caches)",
    )
    parser.add_argument("--device", default=default.device, help="cpu or cuda (%(default)s)")
    parser.add_argument(
        "--candidates",
        nargs="+",
        choices=CANDIDATES,
        default=list(default.candidates),
        help="; ".join(f"{name}: {what}" for name, what in CANDIDATES.items()).replace("%", "%%"),
    )
    add_record_argument(parser, "tt_cpu.json", also="; the same rows go beside it as .csv, a figure as .svg")


def run(args: argparse.Namespace) -> Outcome:
    """Measures; writes the record, the same rows as CSV, and a figure; prints a table."""
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
        cold=args.cold,
        device=args.device,
        candidates=tuple(args.candidates),
    )
    preset = PRESETS[args.preset](settings) if args.preset else [settings]
    with ConsoleProgress() as progress:
        result = measure(preset, progress)
    ceilings = [c.to_json() for c in result.ceilings]
    write_record(args.record, "tt", result.rows, ceilings=ceilings)
    write_csv(args.record.with_suffix(".csv"), result.rows)
    write_text(args.record.with_suffix(".svg"), plot(result.rows))
    return Outcome(
        f"{text(result.rows, result.ceilings)}\n\nwritten: {args.record}, .csv and .svg",
        {"rows": result.rows, "ceilings": ceilings, "record": str(args.record)},
    )
