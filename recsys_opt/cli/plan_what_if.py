"""`recsys-opt plan what-if`: the same tables on other hardware or with other settings."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.plan_diff import amounts
from recsys_opt.cli.plan_make import add_setting_arguments, changed_settings
from recsys_opt.cli.plan_text import certificate, clipped
from recsys_opt.cli.values import output_file
from recsys_opt.data.plan_ranking import plan_ranking
from recsys_opt.errors import InputError
from recsys_opt.plan import Plan, slow_share
from recsys_opt.planner.compare import compare_plans
from recsys_opt.planner.hardware import Hardware, Tier
from recsys_opt.planner.inputs import PlanInputs, orders_between
from recsys_opt.planner.renumber import renumbered
from recsys_opt.planner.solve import make_plan
from recsys_opt.quantities import byte_size
from recsys_opt.report.page import megabytes, milliseconds

EXAMPLE = """recsys-opt plan what-if plan.json --hbm +8GB
  recsys-opt plan what-if plan.json --gpus 32 --batch-size 131072 --out plan32.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("plan", type=Path, metavar="PLAN", help="plan.json")
    parser.add_argument("--stats", type=Path, metavar="NPZ", help="the plan's statistics, if they have moved")
    parser.add_argument("--hbm", metavar="SIZE", help="fast memory of a device: 40GB, +8GB, or --hbm=-8GB")
    parser.add_argument("--uvm", metavar="SIZE", help="slow memory of a device: 128GB, or +64GB")
    parser.add_argument(
        "--gpus", "--devices", dest="gpus", type=int, metavar="N", help="devices, in nodes as large as now"
    )
    parser.add_argument("--hardware", metavar="HW", help="other hardware altogether, as in plan make")
    parser.add_argument("--out", type=output_file, metavar="FILE", help="the new plan.json to write")
    add_setting_arguments(parser)


def run(args: argparse.Namespace) -> Outcome:
    """Plans again and compares."""
    before = Plan.load(args.plan)
    inputs = PlanInputs.of(before, args.stats)
    hardware = changed_hardware(inputs.hardware, args)
    settings = changed_settings(inputs.settings, args)
    files = {**inputs.files, "hardware": {"path": "", "sha256": hardware.sha256}}
    after = make_plan(inputs.tables, hardware, settings, inputs=files)
    # Like devices take the numbers that leave most bytes in place.
    sizes = {t.name: settings.row_bytes(t.embedding_dim) for t in after.tables}
    rankings = [plan_ranking(plan, inputs.statistics) for plan in (before, after)]
    orders = orders_between(before, after, *rankings)
    after = renumbered(before, after, sizes, orders)
    moves = compare_plans(before, after, sizes, orders)
    if args.out is not None:
        after.save(args.out)
    lines = [f"{'':<22}{'now':>14}{'then':>14}"]
    rows = [
        ("devices", f"{before.num_devices}", f"{after.num_devices}"),
        ("batch", f"{before.batch_size:,}", f"{after.batch_size:,}"),
        *(
            (f"{tier.name} of a device", megabytes(tier.capacity_bytes), megabytes(then.capacity_bytes))
            for tier, then in ((inputs.hardware.fast, hardware.fast), (inputs.hardware.slow, hardware.slow))
        ),
        ("slowest device", milliseconds(before.seconds), milliseconds(after.seconds)),
        ("samples a second", f"{_rate(before):,.0f}", f"{_rate(after):,.0f}"),
        ("rows read there", f"{slow_share(before.devices):.2%}", f"{slow_share(after.devices):.2%}"),
        ("gap to the bound", f"{before.gap:.2%}", f"{after.gap:.2%}"),
    ]
    lines += [clipped(f"{name:<22}{a:>14}{b:>14}") for name, a, b in rows]
    lines[-2] = lines[-2].replace("rows read there", f"{hardware.slow.name} reads".ljust(15))
    lines += ["", *certificate(after), clipped(amounts(moves))]
    result = {
        "before": {"seconds": before.seconds, "gap": before.gap, "slow_share": slow_share(before.devices)},
        "after": {"seconds": after.seconds, "gap": after.gap, "slow_share": slow_share(after.devices)},
        "between_devices_bytes": sum(m.between_devices_bytes for m in moves),
        "between_tiers_bytes": sum(m.between_tiers_bytes for m in moves),
        "speedup": _rate(after) / _rate(before) if _rate(before) else None,
        "out": None if args.out is None else str(args.out),
    }
    return Outcome("\n".join(lines), result)


def changed_hardware(hardware: Hardware, args: argparse.Namespace) -> Hardware:
    """With what the command line says."""
    if args.hardware is not None:
        hardware = Hardware.load(args.hardware)
    if args.hbm is not None:
        hardware = replace(hardware, fast=_resized(hardware.fast, "--hbm", args.hbm))
    if args.uvm is not None:
        hardware = replace(hardware, slow=_resized(hardware.slow, "--uvm", args.uvm))
    if args.gpus is not None:
        per_node = min(hardware.devices_per_node, args.gpus)
        if args.gpus < 1 or args.gpus % per_node:
            raise InputError(
                f"--gpus (--devices) {args.gpus}: nodes have {hardware.devices_per_node} devices; give a "
                "multiple of it, or fewer for a part of one node"
            )
        hardware = replace(hardware, nodes=args.gpus // per_node, devices_per_node=per_node)
    return hardware


def _resized(tier: Tier, flag: str, text: str) -> Tier:
    sign = {"+": 1, "-": -1}.get(text[:1], 0)
    try:
        size = byte_size(text[1:] if sign else text)
    except ValueError as error:
        raise InputError(f"{flag} {text}: {error}") from None
    capacity = tier.capacity_bytes + sign * size if sign else size
    if capacity < 1:
        raise InputError(
            f"{flag} {text}: a device has {tier.capacity_bytes} bytes of {tier.name} now; {capacity} would "
            "be left"
        )
    return replace(tier, memory_bytes=capacity + tier.reserved_bytes)


def _rate(plan: Plan) -> float:
    return plan.batch_size / plan.seconds if plan.seconds else 0.0
