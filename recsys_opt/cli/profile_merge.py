"""`recsys-opt profile merge`: one profile of several, measured on different machines."""

from __future__ import annotations

import argparse
from pathlib import Path

from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.profile_text import lines_of
from recsys_opt.cli.profile_values import accuracies
from recsys_opt.cli.values import output_file
from recsys_opt.serving.merging import merged
from recsys_opt.serving.profile import Profile

EXAMPLE = """recsys-opt profile merge cpu.json gpu.json --out profile.json
  recsys-opt profile merge cpu.json --paths table@cpu,dhe@cpu --accuracy dhe=0.7894 --out p.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    parser.add_argument("profiles", type=Path, nargs="+", metavar="PROFILE", help="profile.json files")
    parser.add_argument("--out", type=output_file, required=True, metavar="FILE", help="the profile to write")

    parser.add_argument(
        "--accuracy",
        type=accuracies,
        default={},
        metavar="NAME=X,..",
        help="accuracies to put in the place of the profiles', by the paths' names before the @, e.g. "
        "published ones; the profile says so",
    )
    parser.add_argument(
        "--paths", type=words, metavar="A,B,..", help="leave out all others (default: keep all)"
    )


def words(text: str) -> list[str]:
    """Names with commas between them."""
    return [name for name in text.split(",") if name]


def run(args: argparse.Namespace) -> Outcome:
    """Merges and writes."""
    profile = merged([Profile.load(path) for path in args.profiles])
    if args.paths is not None:
        profile = profile.with_paths(args.paths)
    profile = profile.with_accuracies(args.accuracy)
    profile.save(args.out)
    return Outcome("\n".join([*lines_of(profile), "", f"written: {args.out}"]), profile.to_json())
