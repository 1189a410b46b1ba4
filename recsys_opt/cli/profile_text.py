"""Profiles as text of at most 100 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from recsys_opt.cli.plan_text import WIDTH, clipped
from recsys_opt.report.page import megabytes
from recsys_opt.serving.profile import Path, Profile

_COLUMN = 17


def lines_of(profile: Profile) -> list[str]:
    """The whole profile."""
    model = profile.model
    lines = [
        clipped(
            f"{model.what or 'a model'}: {model.dense_features} numbers and {len(model.features)} ids"
            f" a sample, {sum(model.cardinalities):,} rows of {model.embedding_dim}"
        )
    ]
    assumption = profile.assumption()
    if assumption is not None:
        lines += textwrap.wrap(assumption, WIDTH, subsequent_indent="  ")
    return [
        *lines,
        "",
        *device_lines(profile),
        *circumstance_lines(profile),
        *served_lines(profile),
        "",
        *path_lines(profile),
        *time_lines(profile),
    ]


def device_lines(profile: Profile) -> list[str]:
    """A line for each device."""
    lines = [f"{'device':12}{'kind':>6}{'workers':>9}{'threads':>9}{'memory':>11}  what"]
    lines += [
        f"{d.name:12}{d.kind:>6}{d.workers:>9}{d.threads:>9}{megabytes(d.memory_bytes):>11}  "
        f"{'ASSUMED ' if d.assumed else ''}{d.what}"
        for d in profile.devices
    ]
    return [clipped(line) for line in lines]


def served_lines(profile: Profile) -> list[str]:
    """Of a profile whose times are those of batches inside the server."""
    work = profile.as_served
    if work is None:
        return []
    text = (
        f"as served: times inside the server, which takes {1e6 * work.query_s:.0f} us a query and "
        f"{1e6 * work.sample_s:.2f} us a sample beside, {1e6 * work.answer_s:.0f} us of a query for each "
        f"other one of its batch; {1e6 * work.wake_s:.0f} us more for a batch that a worker waited for"
    )
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ")


def circumstance_lines(profile: Profile) -> list[str]:
    """For each measurement: when, with which clock and queries, and how quiet the machine was."""
    lines = []
    for name, about in profile.circumstances.items():
        if not isinstance(about, Mapping) or "clock" not in about:
            continue
        noise = [n for n in about.get("noise", {}).values() if isinstance(n, Mapping)]
        waited = max((float(n.get("waited", 0.0)) for n in noise), default=0.0)
        lines.append(
            f"{name}: measured {str(about.get('date', ''))[:10]} by {about['clock']} time"
            f"{_idle(about)} on "
            f"{about.get('queries', 'queries')}; load {about.get('load_average', '?')}, up to {waited:.1%} "
            "of the time without a core"
        )
    return [line for text in lines for line in textwrap.wrap(text, WIDTH, subsequent_indent="  ")]


def _idle(about: Mapping[str, Any]) -> str:
    seconds = about.get("idle_s") or 0.0
    return f" after pauses of {seconds * 1e3:g} ms" if seconds else ""


def path_lines(profile: Profile) -> list[str]:
    """A line for each path: what it is worth and holds, and what all workers do in their best batches."""
    wide = max(len(p.name) for p in profile.paths)
    lines = [f"{'path':{wide}}{'accuracy':>10}{'AUC':>9}{'bytes':>11}{'samples/s':>11}  accuracy from"]
    for path in profile.paths:
        auc = "-" if path.auc is None else f"{path.auc:.5f}"
        best = max(t.size / t.mean for t in path.times) * profile.device(path.device).workers
        lines.append(
            f"{path.name:{wide}}{path.accuracy:>10.5f}{auc:>9}{megabytes(path.bytes):>11}{best:>11,.0f}  "
            f"{path.accuracy_from}"
        )
    return [clipped(line) for line in lines]


def time_lines(profile: Profile) -> list[str]:
    """Medians and 99th percentiles by size, in milliseconds; a `?` is behind what has not settled."""
    each = (WIDTH - 6) // _COLUMN
    blocks = [profile.paths[at : at + each] for at in range(0, len(profile.paths), each)]
    lines: list[str] = []
    for block in blocks:
        lines += ["", *_time_block(block)]
    if any(t.p99_within is None for p in profile.paths for t in p.times if t.runs):
        lines.append("?: too few runs for a confidence interval of the 99th percentile")
    return lines


def _time_block(paths: tuple[Path, ...]) -> Iterator[str]:
    names = [p.name if len(p.name) < _COLUMN else p.name[: _COLUMN - 4] + "..." for p in paths]
    yield f"{'':6}" + "".join(f"{n:>{_COLUMN}}" for n in names)
    yield f"{'size':>6}" + "".join(f"{'p50':>8}{'p99 ms':>8} " for _ in paths)
    for size in sorted({s for p in paths for s in p.sizes}):
        cells = []
        for path in paths:
            time = next((t for t in path.times if t.size == size), None)
            if time is None:
                cells.append(f"{'-':>8}{'-':>8} ")
                continue
            mark = "?" if time.runs and time.p99_within is None else " "
            cells.append(f"{_ms(time.quantile(0.5)):>8}{_ms(time.quantile(0.99)):>8}{mark}")
        yield f"{size:>6}" + "".join(cells)


def _ms(seconds: float) -> str:
    value = seconds * 1e3
    return f"{value:.3f}" if value < 10 else f"{value:.2f}" if value < 100 else f"{value:.0f}"
