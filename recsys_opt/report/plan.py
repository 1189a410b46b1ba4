"""A plan as one HTML page: its certificate, the load of each device, access curves with their thresholds."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recsys_opt.plan import DeviceLoad, Plan, TablePlan, slow_share
from recsys_opt.report.page import Page, megabytes, milliseconds
from recsys_opt.report.svg import HEIGHT, WIDTH, Series, chart, legend, short

Cells = tuple[NDArray[np.float64], NDArray[np.float64]]
"""(rows, share of the lookups) of each cell of a table's access curve, hottest first."""
CURVES_SHOWN = 6
TABLES_SHOWN = 200
_LEFT, _BOTTOM, _TOP = 64, 44, 14


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
    page.plots(
        [
            (
                "Milliseconds of an iteration",
                legend([(f"rows in {fast}", 0), (f"rows in {slow}", 1), ("links", 2)])
                + stacked(
                    [[1e3 * s for s in _parts(d)] for d in plan.devices],
                    "device",
                    "ms",
                    plan.bound_seconds * 1e3,
                ),
            ),
            (
                f"Gigabytes held in {fast}",
                legend([(fast, 0)]) + stacked([[d.fast_bytes / 1e9] for d in plan.devices], "device", "GB"),
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


def stacked(bars: Sequence[Sequence[float]], x_label: str, y_label: str, level: float = 0.0) -> str:
    """Bars of parts on top of each other, as SVG; `level` is marked across them."""
    if not bars:
        return ""
    top = max(max(sum(bar) for bar in bars), level) * 1.05 or 1.0
    bottom, right = HEIGHT - _BOTTOM, WIDTH - 16
    step = (right - _LEFT) / len(bars)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(y_label)}">']
    for i in range(5):
        y = bottom - i / 4 * (bottom - _TOP)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{short(top * i / 4)}</text>')
    for at, bar in enumerate(bars):
        base = float(bottom)
        title = html.escape(f"{x_label} {at}: " + ", ".join(f"{v:.4g}" for v in bar) + f" {y_label}")
        for colour, value in enumerate(bar):
            height = value / top * (bottom - _TOP)
            base -= height
            parts.append(
                f'<rect class="b{colour}" x="{_LEFT + step * at + step * 0.1:.1f}" y="{base:.1f}" '
                f'width="{step * 0.8:.1f}" height="{height:.1f}"><title>{title}</title></rect>'
            )
    for at in range(0, len(bars), max(1, -(-len(bars) // 16))):
        x = _LEFT + step * (at + 0.5)
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{at}</text>')
    if level:
        y = bottom - level / top * (bottom - _TOP)
        parts.append(f'<line class="level" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{right - 4}" y="{y - 5:.1f}" text-anchor="end">bound</text>')
    parts.append(f'<text x="{(_LEFT + right) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{x_label}</text>')
    parts.append("</svg>")
    return "".join(parts)


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
