"""`recsys-opt profile served`: a profile's paths as the server serves them."""

from __future__ import annotations

import argparse
from pathlib import Path

from recsys_opt.bench.as_served import Serving, measured_as_served
from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.profile_text import lines_of
from recsys_opt.cli.progress import ConsoleProgress
from recsys_opt.cli.simulate import seconds_of
from recsys_opt.cli.values import at_least, output_file

EXAMPLE = """recsys-opt profile served profile.json --runs runs/ --out served.json
  recsys-opt simulate served.json --policy adaptive --load 500"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    add = parser.add_argument
    add("profile", type=Path, metavar="PROFILE", help="profile.json, as `serve` takes it")
    add("--runs", type=Path, required=True, metavar="FOLDER", help="as `serve` takes it")
    add("--out", type=output_file, required=True, metavar="FILE", help="the profile to write")
    add("--paths", metavar="A,B,..", help="the profile's paths to serve (default: all that are measured)")
    add("--data", type=Path, metavar="DATASET", help="whose rows are sent (default: generated ones)")
    add("--seconds", type=seconds_of, default=20.0, metavar="TIME", help="of load for each path (20s)")
    add(
        "--share",
        type=float,
        default=0.6,
        metavar="X",
        help="of a path's capacity that is sent: at less a worker waits more often (%(default)s)",
    )
    add("--spin", type=seconds_of, default=Serving.spin_s, metavar="TIME", help="as `serve` takes it (500us)")
    add("--seed", type=at_least(0), default=0, metavar="N", help="default 0")


def run(args: argparse.Namespace) -> Outcome:
    """Serves, writes the profile, prints it."""
    with ConsoleProgress() as progress:
        profile = measured_as_served(
            Serving(args.profile, args.runs, args.data, args.spin),
            paths=[p.strip() for p in args.paths.split(",")] if args.paths else (),
            seconds=args.seconds,
            share=args.share,
            seed=args.seed,
            progress=progress,
        )
    profile.save(args.out)
    return Outcome("\n".join([*lines_of(profile), "", f"written: {args.out}"]), profile.to_json())
