"""`recsys-opt profile show`: a profile for a person."""

from __future__ import annotations

import argparse
from pathlib import Path

from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.profile_text import lines_of
from recsys_opt.serving.profile import Profile

EXAMPLE = "recsys-opt profile show profile.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    parser.add_argument("profile", type=Path, metavar="PROFILE", help="profile.json")


def run(args: argparse.Namespace) -> Outcome:
    """Prints the profile."""
    profile = Profile.load(args.profile)
    return Outcome("\n".join(lines_of(profile)), profile.to_json())
