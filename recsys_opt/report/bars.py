"""Bars of parts on top of each other, as inline SVG."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from recsys_opt.report.svg import HEIGHT, WIDTH, round_step, short

_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 14, 44
_LABELS = 12
"""At most so many under the axis."""


def stacked_bars(
    bars: Sequence[Sequence[float]],
    names: Sequence[str],
    labels: Sequence[str],
    *,
    x_label: str,
    y_label: str,
    colours: Sequence[int],
    share: bool = False,
    marks: Sequence[tuple[float, str]] = (),
    level: tuple[float, str] = (0.0, ""),
) -> str:
    """A bar for each label; empty text where there is nothing to draw.

    bars     [bars, parts]
    names    [parts], for what is shown when pointed at
    labels   [bars], under the axis; where they are many, some are left out
    colours  [parts]
    share    the y axis goes to 100 %
    marks    (position in bars, text) of vertical lines
    level    (value, text) of a horizontal line; none at 0
    """
    most = max((sum(bar) for bar in bars), default=0.0)
    if most <= 0:
        return ""
    most = max(most, level[0])
    tick = 0.25 if share else round_step(most / 5)
    ticks = 4 if share else math.ceil(most / tick)
    top = tick * ticks
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    step = (right - _LEFT) / len(bars)
    wide = step if len(bars) > 40 else 0.84 * step
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(y_label)}">']
    for i in range(ticks + 1):
        y = bottom - i / ticks * (bottom - _TOP)
        text = f"{25 * i} %" if share else short(tick * i)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    for at, bar in enumerate(bars):
        base = float(bottom)
        shown = (f"{100 * v:.1f} %" if share else f"{v:,.4g}" for v in bar)
        told = ", ".join(f"{n} {v}" for n, v, part in zip(names, shown, bar, strict=True) if part > 0)
        for colour, value in zip(colours, bar, strict=True):
            height = value / top * (bottom - _TOP)
            base -= height
            if height > 0.02:
                parts.append(
                    f'<rect class="b{colour}" x="{_LEFT + step * at + (step - wide) / 2:.2f}" y="{base:.2f}" '
                    f'width="{wide:.2f}" height="{height:.2f}">'
                    f"<title>{html.escape(f'{labels[at]}: {told}')}</title></rect>"
                )
    for at in range(0, len(bars), max(1, -(-len(bars) // _LABELS))):
        x = _LEFT + step * (at + 0.5)
        parts.append(
            f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{html.escape(labels[at])}</text>'
        )
    for position, text in marks:
        x = _LEFT + step * position
        if _LEFT <= x <= right:
            anchor = "end" if x > (_LEFT + right) / 2 else "start"
            shift = -4 if anchor == "end" else 4
            parts.append(f'<line class="level" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{bottom}"/>')
            parts.append(
                f'<text x="{x + shift:.1f}" y="{_TOP + 10}" text-anchor="{anchor}">{html.escape(text)}</text>'
            )
    if level[0] > 0:
        y = bottom - level[0] / top * (bottom - _TOP)
        parts.append(f'<line class="level" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        text = html.escape(level[1])
        parts.append(f'<text x="{right - 4}" y="{y - 5:.1f}" text-anchor="end">{text}</text>')
    label = html.escape(x_label)
    parts.append(
        f'<text x="{(_LEFT + right) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{label}</text></svg>'
    )
    return "".join(parts)
