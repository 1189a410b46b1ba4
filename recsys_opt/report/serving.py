"""A page of a simulation: policies side by side, latency by load, what happened over time, paths by size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recsys_opt.report.bars import stacked_bars
from recsys_opt.report.page import CURVES, Page, milliseconds
from recsys_opt.report.svg import Level, Series, chart, legend

_OUTCOMES = {"in_time": "in time", "late": "late", "dropped": "dropped", "rejected": "rejected"}
_OUTCOME_COLOURS = (2, 1, 5, 9)


def write_serving_report(found: Mapping[str, Any], path: Path) -> Path:
    """Writes the page of what `recsys-opt simulate` found: its JSON, with curves, timelines, size_choices."""
    simulations = found["simulations"]
    first = simulations[0]
    page = Page(
        "Serving simulated",
        f"{found['workload']}; SLA {milliseconds(found['sla'])}; {first['queries']:,} queries counted",
    )
    if found.get("assumption"):
        page.text(str(found["assumption"]))
    page.tiles(_tiles(first))
    page.heading(f"Policies at {first['load']:,.0f} queries a second")
    _table(page, found)
    page.heading("Loads from idle to more than any policy can hold")
    page.plots(_curves(found))
    for at, simulation in enumerate(simulations):
        page.heading(f"{simulation['policy']}: over time, and by the size of queries")
        page.plots(_over_time(found, at))
    return page.write(path)


def _tiles(first: Mapping[str, Any]) -> list[tuple[str, str]]:
    tiles = [
        (_percent(first["in_time"]), f"of the queries answered inside the SLA, {first['policy']}"),
        (_time(first["p99"]), "99th percentile of the latency"),
        (f"{first['correct_per_s']:,.0f}", "correct predictions a second"),
        (_percent(first["bound_ratio"]), "of what any policy could reach"),
    ]
    if first["gain_captured"] is not None:
        tiles.append((_percent(first["gain_captured"]), "of the best path's accuracy gain captured"))
    return tiles


def _table(page: Page, found: Mapping[str, Any]) -> None:
    columns = (
        "policy", "p50", "p95", "p99", "p99.9", "in SLA", "late", "dropped", "rejected", "accuracy", "gain",
        "correct/s", "of bound",
    )  # fmt: skip
    rows = []
    for s in [*found["simulations"], *([found["accuracy_blind"]] if found["accuracy_blind"] else [])]:
        rows.append(
            [
                s["policy"],
                *(_time(s[p]) for p in ("p50", "p95", "p99", "p999")),
                *(_percent(s[share]) for share in ("in_time", "late", "dropped", "rejected")),
                "–" if s["accuracy"] is None else f"{s['accuracy']:.5f}",
                _percent(s["gain_captured"]),
                f"{s['correct_per_s']:,.0f}",
                _percent(s["bound_ratio"]),
            ]
        )
    page.table(columns, rows, numbers=range(1, len(columns)))
    if found["accuracy_blind"]:
        page.text(
            f"“{found['accuracy_blind']['policy']}” is the adaptive policy blind to accuracy: it chooses a "
            "device, but has table paths alone."
        )
    devices, paths = (
        list(found["simulations"][0]["utilisation"]),
        list(found["simulations"][0]["path_samples"]),
    )
    page.heading("Devices and paths")
    page.table(
        ["policy", *(f"{d} busy" for d in devices), *paths],
        [
            [s["policy"], *(_percent(s["utilisation"][d]) for d in devices), *(_path(s, p) for p in paths)]
            for s in found["simulations"]
        ],
        numbers=range(1, 1 + len(devices) + len(paths)),
    )
    page.text("Of each path: the share of the samples that it computed, and the mean samples of its batches.")


def _path(simulation: Mapping[str, Any], path: str) -> str:
    share = simulation["path_samples"][path]
    return f"{share:.1%} by {simulation['mean_batch'][path]:,.0f}" if share > 0 else "–"


def _curves(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    policies = list(dict.fromkeys(s["policy"] for s in found["curves"]))
    by_policy = {name: [s for s in found["curves"] if s["policy"] == name] for name in policies}
    names = [(name, at % CURVES) for at, name in enumerate(policies)]
    sla = float(found["sla"])
    loads = [s["load"] for s in found["curves"]]
    ticks = _ticks(min(loads), max(loads))

    def plot(field: str, y_label: str, **options: Any) -> str:
        scale = options.pop("scale", 1.0)
        series = [
            Series(
                name,
                [s["load"] for s in by_policy[name]],
                [
                    None if s[field] is None else round(scale * s[field], 6 if scale == 1 else 3)
                    for s in by_policy[name]
                ],
                colour,
                markers=True,
            )
            for name, colour in names
        ]
        body = chart(
            series, x_label="queries a second", y_label=y_label, log_x=True, x_ticks=ticks, **options
        )
        return legend(names) + body if body else ""

    limit = [Level(f"SLA {milliseconds(sla)}", 1e3 * sla)]
    return [
        ("99th percentile of the latency, ms", plot("p99", "ms", scale=1e3, log_y=True, levels=limit)),
        ("Median latency, ms", plot("p50", "ms", scale=1e3, log_y=True, levels=limit)),
        ("Inside the SLA, % of the queries that arrived", plot("in_time", "%", scale=100.0)),
        ("Accuracy gain captured, %", plot("gain_captured", "%", scale=100.0)),
        ("Correct predictions inside the SLA, % of the bound", plot("bound_ratio", "%", scale=100.0)),
        ("Mean accuracy of the answers", plot("accuracy", "accuracy")),
    ]


def _over_time(found: Mapping[str, Any], at: int) -> list[tuple[str, str]]:
    timeline, choices = found["timelines"][at], found["size_choices"][at]
    width = float(timeline["bin_seconds"])
    count = len(timeline["arrived"])
    labels = [_clock(i * width, count * width) for i in range(count)]
    paths = list(timeline["path_samples"])
    used = [p for p in paths if sum(timeline["path_samples"][p]) > 0]
    colours = [paths.index(p) % CURVES for p in used]
    marks = [(_event_time(text) / width, text.split(":", 1)[1]) for text in found["events"]]
    outcomes = [name for name in _OUTCOMES if sum(timeline["outcomes"][name]) > 0]
    outcome_colours = [_OUTCOME_COLOURS[list(_OUTCOMES).index(o)] for o in outcomes]

    def bars(parts: Sequence[Sequence[float]], scale: float = 1.0) -> list[list[float]]:
        return [[scale * v for v in bar] for bar in zip(*parts, strict=True)]

    path_legend = legend(list(zip(used, colours, strict=True)))
    return [
        (
            "What became of the queries, a second",
            legend([(_OUTCOMES[o], c) for o, c in zip(outcomes, outcome_colours, strict=True)])
            + stacked_bars(
                bars([timeline["outcomes"][o] for o in outcomes], 1 / width),
                [_OUTCOMES[o] for o in outcomes],
                labels,
                x_label="time",
                y_label="queries a second",
                colours=outcome_colours,
                marks=marks,
            ),
        ),
        (
            "Samples computed a second, by path",
            path_legend
            + stacked_bars(
                bars([timeline["path_samples"][p] for p in used], 1 / width),
                used,
                labels,
                x_label="time",
                y_label="samples a second",
                colours=colours,
                marks=marks,
            ),
        ),
        (
            "Most samples waiting",
            chart(
                [
                    Series(
                        "waiting",
                        [i * width for i in range(count)],
                        [float(v) for v in timeline["waiting_samples"]],
                    )
                ],
                x_label="seconds",
                y_label="samples waiting",
            ),
        ),
        (
            "Choice of paths by the size of queries",
            path_legend
            + stacked_bars(
                bars([choices["path_shares"][p] for p in used]),
                used,
                [str(n) for n in choices["from"]],
                x_label="samples of a query, from",
                y_label="share of the samples",
                colours=colours,
                share=True,
            ),
        ),
    ]


def _ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, .. from about the lowest load to the highest."""
    steps = [m * 10.0**power for power in range(-3, 9) for m in (1, 2, 5)]
    first = max(s for s in steps if s <= low * 1.15)
    last = min(s for s in steps if s * 1.15 >= high)
    return [s for s in steps if first <= s <= last]


def _event_time(text: str) -> float:
    return float(text.split("s:", 1)[0])


def _clock(seconds: float, span: float) -> str:
    if span < 10:
        return f"{seconds:.2g}s" if span >= 1 else f"{1e3 * seconds:.3g}ms"
    return f"{seconds:.0f}s" if span < 600 else f"{seconds / 60:.0f}min"


def _time(seconds: float | None) -> str:
    return "–" if seconds is None else milliseconds(seconds)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.2f} %"
