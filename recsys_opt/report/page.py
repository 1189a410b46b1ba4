"""The frame of a report: one HTML page with everything in it."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from recsys_opt.files import write_text

COLOURS = """
:root { --ink: #1c2733; --soft: #5b6875; --line: #dfe4ea; --ground: #ffffff; --panel: #f6f8fa;
  --c0: #2563c9; --c1: #d9631e; --c2: #14856b; --c3: #8a3ffc; --c4: #b8860b; --c5: #c2255c;
  --c6: #0b7fa8; --c7: #6b8e23; --c8: #a0522d; --c9: #475569; --c10: #d53fbf; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ebf0; --soft: #9aa7b4; --line: #36414d;
  --ground: #14191f; --panel: #1c232b; --c0: #6ea3ff; --c1: #ff9a5c; --c2: #4fcfae; --c3: #b794ff;
  --c4: #e3b94f; --c5: #ff7eaa; --c6: #5cc8e8; --c7: #b5d164; --c8: #dd9a74; --c9: #a8b3c2;
  --c10: #f49be6; } }
"""
"""Variables of a style sheet: the ground, the ink, and c0 .. c10 for curves, for light and dark pages."""
CURVES = 11
"""How many colours there are."""
_STYLE = (
    COLOURS
    + """
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 24px 60px; }
h1 { font-size: 26px; margin: 0 0 2px; } h2 { font-size: 18px; margin: 36px 0 10px; }
h3 { font-size: 14px; margin: 0 0 6px; color: var(--soft); font-weight: 600; }
p.lead { margin: 0; color: var(--soft); }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; margin-top: 20px; }
.tile { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: 10px 16px;
  min-width: 150px; }
.tile b { display: block; font-size: 22px; font-weight: 600; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 13px; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)); gap: 16px; }
.plot { border: 1px solid var(--line); border-radius: 8px; padding: 14px 14px 6px; }
svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--soft); font-size: 12px; font-variant-numeric: tabular-nums; }
.grid { stroke: var(--line); } .axis, .tick { stroke: var(--soft); }
.level { stroke: var(--soft); stroke-dasharray: 5 4; }
polyline { fill: none; stroke-width: 2; stroke-linejoin: round; }
.legend { margin: 0 0 4px; font-size: 13px; color: var(--soft); }
.legend span { margin-right: 16px; } .legend i { display: inline-block; width: 12px; height: 12px;
  border-radius: 3px; margin-right: 6px; vertical-align: -1px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
th, td { text-align: left; padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th { color: var(--soft); font-weight: 600; font-size: 13px; }
td.n, th.n { text-align: right; } tr.total td { font-weight: 600; border-top: 2px solid var(--soft); }
td.wrap { white-space: normal; overflow-wrap: anywhere; }
.bar { min-width: 160px; }
.bar i { display: block; height: 7px; border-radius: 2px; margin: 2px 0; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)); gap: 0 40px; }
"""
)
_STYLE += "".join(
    f"polyline.c{i} {{ stroke: var(--c{i}); }} circle.c{i}, .b{i} {{ fill: var(--c{i}); "
    f"background: var(--c{i}); }}\n"
    for i in range(CURVES)
)


class Page:
    """Collects sections, then writes the file."""

    def __init__(self, title: str, lead: str) -> None:
        self._title = title
        self._parts = [f"<h1>{html.escape(title)}</h1>", f'<p class="lead">{html.escape(lead)}</p>']

    def tiles(self, tiles: Sequence[tuple[str, str]]) -> None:
        """Figures that matter most: (figure, what it is)."""
        inner = "".join(
            f'<div class="tile"><b>{html.escape(figure)}</b><span>{html.escape(what)}</span></div>'
            for figure, what in tiles
        )
        self._parts.append(f'<div class="tiles">{inner}</div>')

    def heading(self, text: str) -> None:
        """Begins a section."""
        self._parts.append(f"<h2>{html.escape(text)}</h2>")

    def text(self, text: str) -> None:
        """A paragraph."""
        self._parts.append(f'<p class="lead">{html.escape(text)}</p>')

    def plots(self, plots: Sequence[tuple[str, str]]) -> None:
        """Plots side by side: (title, HTML of the plot); empty ones are left out."""
        inner = "".join(
            f'<div class="plot"><h3>{html.escape(title)}</h3>{body}</div>' for title, body in plots if body
        )
        self._parts.append(f'<div class="plots">{inner}</div>')

    def table(
        self,
        columns: Sequence[str],
        rows: Iterable[Sequence[str]],
        *,
        numbers: Sequence[int] = (),
        total: Sequence[str] | None = None,
        raw: Sequence[int] = (),
    ) -> None:
        """A table; `numbers` are columns aligned right, `raw` are columns that hold HTML."""
        self._parts.append(table(columns, rows, numbers=numbers, total=total, raw=raw))

    def settings(self, groups: Mapping[str, Mapping[str, Any]]) -> None:
        """Names and values, in as many columns as fit."""
        inner = ""
        for title, values in groups.items():
            rows = "".join(
                f'<tr><td>{html.escape(str(k))}</td><td class="wrap">{html.escape(readable(v))}</td></tr>'
                for k, v in values.items()
            )
            inner += f"<div><h3>{html.escape(title)}</h3><table>{rows}</table></div>"
        self._parts.append(f'<div class="columns">{inner}</div>')

    def write(self, path: Path) -> Path:
        """Writes the page, whole."""
        write_text(
            path,
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{html.escape(self._title)}</title><style>{_STYLE}</style></head>\n"
            f"<body><main>{chr(10).join(self._parts)}</main></body></html>\n",
        )
        return path


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numbers: Sequence[int] = (),
    total: Sequence[str] | None = None,
    raw: Sequence[int] = (),
) -> str:
    """The HTML of a table."""

    def cells(tag: str, row: Sequence[str]) -> str:
        parts = []
        for i, cell in enumerate(row):
            start = f'<{tag} class="n">' if i in numbers else f"<{tag}>"
            text = cell if i in raw and tag == "td" else html.escape(cell)
            parts.append(f"{start}{text}</{tag}>")
        return "".join(parts)

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    if total is not None:
        body += f'<tr class="total">{cells("td", total)}</tr>'
    return f'<div class="wide"><table><tr>{cells("th", columns)}</tr>{body}</table></div>'


def readable(value: Any) -> str:
    """A setting's value as text."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {readable(v)}" for k, v in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(readable(v) for v in value) or "none"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)


def megabytes(size: float) -> str:
    """Bytes as text, in a unit that keeps three digits."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= limit:
            return f"{size / limit:.2f} {unit}"
    return f"{size:.0f} B"


def milliseconds(seconds: float) -> str:
    """In a unit that keeps three digits."""
    if seconds >= 1:
        return f"{seconds:.3g} s" if seconds < 1e3 else f"{seconds:,.0f} s"
    return f"{1e3 * seconds:.3g} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.3g} us"


def number(value: float | None, digits: int) -> str:
    """A figure that may be missing."""
    return "–" if value is None else f"{value:.{digits}f}"
