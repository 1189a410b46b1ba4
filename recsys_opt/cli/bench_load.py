"""`recsys-opt bench load`: load for a server, and a record of what became of each query."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from recsys_opt.bench.load import Plan, Target, samples_for, send
from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.progress import ConsoleProgress
from recsys_opt.cli.serve import address
from recsys_opt.cli.simulate import seconds_of
from recsys_opt.cli.values import at_least, output_file
from recsys_opt.server.auth import VARIABLE, read_token
from recsys_opt.serving import sizes, workload
from recsys_opt.serving.trace import write_trace

EXAMPLE = """recsys-opt bench load --http 127.0.0.1:8080 --load 300 --seconds 30s --record run.npz
  recsys-opt simulate profile.json --against run.npz"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    add = parser.add_argument
    add("--http", type=address, required=True, metavar="HOST:PORT", help="of the server")
    add("--load", type=float, metavar="QPS", help="queries a second")
    arrivals = "; ".join(f"{name}:{what}" for name, what in workload.KINDS.items())
    add("--arrivals", default="poisson", metavar="TEXT", help=f"default poisson. {arrivals}")
    kinds = "; ".join(f"{name}:{what}" for name, what in sizes.KINDS.items())
    add("--sizes", metavar="TEXT", help=f"of queries; default lognormal:mean=128, or the trace's. {kinds}")
    add("--seconds", type=seconds_of, default=10.0, metavar="TIME", help="of load (default 10s)")
    add("--sla", type=seconds_of, metavar="TIME", help="that queries ask for (default: the server's)")
    add("--data", type=Path, metavar="DATASET", help="whose rows are sent (default: generated ones)")
    add("--seed", type=at_least(0), default=0, metavar="N", help="default 0")
    add(
        "--token-file",
        type=Path,
        metavar="FILE",
        help=f"has the server's token (default: the environment's {VARIABLE}, else none)",
    )
    add(
        "--record",
        type=output_file,
        metavar="FILE",
        help="a trace of the run, .npz or .jsonl, as recsys-opt simulate --against reads it",
    )


def run(args: argparse.Namespace) -> Outcome:
    """Sends the queries, prints what became of them."""
    arrivals = workload.parse_arrivals(args.arrivals)
    own = isinstance(arrivals, workload.Recorded) and arrivals.sizes is not None
    text = args.sizes or (None if own else "lognormal:mean=128")
    found = workload.make_workload(arrivals, sizes.parse_sizes(text) if text else None, args.load)
    host, port = args.http
    target = Target(host, port, read_token(args.token_file))
    plan = Plan.of(found, args.seconds, args.seed)
    with ConsoleProgress() as progress:
        samples = samples_for(target, args.data)
        progress.start("sending", len(plan.arrivals), "queries")
        load = send(target, plan, samples, sla=args.sla, seed=args.seed, done=progress.advance)
    if args.record is not None:
        write_trace(args.record, load.trace)
    summary = load.summary()
    lines = summary_lines(summary, load.trace.sla)
    if args.record is not None:
        lines.append(f"trace      {args.record}")
    return Outcome("\n".join(lines), {"workload": plan.what, **summary})


def summary_lines(summary: dict[str, Any], sla: float | None) -> list[str]:
    """For a person."""
    lines = [f"queries    {summary['queries']:,} of {summary['samples']:,} samples"]
    if summary["offered_per_s"]:
        lines[0] += f", {summary['offered_per_s']:,.1f} a second"
    states = ("answered", "rejected", "dropped", "failed")
    lines.append("outcomes   " + ", ".join(f"{summary[s]:,} {s}" for s in states))
    if sla is not None and summary["in_sla"] is not None:
        lines.append(f"in SLA     {100 * summary['in_sla']:.2f} % within {1e3 * sla:g} ms")
    for name, what in (("latency", "latency_ms"), ("beside", "beside_ms"), ("sent late", "lag_ms")):
        if summary[what] is not None:
            told = "  ".join(f"{key} {value:.3f}" for key, value in summary[what].items())
            lines.append(f"{name:<11}{told} ms")
    if summary["paths"]:
        lines.append(
            "paths      " + ", ".join(f"{name} {count:,}" for name, count in summary["paths"].items())
        )
    return lines
