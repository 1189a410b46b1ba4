"""`recsys-opt bench server`: what the server adds to its models' own time, and what it holds when full."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from recsys_opt.bench.as_served import Serving
from recsys_opt.bench.record import write_record
from recsys_opt.bench.server import measure
from recsys_opt.cli.arguments import add_record_argument
from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.progress import ConsoleProgress
from recsys_opt.cli.simulate import seconds_of
from recsys_opt.cli.values import at_least
from recsys_opt.serving.sizes import parse_sizes

EXAMPLE = "recsys-opt bench server --profile profile.json --runs runs/ --path table@cpu"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    add = parser.add_argument
    add("--profile", type=Path, required=True, metavar="FILE", help="profile.json, as `serve` takes it")
    add("--runs", type=Path, required=True, metavar="FOLDER", help="as `serve` takes it")
    add("--path", default="table@cpu", help="whose round trips are taken (%(default)s)")
    add("--data", type=Path, metavar="DATASET", help="whose rows are sent (default: generated ones)")
    add(
        "--at",
        type=at_least(1),
        nargs="+",
        default=[1, 128, 1024],
        metavar="N",
        help="samples of the queries of the round trips (default 1 128 1024)",
    )
    add("--queries", type=at_least(1), default=1000, metavar="N", help="of each series (%(default)s)")
    add("--seconds", type=seconds_of, default=10.0, metavar="TIME", help="of saturation (10s)")
    add("--policy", default="adaptive", help="of the saturated server (%(default)s)")
    add("--sla", type=seconds_of, default=0.025, metavar="TIME", help="of the saturated server (25ms)")
    add("--sizes", default="lognormal:mean=128", metavar="TEXT", help="of its queries (%(default)s)")
    add("--spin", type=seconds_of, default=Serving.spin_s, metavar="TIME", help="as `serve` takes it (500us)")
    add_record_argument(parser, "server_cpu.json")


def run(args: argparse.Namespace) -> Outcome:
    """Measures, writes the record, prints a table."""
    with ConsoleProgress() as progress:
        rows = measure(
            Serving(args.profile, args.runs, args.data, args.spin),
            path=args.path,
            sizes=args.at,
            queries=args.queries,
            seconds=args.seconds,
            mix=parse_sizes(args.sizes),
            policy=args.policy,
            sla=args.sla,
            progress=progress,
        )
    write_record(args.record, "server", rows, served_path=args.path, spin_s=args.spin)
    return Outcome("\n".join([*lines_of(rows), f"record     {args.record}"]), {"rows": rows})


def lines_of(rows: list[dict[str, Any]]) -> list[str]:
    """For a person."""
    lines = []
    for row in (r for r in rows if r["what"] == "dispatch"):
        us, cold = row["us_per_query"], row["us_per_query_from_sleep"]
        lines.append(
            f"dispatch   {us['p50']:.2f} us a query, p99 {us['p99']:.2f} us, {row['arriving']} arriving at a "
            f"time; woken from sleep {cold['p50']:.2f} us"
        )
    lines.append(
        f"{'protocol':<10}{'size':>6}{'round trip':>13}{'model':>10}{'added p50':>12}{'p95':>8}{'p99':>8} ms"
    )
    for row in (r for r in rows if r["what"] == "round trip"):
        added = row["added_ms"]
        lines.append(
            f"{row['protocol']:<10}{row['size']:>6}{row['round_trip_ms']['p50']:>13.3f}"
            f"{row['model_ms']['p50']:>10.3f}{added['p50']:>12.3f}{added['p95']:>8.3f}{added['p99']:>8.3f}"
        )
    for row in (r for r in rows if r["what"] == "saturation"):
        lines.append(
            f"saturated  {row['queries_per_s']:,.0f} queries/s, {row['samples_per_s']:,.0f} samples/s, "
            f"models computing {100 * row['model_share']:.0f} % of the time, "
            f"{row['server_us_per_query']:.0f} us of the server's process a query"
        )
    return lines
