"""`recsys-opt bench mapper`: how near ways to choose a device's paths come to the exact optimum."""

from __future__ import annotations

import argparse
from pathlib import Path

from recsys_opt.bench.mapper import run as measure
from recsys_opt.bench.mapper import text
from recsys_opt.bench.record import write_record
from recsys_opt.cli.arguments import add_record_argument
from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.progress import ConsoleProgress
from recsys_opt.cli.values import at_least
from recsys_opt.serving.profile import Profile

EXAMPLE = "recsys-opt bench mapper --profile benchmarks/results/profiles/kaggle_v100_published.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    parser.add_argument(
        "--cases",
        type=at_least(1),
        default=40,
        metavar="N",
        help="random ones of a size (default %(default)s)",
    )
    parser.add_argument(
        "--paths",
        type=at_least(1),
        nargs="+",
        default=[5, 10, 20],
        metavar="N",
        help="on each of one to three devices (default %(default)s)",
    )
    parser.add_argument("--profile", type=Path, metavar="PROFILE", help="a profile to map besides")
    parser.add_argument("--seed", type=int, default=0, help="of the random cases")
    add_record_argument(parser, "mapper.json")


def run(args: argparse.Namespace) -> Outcome:
    """Maps, writes the record, prints a table."""
    profile = None if args.profile is None else Profile.load(args.profile)
    rows = measure(args.cases, args.paths, profile, args.seed, progress=ConsoleProgress())
    assumed = None if profile is None else profile.assumption()
    if args.record is not None:
        write_record(args.record, "mapper", rows, assumed=assumed)
    lines = [text(rows)] + ([] if assumed is None else ["", assumed])
    return Outcome("\n".join(lines), {"rows": rows, "assumed": assumed})
