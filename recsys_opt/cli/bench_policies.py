"""`recsys-opt bench policies`: serving policies side by side, on profiles."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from recsys_opt.bench.record import write_record
from recsys_opt.bench.serving_policies import SLAS, Settings, measure
from recsys_opt.cli.arguments import add_record_argument
from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.progress import ConsoleProgress
from recsys_opt.cli.simulate import seconds_of
from recsys_opt.cli.values import at_least
from recsys_opt.report.page import milliseconds
from recsys_opt.serving.profile import Profile

EXAMPLE = "recsys-opt bench policies benchmarks/results/profiles/kaggle_h100_published.json --sla 25ms"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    parser.add_argument("profiles", type=Path, nargs="+", metavar="PROFILE", help="profile.json")
    parser.add_argument(
        "--sla",
        type=seconds_of,
        nargs="+",
        default=list(SLAS),
        metavar="TIME",
        help="default 10ms 25ms 100ms",
    )
    defaults = Settings()
    parser.add_argument(
        "--sizes", default=defaults.sizes, metavar="TEXT", help=f"of queries (default {defaults.sizes})"
    )
    parser.add_argument(
        "--queries",
        type=at_least(1000),
        default=defaults.queries,
        metavar="N",
        help=f"of a simulation (default {defaults.queries})",
    )
    parser.add_argument(
        "--runs", type=at_least(2), default=defaults.runs, metavar="N", help=f"default {defaults.runs}"
    )
    parser.add_argument("--seed", type=at_least(0), default=0, metavar="N", help="default 0")
    add_record_argument(parser, "serving_policies.json")


def run(args: argparse.Namespace) -> Outcome:
    """Measures, writes the record, prints tables."""
    settings = Settings(args.sizes, tuple(args.sla), args.runs, args.queries, args.seed)
    rows: list[dict[str, Any]] = []
    with ConsoleProgress() as progress:
        for path in args.profiles:
            rows += measure(path.stem, Profile.load(path), settings, progress)
    write_record(
        args.record, "serving_policies", rows, sizes=args.sizes, runs=args.runs, queries=args.queries
    )
    lines: list[str] = []
    for profile in dict.fromkeys(r["profile"] for r in rows):
        own = [r for r in rows if r["profile"] == profile]
        if own[0]["assumption"]:
            lines.append(f"{profile}: {own[0]['assumption']}"[:100])
        for sla in dict.fromkeys(r["sla"] for r in own):
            lines += ["", *_tables(profile, sla, [r for r in own if r["sla"] == sla])]
    return Outcome("\n".join([*lines, "", f"record  {args.record}"]), {"rows": rows})


def _tables(profile: str, sla: float, rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        f"{profile}, SLA {milliseconds(sla)}: loads held at 99 % inside it, and correct predictions/s",
        f"  {'policy':<20}{'held':>8}{'+-':>6}{'of bound':>10}{'threshold':>11}{'mp-rec':>8}"
        f"{'at 1,000/s':>12}{'table@cpu':>11}{'at held':>10}",
    ]
    paper = {r["policy"]: r for r in rows if r["kind"] == "paper"}
    for r in rows:
        if r["kind"] != "held":
            continue
        p = paper.get(r["policy"], {})
        lines.append(
            f"  {r['policy'][:19]:<20}{r['load']:>8,.0f}{r['within']:>6,.0f}{r['of_bound']:>10.1%}"
            f"{_times(r['times_threshold']):>11}{_times(r['times_mp_rec']):>8}"
            f"{p.get('correct_per_s', 0.0):>12,.0f}{_times(p.get('times_table_on_cpu')):>11}"
            f"{_times(p.get('times_table_on_cpu_at_held')):>10}"
        )
    lines.append(
        f"  {'':<40}{'policy':<12}{'late*':>8}{'rejected':>10}{'gain':>8}{'most':>8}{'of bound':>11}"
    )
    for r in rows:
        if r["kind"] in ("load", "change"):
            what = f"{100 * r['of_held']:g} % of held" if r["kind"] == "load" else r["change"]
            lines.append(
                f"  {what[:39]:<40}{r['policy'][:11]:<12}{r['late_of_admitted']:>8.2%}{r['rejected']:>10.2%}"
                f"{_percent(r['gain_captured']):>8}{_percent(r['bound_gain']):>8}{r['of_bound']:>11.2%}"
            )
    return [
        *lines,
        "  held: over that of threshold and mp-rec. at 1,000/s: correct predictions a second there, over the",
        "  most that the tables on the CPU reach at any load; at held: the same at the load held.",
        "  * late or dropped, of the queries admitted; gain captured and the most possible, %",
    ]


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
