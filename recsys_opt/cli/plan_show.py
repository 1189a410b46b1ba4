"""`recsys-opt plan show`: a plan, read from its file alone."""

from __future__ import annotations

import argparse
from pathlib import Path

from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.plan_text import certificate, clipped, device_lines, kinds, table_lines
from recsys_opt.cli.values import at_least
from recsys_opt.plan import Plan

EXAMPLE = "recsys-opt plan show plan.json --top 50"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("plan", type=Path, metavar="PLAN", help="plan.json")
    parser.add_argument(
        "--top", type=at_least(1), default=20, metavar="N", help="tables to print (default 20)"
    )


def run(args: argparse.Namespace) -> Outcome:
    """Prints the plan."""
    plan = Plan.load(args.plan)
    name = plan.hardware.get("name", "unnamed hardware")
    lines = [
        clipped(f"{len(plan.tables):,} tables on {plan.num_devices} devices ({name}): {kinds(plan)}"),
        *certificate(plan),
        "",
        *device_lines(plan),
        "",
        *table_lines(plan, args.top),
    ]
    return Outcome("\n".join(lines), plan.to_json())
