"""`recsys-opt profile`: what each representation of a model on each device costs and is worth."""

from __future__ import annotations

import argparse

from recsys_opt.cli.subverbs import add_subverbs

EXAMPLE = """recsys-opt profile runs/table runs/tt --devices cpu --out profile.json
  recsys-opt profile assume runs/table runs/tt --gpu h100 --out gpu.json
  recsys-opt profile merge profile.json gpu.json --out both.json
  recsys-opt profile map both.json --memory cpu=4GB,gpu=200MB"""
DEFAULT = "make"
"""The sub-verb where none is named: `recsys-opt profile runs/table` makes a profile."""

SUBVERBS: dict[str, tuple[str, str]] = {
    "make": ("recsys_opt.cli.profile_make", "measure trained runs on this machine's devices (the default)"),
    "show": ("recsys_opt.cli.profile_show", "show a profile: paths, and their times by size of query"),
    "assume": ("recsys_opt.cli.profile_assume", "make a profile of a GPU that is not here, by its figures"),
    "served": ("recsys_opt.cli.profile_served", "measure a profile's paths inside the server"),
    "map": ("recsys_opt.cli.profile_map", "choose the paths that each device's memory holds"),
    "merge": ("recsys_opt.cli.profile_merge", "make one profile of those of several machines"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-verbs."""
    add_subverbs(parser, SUBVERBS)
