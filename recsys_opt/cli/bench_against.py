"""`recsys-opt bench against`: real runs of the server beside what simulation says of them."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from recsys_opt.bench.against import AgainstSettings, measure
from recsys_opt.bench.as_served import Serving
from recsys_opt.bench.record import write_record
from recsys_opt.cli.arguments import add_record_argument
from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.progress import ConsoleProgress
from recsys_opt.cli.simulate import seconds_of
from recsys_opt.cli.values import at_least
from recsys_opt.serving.sizes import parse_sizes

EXAMPLE = "recsys-opt bench against profile.json --runs runs/ --policy adaptive --policy static:table@cpu"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    add = parser.add_argument
    add("profile", type=Path, metavar="PROFILE", help="profile.json, as `serve` takes it")
    add("--runs", type=Path, required=True, metavar="FOLDER", help="as `serve` takes it")
    add("--data", type=Path, metavar="DATASET", help="whose rows are sent (default: generated ones)")
    add("--policy", action="append", default=[], help="may be given several times (default adaptive)")
    add(
        "--shares",
        type=float,
        nargs="+",
        default=list(AgainstSettings.shares),
        metavar="X",
        help="of what the fastest path answers one query at a time (default 0.3 0.6 0.8)",
    )
    add("--sizes", default="lognormal:mean=128", metavar="TEXT", help="of queries (%(default)s)")
    add("--sla", type=seconds_of, default=AgainstSettings.sla, metavar="TIME", help="default 100ms")
    add("--seconds", type=seconds_of, default=10.0, metavar="TIME", help="of each run, after 100 SLAs (10s)")
    add(
        "--path-seconds", type=seconds_of, default=10.0, metavar="TIME", help="of each path's own loads (10s)"
    )
    add("--repeat", type=at_least(1), default=2, metavar="N", help="runs of each load (%(default)s)")
    add("--spin", type=seconds_of, default=Serving.spin_s, metavar="TIME", help="as `serve` takes it (500us)")
    add("--seed", type=at_least(0), default=0, metavar="N", help="default 0")
    add("--keep", type=Path, metavar="FOLDER", help="where the profile as served and the traces go")
    add_record_argument(parser, "against_cpu.json")


def run(args: argparse.Namespace) -> Outcome:
    """Measures, simulates, writes the record, prints both side by side."""
    settings = AgainstSettings(
        policies=tuple(args.policy or ["adaptive"]),
        shares=tuple(args.shares),
        sizes=parse_sizes(args.sizes),
        sla=args.sla,
        seconds=args.seconds,
        path_seconds=args.path_seconds,
        repeats=args.repeat,
        seed=args.seed,
    )
    serving = Serving(args.profile, args.runs, args.data, args.spin)
    with ConsoleProgress() as progress, tempfile.TemporaryDirectory() as scratch:
        rows, profile = measure(serving, settings, args.keep or Path(scratch), progress)
    assert profile.as_served is not None
    beside = vars(profile.as_served)
    write_record(args.record, "against", rows, spin_s=args.spin, as_served=beside, sizes=args.sizes)
    return Outcome("\n".join([*lines_of(rows), f"record     {args.record}"]), {"rows": rows})


def lines_of(rows: list[dict[str, Any]]) -> list[str]:
    """For a person."""
    lines = [
        f"{'policy':<20}{'share':>6}{'load':>7}{'':>5}{'measured':>12}{'recorded times':>16}"
        f"{'from profile':>15}{'at its speed':>15}{'runs apart':>12}{'profiles':>10}{'others':>13}"
    ]
    for row in rows:
        others = " ".join(f"{100 * d['others']:.1f}" for d in row["disturbance"])
        for name in ("p50", "p99"):
            found = row[name]
            measured = sum(found["measured_ms"]) / len(found["measured_ms"])
            off = [_all(found[f"{way}_off"]) for way in ("replayed", "profiled", "at_speed")]
            apart = [_share(found[f"{what}_apart"]) for what in ("runs", "profiles")]
            lines.append(
                f"{row['policy'][:19]:<20}{row['share']:>6.0%}{row['load']:>7.0f}{name:>5}{measured:>9.2f} ms"
                f"{off[0]:>16}{off[1]:>15}{off[2]:>15}{apart[0]:>12}{apart[1]:>10}{others:>11} %"
            )
    return lines


def _all(values: list[float | None]) -> str:
    return " ".join("-" if v is None else f"{100 * v:+.1f}" for v in values) + " %"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
