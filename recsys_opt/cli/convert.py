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

EXAMPLE = """recsys-opt convert runs/dense --out runs/fit --tt-threshold 100k --tt-rank 32

then, to see what it costs, and to win it back:
  recsys-opt train kaggle/ --out runs/fit --evaluate-only test
  recsys-opt train kaggle/ --out runs/tuned --init-from runs/fit --core-lr 0.002 --mlp-lr 0.0005
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
        "norm, every row alike",
    )
    parser.add_argument(
        "--count-from",
        metavar="DATASET",
        help="the dataset whose training rows say how often each row of a table is looked up (default: the "
        "one that RUN was trained on, if it is still there)",
    )
    settings = parser.add_argument_group(
        "what the tables of RUN2 are",
        "A dense table that these name is fitted, with --tt-fit counts by weighted least squares: a row "
        "counts as often as the training rows look it up; one that they never look up may become anything "
        "small. A tensor train that they name is rounded: cut to "
        "the rank asked for, with the least error; zeros fill a larger one. A tensor train that they do not "
        "name becomes a dense table again, so name all that should stay one.",
    )
    add_config_arguments(settings, CompressionConfig, leave_out=frozenset({"tt_options"}))


def run(args: argparse.Namespace) -> Outcome:
    """Fits, writes the new run, prints sizes and errors."""
    compression: CompressionConfig = replaced(CompressionConfig(), config_changes(args))
    with ConsoleProgress() as progress:
        done = convert_run(
            args.run,
            args.out,
            compression,
            tolerance=args.tolerance,
            count_from=args.count_from,
            progress=progress,
        )
    text = f"{_table(done.fits)}\nfitted: {done.weighting}\nwritten: {args.out}"
    tables = [fit.to_json() for fit in done.fits]
    return Outcome(text, {"run": args.out, "tables": tables, "weighting": done.weighting})


def _table(fits: Sequence[TableFit]) -> str:
    lines = [
        f"{'table':<8}{'rows':>12}{'before':>12}{'after':>12}{'smaller':>9}"
        f"  {'ranks':<12}{'error':>9}{'weighted':>10}{'time':>8}"
    ]
    for fit in fits:
        weighted = "-" if fit.weighted_error is None else f"{fit.weighted_error:.3g}"
        lines.append(
            f"{fit.name:<8}{fit.num_embeddings:>12,}{_megabytes(fit.bytes_before):>12}"
            f"{_megabytes(fit.bytes_after):>12}{fit.bytes_before / fit.bytes_after:>8.1f}x  "
            f"{','.join(map(str, fit.tt_ranks)) or '-':<12}{fit.fit_error:>9.3g}{weighted:>10}"
            f"{fit.seconds:>6.1f} s"
        )
    text = (
        "error: distance to the old table, as a share of its norm; weighted: each row as often as looked up"
    )
    return "\n".join([*lines, text])


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.2f} MB"
