"""`recsys-opt plan --from OLD`: the plan that runs, made better for later statistics, at a limit to moves."""

from __future__ import annotations

import argparse
import hashlib
import math
import time
from pathlib import Path
from typing import Any, Literal

from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.plan_diff import table_moves
from recsys_opt.cli.plan_text import certificate, clipped, device_lines, kinds
from recsys_opt.data.plan_ranking import STATISTICS, plan_ranking, plan_statistics, statistics_path
from recsys_opt.errors import InputError
from recsys_opt.plan import Plan
from recsys_opt.planner.compare import compare_plans
from recsys_opt.planner.hardware import Hardware
from recsys_opt.planner.inputs import PlanInputs, orders_between, read_tables, tables_of
from recsys_opt.planner.problem import PlanSettings
from recsys_opt.planner.replan import Candidate, Replanned, replan
from recsys_opt.quantities import byte_size
from recsys_opt.report.page import megabytes, milliseconds

MIN_GAIN = "1%"
Decision = Literal["move", "retier", "keep"]
"""The new plan; the old one with its thresholds set anew, no table moves; the old one."""


def add_from_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds those that go with --from."""
    group = parser.add_argument_group("from the plan that runs")
    group.add_argument(
        "--from",
        dest="old",
        type=Path,
        metavar="PLAN",
        help="plan.json that runs now: tables, hardware and settings are its own where nothing else is said",
    )
    group.add_argument(
        "--move-limit",
        metavar="SIZE",
        help="bytes of weights and optimizer state that may go to other devices: 5GB, or a share of the "
        "model, 5%% (default: as many as help)",
    )
    group.add_argument(
        "--min-gain",
        metavar="SHARE",
        help="of the iteration's time that moves between devices must save, or tables stay where they are; "
        f"that new thresholds must save, or the old plan is kept: 2%%, 0.02 (default {MIN_GAIN}%)",
    )
    group.add_argument(
        "--from-stats", type=Path, metavar="NPZ", help="statistics of the plan that runs, if they have moved"
    )


def inputs_of(args: argparse.Namespace, old: Plan, settings: PlanSettings) -> PlanInputs:
    """The new problem: of the old plan, but for what the command line says."""
    hardware = Hardware.from_json(old.hardware, f"{args.old}: its hardware")
    name = old.inputs.get("hardware", {}).get("path", "")
    if args.hardware is not None:
        hardware, name = Hardware.load(args.hardware), args.hardware
    if args.tables is not None:
        tables = read_tables(args.tables)
    elif args.embedding_dim is not None:
        tables = args.embedding_dim
    else:
        return PlanInputs.gather(
            args.stats, tables_of(old), hardware, settings, hardware_name=name, names=str(args.old)
        )
    return PlanInputs.gather(args.stats, tables, hardware, settings, hardware_name=name)


def run_from(args: argparse.Namespace, old: Plan, inputs: PlanInputs) -> Outcome:
    """Plans from the old plan; prints and writes what is better, or the old plan."""
    if args.baselines:
        raise InputError("--baselines prices plans made anew; leave it out with --from")
    start = time.perf_counter()
    path = args.from_stats or statistics_path(old, folder=args.old.parent)
    statistics = plan_statistics(old, path=path)
    # The new plan says where they are now, if it deals rows by them.
    here = old.with_inputs({STATISTICS: {"path": str(path), "sha256": statistics.sha256}})
    model_bytes = sum(
        t.config.num_embeddings * inputs.settings.row_bytes(t.config.embedding_dim) for t in inputs.tables
    )
    limit = _limit(args.move_limit, model_bytes)
    least = _share("--min-gain", args.min_gain or MIN_GAIN)
    found = replan(here, statistics, inputs, move_limit=limit)
    took = time.perf_counter() - start
    decision, chosen = _decide(found, least)
    files = {"from": {"path": str(args.old), "sha256": hashlib.sha256(args.old.read_bytes()).hexdigest()}}
    plan = old if chosen is None else chosen.plan.with_inputs(files)
    if args.out is not None:
        plan.save(args.out)
    if args.html is not None:
        from recsys_opt.report.plan import write_plan_page

        write_plan_page(plan, {t.config.name: (t.rows, t.share) for t in inputs.tables}, args.html)
    lines = [
        clipped(
            f"{len(plan.tables):,} tables on {plan.num_devices} devices ({inputs.hardware.name}), from "
            f"{args.old}, for {args.stats}"
        ),
        f"planned in {took:.2f} s",
        "",
        *_summary(found, args.old),
        "",
        *_trade_off(found),
        "",
    ]
    if decision == "retier":
        lines.append(
            clipped(
                f"tables stay where they are: moves would save another "
                f"{1 - found.best.seconds / plan.seconds:.2%}, less than the {least:.2%} asked for"
            )
        )
    if decision == "keep":
        lines.append(
            clipped(
                f"kept the old plan: {found.gain(found.best.seconds):.2%} of its time could be saved, less "
                f"than the {least:.2%} asked for (--min-gain)"
            )
        )
    else:
        orders = orders_between(
            old, plan, plan_ranking(old, statistics), plan_ranking(plan, inputs.statistics)
        )
        sizes = {t.name: inputs.settings.row_bytes(t.embedding_dim) for t in old.tables}
        moves = compare_plans(old, plan, sizes, orders)
        lines += [
            clipped(kinds(plan)),
            *certificate(plan),
            "",
            *device_lines(plan),
            *table_moves(moves, args.top),
        ]
    if not inputs.hardware.measured:
        lines.append(
            clipped("bandwidths are assumed, not measured: recsys-opt bench hardware measures a machine")
        )
    return Outcome("\n".join(lines), _result(found, decision, least, took, args.out))


def _decide(found: Replanned, least: float) -> tuple[Decision, Candidate | None]:
    """What is worth its while: moves between devices must save `least` of the time that thresholds set anew
    take, these of the old plan's time; None is the old plan."""
    limit, stay = found.trade_off[0]
    if limit > 0:
        stay = found.best  # pins ask for moves
    chosen = found.best if found.best.seconds <= (1 - least) * stay.seconds else stay
    if found.gain(chosen.seconds) < least:
        return "keep", None
    return ("move" if chosen.between_devices_bytes else "retier"), chosen


