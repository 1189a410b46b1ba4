"""`recsys-opt plan replay`: later lookups through a plan's real remap."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.progress import ConsoleProgress, short_count
from recsys_opt.cli.values import at_least
from recsys_opt.data.access_statistics import AccessStatistics
from recsys_opt.plan import Plan
from recsys_opt.planner.cost import CostModel
from recsys_opt.planner.inputs import PlanInputs
from recsys_opt.planner.lookup_trace import open_trace
from recsys_opt.planner.replay import replay, statistics_ranking
from recsys_opt.planner.replay_cost import replay_cost, summary, table_shares

EXAMPLE = "recsys-opt plan replay plan.json later/ --split test"
SHOWN = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("plan", type=Path, metavar="PLAN", help="plan.json")
    parser.add_argument(
        "trace",
        type=Path,
        metavar="TRACE",
        help="lookups of later than the plan's statistics: a dataset folder, or a trace folder of "
        "`data tables`",
    )
    parser.add_argument("--split", default="test", help="of a dataset (%(default)s)")
    parser.add_argument(
        "--batches",
        type=batch_range,
        metavar="FIRST:LAST",
        help="of the trace, LAST left out; 4: are those behind the first four (default: all)",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        metavar="B",
        help="samples of a dataset's batch, over all devices (default: the plan's)",
    )
    parser.add_argument("--stats", type=Path, metavar="NPZ", help="the statistics (default: the plan's)")
    parser.add_argument(
        "--threads",
        type=at_least(1),
        default=len(os.sched_getaffinity(0)),
        metavar="N",
        help="tables that are replayed at once; each takes 8 bytes a row (%(default)s)",
    )


def run(args: argparse.Namespace) -> Outcome:
    """Replays, prints a table."""
    plan = Plan.load(args.plan)
    inputs = PlanInputs.of(plan, args.stats)
    statistics = AccessStatistics.load(args.stats or plan.inputs["statistics"]["path"])
    batch_size = plan.batch_size if args.batch_size is None else args.batch_size
    trace = open_trace(args.trace, batch_size=batch_size, split=args.split)
    if args.batches is not None:
        trace = trace.between(*args.batches)
    model = CostModel(inputs.hardware, replace(inputs.settings, batch_size=trace.batch_size))
    ranking = statistics_ranking(plan, statistics)
    began = time.perf_counter()
    with ConsoleProgress() as progress:
        found = replay(plan, trace, ranking, threads=args.threads, progress=progress)
    seconds = time.perf_counter() - began
    result = summary(
        found,
        replay_cost(found, model),
        model.loads(plan, inputs.tables),
        table_shares(found, inputs.tables, trace.batch_size),
        model.settings.weight_bytes,
    )
    result |= {"trace": trace.name, "replay_seconds": seconds}
    return Outcome("\n".join(report(result)), result)


def batch_range(text: str) -> tuple[int, int | None]:
    """ "4:6" -> (4, 6), "4:" -> (4, None)."""
    first, colon, last = text.partition(":")
    if not colon:
        raise ValueError(f"{text} is no range")
    return int(first or 0), int(last) if last else None


batch_range.__name__ = "FIRST:LAST"


def report(result: Mapping[str, Any]) -> list[str]:
    """Lines of at most 100 columns."""
    lines = [
        f"{result['batches']} batches of {result['batch_size']:,} samples on {result['num_devices']} "
        f"devices, {short_count(result['lookups'])} rows read",
        f"{result['trace']}"[:100],
        "",
        f"{'':<36}{'predicted':>14}{'replayed':>14}{'error':>10}",
    ]
    for name, key, unit, digits in (
        ("rows read from the slow tier, %", "slow_share", 100, 3),
        ("slowest device, ms of an iteration", "slowest_device_seconds", 1e3, 4),
        ("slowest device / mean", "max_over_mean", 1, 3),
    ):
        entry = result[key]
        error = "" if entry["relative_error"] is None else f"{100 * entry['relative_error']:+.1f} %"
        amounts = [f"{unit * entry[which]:.{digits}f}" for which in ("predicted", "realised")]
        lines.append(f"{name:<36}{amounts[0]:>14}{amounts[1]:>14}{error:>10}")
    return [*lines, "", *_devices(result), "", *_batches(result), "", *_tables(result)]


_WIDTHS = (6, 9, 9, 8, 9, 9, 9, 8, 8, 8, 8, 8)


def _row(cells: Sequence[str]) -> str:
    return "".join(f"{cell:>{width}}" for cell, width in zip(cells, _WIDTHS, strict=True))


def _devices(result: Mapping[str, Any]) -> list[str]:
    """The slowest, with what they read and send in a batch."""
    slowest = sorted(result["devices"], key=lambda d: (-d["seconds"], d["device"]))[:SHOWN]
    left = result["num_devices"] - len(slowest)
    lines = [
        f"{'rows read':>24}{'slow':>8}{'MB read':>18}{'MB':>9}{'ms of an iteration':>40}",
        _row(["device", "fast", "slow", "%", "fast", "slow", "sent", "fast", "slow", "sent", "sum", "plan"]),
    ]
    n = result["batches"]
    for d in slowest:
        reads = d["lookups_fast"] + d["lookups_slow"]
        times = ("fast_seconds", "slow_seconds", "communication_seconds", "seconds", "predicted_seconds")
        lines.append(
            _row(
                [
                    str(d["device"]),
                    *(short_count(d[key] / n) for key in ("lookups_fast", "lookups_slow")),
                    f"{100 * d['lookups_slow'] / max(reads, 1):.2f}",
                    *(f"{d[key] / n / 1e6:.4g}" for key in ("bytes_fast", "bytes_slow", "bytes_sent")),
                    *("-" if d[key] is None else f"{1e3 * d[key]:.3g}" for key in times),
                ]
            )
        )
    return [*lines, f"and {left} faster devices (--json has all)"] if left else lines


def _batches(result: Mapping[str, Any]) -> list[str]:
    """At most some batches, evenly spaced: what drift does."""
    batches = result["by_batch"]
    chosen = sorted({round(i * (len(batches) - 1) / 9) for i in range(10)}) if len(batches) > 10 else None
    lines = [f"{'batch':>6}{'slow share':>12}{'slowest, ms':>13}{'device':>8}{'max/mean':>10}"]
    lines += [
        f"{b['batch']:>6}{100 * b['slow_share']:>10.3f} %{1e3 * b['slowest_seconds']:>13.4g}"
        f"{b['slowest_device']:>8}{b['max_over_mean']:>10.3f}"
        for b in (batches if chosen is None else [batches[i] for i in chosen])
    ]
    return lines


def _tables(result: Mapping[str, Any]) -> list[str]:
    """Those whose slow reads stray most from what was predicted, in rows."""
    strays = sorted(
        result["tables"],
        key=lambda t: -abs(t["predicted_slow_share"] - t["realised_slow_share"]) * t["lookups"],
    )[:5]
    lines = [f"{'tables that stray most':<52}{'rows read':>12}{'predicted':>14}{'replayed':>14}"]
    lines += [
        f"{t['name'][:52]:<52}{short_count(t['lookups']):>12}{100 * t['predicted_slow_share']:>12.3f} %"
        f"{100 * t['realised_slow_share']:>12.3f} %"
        for t in strays
    ]
    return lines
