"""Plans as text of at most 100 columns."""

from __future__ import annotations

from collections.abc import Sequence

from recsys_opt.cli.progress import short_count
from recsys_opt.plan import Plan, TablePlan
from recsys_opt.planner.cost import CostModel
from recsys_opt.planner.problem import PlannedTable
from recsys_opt.report.page import megabytes, milliseconds

MOST_DEVICES = 16
WIDTH = 100


def clipped(text: str, width: int = WIDTH) -> str:
    """A line that is no longer than the width."""
    return text if len(text) <= width else text[: width - 3] + "..."


def certificate(plan: Plan) -> list[str]:
    """The time of the slowest device, and how far it can be from the best: a line each."""
    if not plan.devices:
        return ["nothing is predicted for this plan"]
    mean = sum(d.seconds for d in plan.devices) / len(plan.devices)
    lines = [
        f"slowest device {milliseconds(plan.seconds)} an iteration of {plan.batch_size:,} samples; "
        f"max / mean {plan.seconds / mean if mean else 1.0:.3f}"
    ]
    if plan.bound_seconds > 0:
        lines.append(f"no plan takes less than {milliseconds(plan.bound_seconds)}: gap {plan.gap:.2%}")
    return lines


def device_lines(plan: Plan) -> list[str]:
    """A line for each device, or for the slowest of many."""
    if not plan.devices:
        return []
    fast, slow = (str(plan.hardware.get(t, {}).get("name", t)) for t in ("fast", "slow"))
    order = sorted(range(len(plan.devices)), key=lambda d: -plan.devices[d].seconds)
    shown = sorted(order[:MOST_DEVICES])
    pieces = [0] * plan.num_devices
    for table in plan.tables:
        for device in table.devices:
            pieces[device] += 1
    lines = [
        f"{'device':>6}{'pieces':>8}{'time':>11}{fast:>11}{slow:>11}{'links':>11}{fast + ' held':>13}"
        f"{slow + ' held':>13}{slow + ' reads':>13}"
    ]
    for d in shown:
        load = plan.devices[d]
        reads = load.fast_lookups + load.slow_lookups
        lines.append(
            f"{d:>6}{pieces[d]:>8}{milliseconds(load.seconds):>11}{milliseconds(load.fast_seconds):>11}"
            f"{milliseconds(load.slow_seconds):>11}{milliseconds(load.communication_seconds):>11}"
            f"{megabytes(load.fast_bytes):>13}{megabytes(load.slow_bytes):>13}"
            f"{load.slow_lookups / reads if reads else 0.0:>13.2%}"
        )
    if len(order) > len(shown):
        lines.append(f"... the {len(shown)} slowest of {len(order)} devices")
    return [clipped(line) for line in lines]


def place(table: TablePlan) -> str:
    """The way a table is cut and the devices it is on."""
    devices = ranges(table.devices)
    if table.replicated:
        return "replicated on all"
    parts = []
    if table.column_shards > 1:
        parts.append(f"{table.column_shards} x columns")
    if table.row_shards > 1:
        parts.append(f"{table.row_shards} x rows")
    return f"{' and '.join(parts) or 'whole'} on {devices}"


def ranges(numbers: Sequence[int]) -> str:
    """1, 2, 3, 7 -> "1-3 7"."""
    found: list[list[int]] = []
    for n in sorted(numbers):
        if found and n == found[-1][1] + 1:
            found[-1][1] = n
        else:
            found.append([n, n])
    return " ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in found)


def table_lines(plan: Plan, top: int, seconds: dict[str, float] | None = None) -> list[str]:
    """A line for each of the `top` tables that cost most (by rows where no cost is known)."""
    cost = seconds or {t.name: float(t.num_embeddings) for t in plan.tables}
    order = sorted(plan.tables, key=lambda t: -cost[t.name])
    width = max(min(max((len(t.name) for t in order[:top]), default=5), 24), 5)
    lines = [f"{'table':<{width}}{'rows':>9}{'columns':>9}{'in fast tier':>21}{'time':>11}  where"]
    for t in order[:top]:
        hot = t.hot_row_count
        share = f"{short_count(hot)} rows {hot / t.num_embeddings:>7.2%}"
        took = milliseconds(seconds[t.name]) if seconds else "-"
        name = clipped(t.name, width)
        lines.append(
            clipped(
                f"{name:<{width}}{short_count(t.num_embeddings):>9}{t.embedding_dim:>9}{share:>21}{took:>11}"
                f"  {place(t)}"
            )
        )
    if len(order) > top:
        lines.append(f"... and {len(order) - top:,} tables that take less (--top {len(order)} shows all)")
    return lines


def table_seconds(plan: Plan, model: CostModel, tables: Sequence[PlannedTable]) -> dict[str, float]:
    """Seconds of each table over all devices."""
    known = {t.config.name: t for t in tables}
    return {t.name: model.table_seconds(t, known[t.name]) for t in plan.tables}


def kinds(plan: Plan) -> str:
    """How many tables are cut in which way."""
    counts: dict[str, int] = {}
    for table in plan.tables:
        counts[table.sharding] = counts.get(table.sharding, 0) + 1
    ordered = sorted(counts.items(), key=lambda c: -c[1])
    return ", ".join(f"{n} {kind.replace('_', '-')}" for kind, n in ordered)
