"""A plan as one HTML page: its certificate, the load of each device, access curves with their thresholds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recsys_opt.plan import DeviceLoad, Plan, TablePlan, slow_share
from recsys_opt.report.bars import stacked_bars
from recsys_opt.report.page import Page, megabytes, milliseconds
from recsys_opt.report.svg import Series, chart, legend

Cells = tuple[NDArray[np.float64], NDArray[np.float64]]
"""(rows, share of the lookups) of each cell of a table's access curve, hottest first."""
CURVES_SHOWN = 6
TABLES_SHOWN = 200


def write_plan_page(plan: Plan, curves: Mapping[str, Cells], path: Path) -> Path:
    """Writes the page.

    curves  by table; those of the tables that are shown as curves
    """
    fast, slow = (str(plan.hardware.get(tier, {}).get("name", tier)).upper() for tier in ("fast", "slow"))
    name = str(plan.hardware.get("name", "unnamed hardware"))
    page = Page(
        f"Plan for {len(plan.tables):,} tables on {plan.num_devices} devices",
        f"{name}; {plan.batch_size:,} samples an iteration. "
        + ("Bandwidths were measured." if plan.hardware.get("measured") else "Bandwidths are assumed."),
    )
    mean = sum(d.seconds for d in plan.devices) / max(len(plan.devices), 1)
    page.tiles(
        [
            (milliseconds(plan.seconds), "slowest device, predicted"),
            (milliseconds(plan.bound_seconds), "no plan is faster (bound)"),
            (f"{plan.gap:.2%}", "gap to the bound"),
            (f"{plan.seconds / mean:.3f}" if mean else "–", "slowest device / mean"),
            (f"{slow_share(plan.devices):.2%}", f"rows read from {slow}"),
        ]
    )
    page.heading("Load of each device")
    devices = [str(at) for at in range(len(plan.devices))]
    page.plots(
        [
            (
                "Milliseconds of an iteration",
                legend([(f"rows in {fast}", 0), (f"rows in {slow}", 1), ("links", 2)])
                + stacked_bars(
                    [[1e3 * s for s in _parts(d)] for d in plan.devices],
                    [f"rows in {fast}", f"rows in {slow}", "links"],
                    devices,
                    x_label="device",
                    y_label="ms",
                    colours=(0, 1, 2),
                    level=(plan.bound_seconds * 1e3, "bound"),
                ),
            ),
            (
                f"Gigabytes held in {fast}",
                legend([(fast, 0)])
                + stacked_bars(
                    [[d.fast_bytes / 1e9] for d in plan.devices],
                    [fast],
                    devices,
                    x_label="device",
                    y_label="GB",
                    colours=(0,),
                ),
            ),
        ]
    )
    page.heading("Access curves and thresholds of the largest tables")
    page.text(
        f"Share of a table's lookups that goes to its hottest rows. The dot is the plan's threshold: rows "
        f"left of it are in {fast}."
    )
    largest = sorted(
        (t for t in plan.tables if t.name in curves), key=lambda t: -t.num_embeddings * t.embedding_dim
    )[:CURVES_SHOWN]
    page.plots([(_title(t), _curve(t, curves[t.name])) for t in largest])
    page.heading("Tables")
    order = sorted(plan.tables, key=lambda t: -t.num_embeddings * t.embedding_dim)
    page.table(
        ["table", "rows", "columns", "cut", "devices", f"rows in {fast}", "share"],
        [
            [
                t.name,
                f"{t.num_embeddings:,}",
                str(t.embedding_dim),
                t.sharding.replace("_", "-"),
                _devices(t),
                f"{t.hot_row_count:,}",
                f"{t.hot_row_count / t.num_embeddings:.2%}",
            ]
            for t in order[:TABLES_SHOWN]
        ],
        numbers=(1, 2, 5, 6),
    )
    if len(order) > TABLES_SHOWN:
        page.text(f"{len(order) - TABLES_SHOWN:,} smaller tables are left out; plan.json has them all.")
    page.heading("How it was made")
    page.settings(
        {"Settings": plan.settings, "Inputs": {k: v.get("path", "") for k, v in plan.inputs.items()}}
    )
    return page.write(path)


def _parts(load: DeviceLoad) -> tuple[float, float, float]:
    return load.fast_seconds, load.slow_seconds, load.communication_seconds


def _curve(table: TablePlan, cells: Cells) -> str:
    rows, share = np.cumsum(cells[0]), np.cumsum(cells[1])
    hot = table.hot_row_count
    x = np.concatenate([[1.0], rows[rows > 1]])
    y = np.interp(x, np.concatenate([[0.0], rows]), np.concatenate([[0.0], share]))
    series = [Series("share of lookups", x.tolist(), y.tolist(), 0)]
    if hot:
        at = float(np.interp(hot, np.concatenate([[0.0], rows]), np.concatenate([[0.0], share])))
        series.append(Series("threshold", [float(hot)], [at], 1, markers=True))
    return chart(series, x_label="hottest rows", y_label="share of lookups", log_x=True)


def _title(table: TablePlan) -> str:
    size = table.num_embeddings * table.embedding_dim * 4
    hot = table.hot_row_count / table.num_embeddings
    return (
        f"{table.name}: {table.num_embeddings:,} rows, {megabytes(size)} of weights, {hot:.1%} of them fast"
    )


def _devices(table: TablePlan) -> str:
    if table.replicated:
        return "all"
    shown = " ".join(str(d) for d in table.devices[:8])
    return shown + (" ..." if len(table.devices) > 8 else "")
