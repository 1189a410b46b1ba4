"""A figure of several plots as one SVG file, for a README; it brings colours for light and dark pages."""

from __future__ import annotations

import html
from collections.abc import Sequence

from recsys_opt.report.page import COLOURS, CURVES
from recsys_opt.report.svg import HEIGHT, WIDTH

_TITLE, _LEGEND, _LINE, _HEAD, _GAP = 52, 10, 20, 26, 20


def figure(
    title: str,
    subtitle: str,
    plots: Sequence[tuple[str, str]],
    names: Sequence[tuple[str, int]],
    *,
    columns: int = 2,
) -> str:
    """The SVG's text.

    plots    (title, SVG of `svg.chart`) in reading order
    names    the curves' names and colours
    columns  plots side by side
    """
    rows = -(-len(plots) // columns)
    width = columns * WIDTH + (columns + 1) * _GAP
    legend, lines = _legend(names, width)
    top = _TITLE + _LEGEND + lines * _LINE
    height = top + rows * (HEIGHT + _HEAD + _GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-label="{html.escape(title)}">',
        f"<style>{_style()}</style>",
        f'<rect class="ground" width="{width}" height="{height}"/>',
        f'<text class="title" x="{_GAP}" y="28">{html.escape(title)}</text>',
        f'<text x="{_GAP}" y="48">{html.escape(subtitle)}</text>',
        *legend,
    ]
    for i, (plot_title, plot) in enumerate(plots):
        left = _GAP + (i % columns) * (WIDTH + _GAP)
        head = top + (i // columns) * (HEIGHT + _HEAD + _GAP)
        parts.append(f'<text class="head" x="{left + 64}" y="{head + 18}">{html.escape(plot_title)}</text>')
        place = f'<svg x="{left}" y="{head + _HEAD}" width="{WIDTH}" height="{HEIGHT}"'
        parts.append(plot.replace("<svg", place, 1))
    parts.append("</svg>")
    return "".join(parts)


def _legend(names: Sequence[tuple[str, int]], width: float) -> tuple[list[str], int]:
    """The names with their colours, and the number of lines that they take."""
    parts: list[str] = []
    x, line = float(_GAP), 0
    for name, colour in names:
        wide = 18 + 6.8 * len(name)
        if x > _GAP and x + wide > width - _GAP:
            x, line = float(_GAP), line + 1
        y = _TITLE + 8 + line * _LINE
        parts.append(f'<rect class="b{colour}" x="{x:.0f}" y="{y}" width="12" height="12" rx="3"/>')
        parts.append(f'<text x="{x + 18:.0f}" y="{y + 10}">{html.escape(name)}</text>')
        x += wide + 24
    return parts, line + 1


_FIXED = """
text { fill: var(--soft);
  font: 12px system-ui, -apple-system, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif; }
.title { fill: var(--ink); font-size: 17px; font-weight: 600; }
.head { fill: var(--ink); font-size: 13px; font-weight: 600; }
.ground { fill: var(--ground); } .grid { stroke: var(--line); }
.axis, .tick { stroke: var(--soft); } .level { stroke: var(--soft); stroke-dasharray: 5 4; }
polyline { fill: none; stroke-width: 2; stroke-linejoin: round; }
"""


def _style() -> str:
    curves = "".join(
        f"polyline.c{i} {{ stroke: var(--c{i}); }} circle.c{i}, .b{i} {{ fill: var(--c{i}); }}\n"
        for i in range(CURVES)
    )
    return COLOURS + _FIXED + curves