def _summary(found: Replanned, old: Path) -> list[str]:
    lines = [f"{'':<34}{'slowest device':>15}{'time saved':>12}{'to devices':>13}{'between tiers':>15}"]
    lines.append(f"{clipped(f'{old.name} as it is', 34):<34}{milliseconds(found.as_is):>15}")
    limit = "" if math.isinf(found.move_limit) else f", {megabytes(found.move_limit)} may move"
    for name, one in (
        ("  its thresholds set anew", found.retiered),
        (f"this plan{limit}", found.best),
        ("without a limit", found.free),
    ):
        lines.append(
            f"{clipped(name, 34):<34}{milliseconds(one.seconds):>15}{found.gain(one.seconds):>12.2%}"
            f"{megabytes(one.between_devices_bytes):>13}{megabytes(one.between_tiers_bytes):>15}"
        )
    within = "" if math.isinf(found.move_limit) else " that moves no more"
    lines.append(
        clipped(
            f"no plan{within} takes less than {milliseconds(found.best.plan.bound_seconds)} "
            f"(gap {found.best.plan.gap:.2%})"
        )
    )
    return lines


def _trade_off(found: Replanned) -> list[str]:
    lines = [
        f"{'may move':>10}{'moves':>13}{'of the model':>14}{'slowest device':>16}{'time saved':>12}{'gap':>9}"
    ]
    for limit, one in found.trade_off:
        lines.append(
            f"{_percent(limit / found.model_bytes):>10}{megabytes(one.between_devices_bytes):>13}"
            f"{one.between_devices_bytes / found.model_bytes:>14.2%}{milliseconds(one.seconds):>16}"
            f"{found.gain(one.seconds):>12.2%}{one.plan.gap:>9.2%}"
            f"{'  asked for' if limit == found.move_limit and not math.isinf(limit) else ''}"
        )
    return lines


def _percent(share: float) -> str:
    return "any" if math.isinf(share) else f"{100 * share:.3g} %"


def _result(
    found: Replanned, decision: Decision, least: float, took: float, out: Path | None
) -> dict[str, Any]:
    def one(candidate: Candidate) -> dict[str, Any]:
        return {
            "seconds": candidate.seconds,
            "bound_seconds": candidate.plan.bound_seconds or None,
            "gap": candidate.plan.gap if candidate.plan.bound_seconds else None,
            "gain": found.gain(candidate.seconds),
            "between_devices_bytes": candidate.between_devices_bytes,
            "between_tiers_bytes": candidate.between_tiers_bytes,
        }

    return {
        "decision": decision,
        "min_gain": least,
        "move_limit_bytes": None if math.isinf(found.move_limit) else found.move_limit,
        "model_bytes": found.model_bytes,
        "planning_seconds": took,
        "old": {"seconds": found.as_is},
        "old_retiered": one(found.retiered),
        "plan": one(found.best),
        "free": one(found.free),
        "trade_off": [
            {"limit_bytes": None if math.isinf(limit) else limit, **one(candidate)}
            for limit, candidate in found.trade_off
        ],
        "out": None if out is None else str(out),
    }


def _limit(text: str | None, model_bytes: int) -> float:
    if text is None:
        return math.inf
    if text.strip().endswith("%"):
        return _share("--move-limit", text) * model_bytes
    try:
        return float(byte_size(text))
    except ValueError as error:
        raise InputError(
            f"--move-limit {text}: {error}; give bytes, as 5GB, or a share of the model, as 5%"
        ) from None


def _share(flag: str, text: str) -> float:
    number = text.strip()
    try:
        share = float(number[:-1]) / 100 if number.endswith("%") else float(number)
    except ValueError:
        raise InputError(f"{flag} {text}: it must be a share, as 2% or 0.02") from None
    if not (math.isfinite(share) and share >= 0):
        raise InputError(f"{flag} {text}: it must be a finite share, 0 or larger")
    return share
