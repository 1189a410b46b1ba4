"""`recsys-opt convert`: a trained run's tables fitted by tensor trains, cut to less rank, or made dense."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from recsys_opt.cli.arguments import add_config_arguments, config_changes
from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.progress import ConsoleProgress
from recsys_opt.models.convert import TableFit
from recsys_opt.training.config import CompressionConfig, replaced
from recsys_opt.training.initial import convert_run

EXAMPLE = """recsys-opt convert runs/dense --out runs/svd --tt-threshold 100k --tt-rank 32

then, to see what it costs, and to win it back:
  recsys-opt train kaggle/ --out runs/svd --evaluate-only test
  recsys-opt train kaggle/ --out runs/tuned --init-from runs/svd --core-lr 0.002 --mlp-lr 0.0005
to cut the ranks of a run trained with tensor trains, and to write out its tables:
  recsys-opt convert runs/tuned --out runs/rounded --tt-threshold 100k --tolerance 0.1
  recsys-opt convert runs/tuned --out runs/written"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the run folders and the fields of CompressionConfig."""
    parser.add_argument("run", metavar="RUN", help="a trained run folder")
    parser.add_argument("--out", required=True, metavar="RUN2", help="the run folder to write")
    parser.add_argument(
        "--tolerance",
        type=float,
        metavar="SHARE",
        help="instead of --tt-rank: each table gets the least ranks whose error is within this share of its "
        "norm",
    )
    settings = parser.add_argument_group(
        "what the tables of RUN2 are",
        "A dense table that these name is fitted by TT-SVD. A tensor train that they name is rounded: cut to "
        "the rank asked for, with the least error; zeros fill a larger one. A tensor train that they do not "
        "name becomes a dense table again, so name all that should stay one.",
    )
    add_config_arguments(settings, CompressionConfig, leave_out=frozenset({"tt_options"}))


def run(args: argparse.Namespace) -> Outcome:
    """Fits, writes the new run, prints sizes and errors."""
    compression: CompressionConfig = replaced(CompressionConfig(), config_changes(args))
    with ConsoleProgress() as progress:
        fits = convert_run(args.run, args.out, compression, tolerance=args.tolerance, progress=progress)
    text = f"{_table(fits)}\nwritten: {args.out}"
    return Outcome(text, {"run": args.out, "tables": [fit.to_json() for fit in fits]})


def _table(fits: Sequence[TableFit]) -> str:
    lines = [
        f"{'table':<8}{'rows':>12}{'before':>12}{'after':>12}{'smaller':>9}"
        f"  {'ranks':<12}{'error':>9}{'time':>8}"
    ]
    for fit in fits:
        lines.append(
            f"{fit.name:<8}{fit.num_embeddings:>12,}{_megabytes(fit.bytes_before):>12}"
            f"{_megabytes(fit.bytes_after):>12}{fit.bytes_before / fit.bytes_after:>8.1f}x  "
            f"{','.join(map(str, fit.tt_ranks)) or '-':<12}{fit.fit_error:>9.3g}{fit.seconds:>6.1f} s"
        )
    return "\n".join(lines) + "\nerror: distance to the old table, as a share of its norm"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.2f} MB"
