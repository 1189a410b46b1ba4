"""What `recsys-opt simulate` prints."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence

from recsys_opt.report.page import milliseconds
from recsys_opt.serving.against import Comparison
from recsys_opt.serving.held import HeldLoad
from recsys_opt.serving.simulation import Setup, Summary

_WIDTH, _LABEL, _COLUMN = 100, 24, 15


def time(value: float | None) -> str:
    """Seconds as text."""
    return "-" if value is None else milliseconds(value)


def share(value: float | None) -> str:
    """A share as text."""
    return "-" if value is None else f"{100 * value:.2f} %"


def side_by_side(setup: Setup, summaries: Sequence[Summary], blind: Summary | None) -> list[str]:
    """A column for each policy, the accuracy-blind baseline last."""
    first = summaries[0]
    lines = [
        *textwrap.wrap(
            f"{first.queries:,} queries, {setup.workload.spec}: {first.load:,.0f} queries and "
            f"{first.samples_per_s:,.0f} samples a second, SLA {milliseconds(setup.sla)}",
            _WIDTH,
        ),
        *(f"events  {' '.join(e.spec for e in setup.events)}" for _ in setup.events[:1]),
    ]
    columns = [*summaries, *([blind] if blind else [])]
    at_a_time = (_WIDTH - _LABEL) // _COLUMN
    for start in range(0, len(columns), at_a_time):
        lines += ["", *_block(columns[start : start + at_a_time])]
    bound = f"{first.bound_correct_per_s:,.0f}"
    alone = f"{first.not_batched_bound_correct_per_s:,.0f}"
    lines += ["", f"no policy exceeds {bound} correct predictions/s here, none without batching {alone}"]
    gain = "not all queries can be answered in time" if first.bound_gain is None else share(first.bound_gain)
    lines.append(f"gain captured at most: {gain}")
    if blind:
        lines.append(f"{blind.policy}: the adaptive policy blind to accuracy, with table paths alone")
    return lines


def _block(columns: Sequence[Summary]) -> list[str]:
    rows: list[tuple[str, Callable[[Summary], str]]] = [
        ("latency p50", lambda s: time(s.p50)),
        ("        p95", lambda s: time(s.p95)),
        ("        p99", lambda s: time(s.p99)),
        ("        p99.9", lambda s: time(s.p999)),
        ("inside the SLA", lambda s: share(s.in_time)),
        ("late", lambda s: share(s.late)),
        ("dropped", lambda s: share(s.dropped)),
        ("rejected", lambda s: share(s.rejected)),
        ("accuracy", lambda s: "-" if s.accuracy is None else f"{s.accuracy:.5f}"),
        ("gain captured", lambda s: share(s.gain_captured)),
        ("correct predictions/s", lambda s: f"{s.correct_per_s:,.0f}"),
        ("  share of the bound", lambda s: share(s.bound_ratio)),
    ]
    devices = dict.fromkeys(d for s in columns for d in s.utilisation)
    paths = [p for p in dict.fromkeys(p for s in columns for p in s.path_samples)]
    lines = [_line("", [_short(s.policy) for s in columns])]
    lines += [_line(label, [text(s) for s in columns]) for label, text in rows]
    for device in devices:
        lines.append(_line(f"{device} busy", [share(s.utilisation.get(device)) for s in columns]))
    for path in paths:
        used = [s.path_samples.get(path, 0.0) for s in columns]
        if any(used):
            batches = [s.mean_batch.get(path) for s in columns]
            texts = [
                f"{100 * u:.1f} % by {b:.0f}" if u and b else "-" for u, b in zip(used, batches, strict=True)
            ]
            lines.append(_line(path, texts))
    lines.append("(of paths: share of the samples computed, by batches of so many samples on average)")
    return lines


def _line(label: str, cells: Sequence[str]) -> str:
    return (f"{label[: _LABEL - 1]:<{_LABEL}}" + "".join(f"{cell:>{_COLUMN}}" for cell in cells)).rstrip()


def _short(name: str) -> str:
    return name if len(name) < _COLUMN else name[: _COLUMN - 3] + ".."


def held_lines(held: Sequence[tuple[str, HeldLoad]]) -> list[str]:
    """The loads held."""
    first = held[0][1]
    lines = [
        f"load held: {100 * first.share:g} % of the queries that arrive answered within "
        f"{milliseconds(first.sla)}, {first.runs} runs of {first.queries:,}",
        "",
        f"{'policy':<40}{'queries/s':>12}{'95 % within':>14}{'of the bound':>14}",
    ]
    for name, found in held:
        lines.append(f"{name[:39]:<40}{found.load:>12,.0f}{found.within:>14,.0f}{found.ratio:>14.1%}")
    lines.append(f"{'no policy holds more than':<40}{first.bound:>12,.0f}")
    return lines


def sweep_lines(summaries: Sequence[Summary]) -> list[str]:
    """A line for each simulation."""
    lines = [
        f"{'SLA':>8}{'load':>9}  {'policy':<20}{'p50':>9}{'p99':>9}{'in SLA':>10}{'gain':>9}"
        f"{'correct/s':>12}{'of bound':>10}"
    ]
    for s in summaries:
        gain = "-" if s.gain_captured is None else f"{s.gain_captured:.1%}"
        lines.append(
            f"{milliseconds(s.sla):>8}{s.load:>9,.0f}  {s.policy[:19]:<20}{time(s.p50):>9}"
            f"{time(s.p99):>9}{s.in_time:>10.2%}{gain:>9}{s.correct_per_s:>12,.0f}{s.bound_ratio:>10.1%}"
        )
    return lines


def against_lines(found: Comparison) -> list[str]:
    """Measured beside simulated, percentile by percentile."""
    lines = [
        f"{found.queries:,} recorded queries, {found.load:,.0f} a second, policy {found.policy}, SLA "
        f"{milliseconds(found.sla)}",
        f"{'':<9}{'measured':>11}{'recorded times':>17}{'':>9}{'from profile':>15}{'':>9}"
        f"{'at its speed':>15}",
    ]
    for row in found.rows:
        lines.append(
            f"{row.name:<9}{_figure(row.name, row.measured):>11}{_figure(row.name, row.replayed):>17}"
            f"{_off(row.replayed_off):>9}{_figure(row.name, row.profiled):>15}{_off(row.profiled_off):>9}"
            f"{_figure(row.name, row.at_speed):>15}{_off(row.at_speed_off):>9}"
        )
    speeds = ", ".join(f"{factor:.2f} ({path})" for path, factor in found.slowness.items())
    notes = [f"at its speed: the profile's times multiplied by {speeds}, as in the run"] if speeds else []
    lines += [f"  {note}" for text in (*notes, *found.notes) for note in textwrap.wrap(text, _WIDTH - 2)]
    return lines


def _figure(name: str, value: float | None) -> str:
    return share(value) if name == "in SLA" else time(value)


def _off(value: float | None) -> str:
    return "" if value is None else f"{100 * value:+.1f} %"
