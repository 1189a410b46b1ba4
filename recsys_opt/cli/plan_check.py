"""`recsys-opt plan check`: a plan against its inputs as they are now."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

from recsys_opt.cli.outcome import Outcome
from recsys_opt.data.access_statistics import AccessStatistics
from recsys_opt.errors import InputError
from recsys_opt.plan import Plan
from recsys_opt.planner.check import problems
from recsys_opt.planner.hardware import Hardware
from recsys_opt.planner.inputs import PlanInputs, settings_of
from recsys_opt.planner.problem import planned_tables
from recsys_opt.tables import TableConfig

EXAMPLE = "recsys-opt plan check plan.json --hardware hardware.toml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("plan", type=Path, metavar="PLAN", help="plan.json")
    parser.add_argument("--stats", type=Path, metavar="NPZ", help="the statistics (default: the plan's)")
    parser.add_argument("--hardware", metavar="HW", help="the hardware it is to run on (default: the plan's)")


def run(args: argparse.Namespace) -> Outcome:
    """Checks; exit code 1 where something is wrong or stale."""
    plan = Plan.load(args.plan)
    hardware = Hardware.load(args.hardware) if args.hardware else Hardware.from_json(plan.hardware)
    settings = settings_of(plan)
    stale = []
    said = plan.inputs.get("hardware", {}).get("sha256")
    if said and said != hardware.sha256:
        stale.append(f"the plan is for other hardware than {hardware.name}: plan again, or give that of then")
    try:
        tables = PlanInputs.of(plan, args.stats).tables
    except InputError as error:
        path = args.stats or plan.inputs.get("statistics", {}).get("path")
        if path is None or not Path(path).exists():
            raise
        stale.append(str(error))
        configs = [TableConfig(t.name, t.num_embeddings, t.embedding_dim) for t in plan.tables]
        tables = planned_tables(AccessStatistics.load(path), configs)
    wrong = problems(plan, tables, hardware, settings)
    if stale:  # costs are those of then
        wrong = [w for w in wrong if "the plan says" not in w and "the bound" not in w]
    lines = [*(f"stale: {s}" for s in stale), *(f"wrong: {w}" for w in wrong[:20])]
    if len(wrong) > 20:
        lines.append(f"... and {len(wrong) - 20} more")
    fine = not stale and not wrong
    if fine:
        lines = [
            f"{len(plan.tables):,} tables on {plan.num_devices} devices: every row has one place, every "
            "device has room, costs are as the plan says, inputs are unchanged"
        ]
    text = "\n".join(textwrap.fill(line, 100, subsequent_indent="  ") for line in lines)
    return Outcome(text, {"ok": fine, "stale": stale, "wrong": wrong}, 0 if fine else 1)
