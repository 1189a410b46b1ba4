"""`recsys-opt profile merge`: one profile of several, measured on different machines."""

from __future__ import annotations

import argparse
from pathlib import Path

from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.profile_text import lines_of
from recsys_opt.cli.values import output_file
from recsys_opt.serving.profile import Profile, merged

EXAMPLE = "recsys-opt profile merge cpu.json gpu.json --out profile.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    parser.add_argument("profiles", type=Path, nargs="+", metavar="PROFILE", help="profile.json files")
    parser.add_argument("--out", type=output_file, required=True, metavar="FILE", help="the profile to write")


def run(args: argparse.Namespace) -> Outcome:
    """Merges and writes."""
    profile = merged([Profile.load(path) for path in args.profiles])
    profile.save(args.out)
    return Outcome("\n".join([*lines_of(profile), "", f"written: {args.out}"]), profile.to_json())
