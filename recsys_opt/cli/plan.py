"""`recsys-opt plan`: which rows of which tables go to which device and tier."""

from __future__ import annotations

import argparse

from recsys_opt.cli.subverbs import add_subverbs

EXAMPLE = """recsys-opt plan stats.npz --hardware h100:devices=8,hbm=24GB --embedding-dim 64 --out plan.json
  recsys-opt plan show plan.json
  recsys-opt plan what-if plan.json --hbm +8GB --devices 16"""
DEFAULT = "make"
"""The sub-verb where none is named: `recsys-opt plan stats.npz` makes a plan."""

SUBVERBS: dict[str, tuple[str, str]] = {
    "make": ("recsys_opt.cli.plan_make", "make a plan from access statistics (the default)"),
    "show": ("recsys_opt.cli.plan_show", "show a plan: load of each device, places of the tables"),
    "explain": ("recsys_opt.cli.plan_explain", "say why a table is where it is, and what else it could be"),
    "diff": ("recsys_opt.cli.plan_diff", "compare two plans: rows and bytes that move"),
    "what-if": ("recsys_opt.cli.plan_what_if", "plan again on other hardware, and compare"),
    "replay": ("recsys_opt.cli.plan_replay", "take later lookups through a plan, beside what it predicts"),
    "export": ("recsys_opt.cli.plan_export", "write a plan for TorchRec or other programs"),
    "check": ("recsys_opt.cli.plan_check", "check that a plan holds and that its inputs have not changed"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-verbs."""
    add_subverbs(parser, SUBVERBS)
