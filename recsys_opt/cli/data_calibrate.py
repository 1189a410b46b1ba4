"""`recsys-opt data calibrate`: measures the generator's statistics on a sample of real rows."""

from __future__ import annotations

import argparse
from pathlib import Path

from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.progress import ConsoleProgress
from recsys_opt.cli.values import output_file

EXAMPLE = "recsys-opt data calibrate kaggle_sample.tsv.gz --out statistics.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument(
        "sample",
        type=Path,
        help="labelled Criteo rows in time order, drawn from the whole period; text or .gz",
    )
    parser.add_argument(
        "--out", type=output_file, required=True, metavar="JSON", help="statistics file to write"
    )
    parser.add_argument("--name", default="criteo_kaggle", help="the profile's name (default criteo_kaggle)")
    parser.add_argument(
        "--cardinalities",
        default="kaggle",
        metavar="NAME",
        help="of the 26 columns in the whole data set, 'missing' included: a published setting's name, or 26 "
        "numbers separated by commas (default kaggle)",
    )
    parser.add_argument(
        "--bayes-auc",
        type=float,
        default=0.805,
        help="best AUC that the generated labels shall allow (default .805)",
    )


def run(args: argparse.Namespace) -> Outcome:
    """Measures and writes the statistics."""
    from recsys_opt.data.calibration import calibrate, probe
    from recsys_opt.data.descriptor import published_cardinalities
    from recsys_opt.data.sample import read_sample
    from recsys_opt.data.statistics import write_statistics
    from recsys_opt.errors import InputError

    published = published_cardinalities()
    try:
        cardinalities = published.get(args.cardinalities) or [int(k) for k in args.cardinalities.split(",")]
    except ValueError:
        raise InputError(
            f"--cardinalities {args.cardinalities!r}: give one of {', '.join(published)}, or 26 whole "
            "numbers separated by commas"
        ) from None
    if args.out.suffix != ".json":
        raise InputError(f"--out {args.out}: a statistics file's name ends in .json")
    sample = read_sample(args.sample)
    with ConsoleProgress() as progress:
        statistics = calibrate(
            sample,
            cardinalities,
            name=args.name,
            bayes_auc=args.bayes_auc,
            source={"rows": len(sample.labels), "sha256_of_text": sample.sha256},
            progress=progress,
        )
    write_statistics(args.out, statistics)
    auc, rate = probe(statistics)
    size = args.out.stat().st_size
    text = (
        f"{args.out}: {size:,} bytes from {statistics.rows:,} rows; generated labels: Bayes AUC {auc:.4f}, "
        f"click rate {rate:.4f}"
    )
    return Outcome(text, {"path": str(args.out), "bytes": size, "bayes_auc": auc, "click_rate": rate})
