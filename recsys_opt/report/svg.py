"""Plots as inline SVG: no library, no script, no external file. Colours come from the page's style sheet."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 560, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 14, 44


@dataclass(frozen=True)
class Series:
    """One curve; points whose y is None are left out."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    colour: int = 0
    """Number of a colour of the page, 0 .. 5."""
    markers: bool = False
    """Dots on a line, for few points; else a plain line."""
    line: bool = True

    def points(self) -> list[tuple[float, float]]:
        """The points that can be drawn."""
        pairs = zip(self.x, self.y, strict=True)
        return [(x, y) for x, y in pairs if y is not None and math.isfinite(y)]


@dataclass(frozen=True)
class Level:
    """A horizontal line to compare with."""

    name: str
    y: float


def chart(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    levels: Sequence[Level] = (),
    log_x: bool = False,
    log_y: bool = False,
    x_ticks: Sequence[float] = (),
    square: bool = False,
    diagonal: bool = False,
) -> str:
    """A plot of curves; empty text when there is nothing to draw.

    x_ticks   where a logarithmic x axis is marked (default: powers of ten)
    square    both axes from 0 to the same maximum
    diagonal  draws y = x
    """
    points = [p for s in series for p in s.points()]
    if not points:
        return ""
    x_axis = _Axis.over([p[0] for p in points], log=log_x)
    if log_x and x_ticks:
        x_axis = _Axis(min(x_ticks) / 1.15, max(x_ticks) * 1.15, tuple(x_ticks), log=True, exact=True)
    y_axis = _Axis.over([p[1] for p in points] + [level.y for level in levels], log=log_y)
    if square:
        top = max(max(p) for p in points)
        x_axis = y_axis = _Axis.over([0.0, top])
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT

    def at(x: float, y: float) -> tuple[float, float]:
        return _LEFT + x_axis.place(x) * (right - _LEFT), bottom - y_axis.place(y) * (bottom - _TOP)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(y_label)}">']
    for tick in y_axis.ticks:
        _, py = at(x_axis.low, tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{py:.1f}" y2="{py:.1f}"/>')
        text = y_axis.label(tick)
        parts.append(f'<text x="{_LEFT - 8}" y="{py + 4:.1f}" text-anchor="end">{text}</text>')
    for tick in x_axis.ticks:
        px, _ = at(tick, y_axis.low)
        parts.append(f'<line class="tick" x1="{px:.1f}" x2="{px:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
        text = x_axis.label(tick)
        parts.append(f'<text x="{px:.1f}" y="{bottom + 18}" text-anchor="middle">{text}</text>')
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    middle = (_LEFT + right) / 2
    label = html.escape(x_label)
    parts.append(f'<text class="label" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{label}</text>')
    if diagonal:
        (x1, y1), (x2, y2) = at(x_axis.low, x_axis.low), at(x_axis.high, x_axis.high)
        parts.append(f'<line class="level" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')
    for level in levels:
        _, py = at(x_axis.low, level.y)
        name = html.escape(level.name)
        parts.append(f'<line class="level" x1="{_LEFT}" x2="{right}" y1="{py:.1f}" y2="{py:.1f}"/>')
        parts.append(f'<text x="{right - 4}" y="{py - 5:.1f}" text-anchor="end">{name}</text>')
    for s in series:
        placed = [at(x, y) for x, y in s.points()]
        if s.line and len(placed) > 1:
            path = " ".join(f"{px:.1f},{py:.1f}" for px, py in placed)
            parts.append(f'<polyline class="c{s.colour}" points="{path}"/>')
        if s.markers or len(placed) == 1:
            for (px, py), (x, y) in zip(placed, s.points(), strict=True):
                title = html.escape(f"{s.name}: {short(x)}, {y:.5g}")
                dot = f'<circle class="c{s.colour}" cx="{px:.1f}" cy="{py:.1f}" r="3.5">'
                parts.append(f"{dot}<title>{title}</title></circle>")
    parts.append("</svg>")
    return "".join(parts)


def legend(names: Sequence[tuple[str, int]]) -> str:
    """Names with their colours."""
    items = [f'<span><i class="b{colour}"></i>{html.escape(name)}</span>' for name, colour in names]
    return f'<p class="legend">{"".join(items)}</p>' if items else ""


def short(value: float) -> str:
    """1234567 -> "1.23M"."""
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{suffix}"
    return f"{value:.3g}"


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False
    exact: bool = False
    """Whole numbers as labels, not powers of ten."""

    @classmethod
    def over(cls, values: Sequence[float], *, log: bool = False) -> _Axis:
        low, high = min(values), max(values)
        if log:
            low, high = 10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high) + 1e-9)
            decades = range(round(math.log10(low)), round(math.log10(high)) + 1)
            return cls(low, high, tuple(10.0**d for d in decades), log=True)
        if high - low < 1e-12 * max(abs(high), 1e-300):
            margin = abs(high) * 0.05 or 1.0
            low, high = low - margin, high + margin
        step = round_step((high - low) / 5)
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        return cls(first * step, last * step, tuple(i * step for i in range(first, last + 1)))

    def place(self, value: float) -> float:
        """0 at the axis' start, 1 at its end."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def label(self, tick: float) -> str:
        if self.exact:
            return f"{tick:.0f}"
        if self.log or self.high >= 1000:
            return short(tick)
        step = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else 1.0
        return f"{tick:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def round_step(step: float) -> float:
    """The next larger of 1, 2, 5, 10, .."""
    power: float = 10.0 ** math.floor(math.log10(step))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= step * (1 - 1e-9))
