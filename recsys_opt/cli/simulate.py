"""`recsys-opt simulate`: what policies do to a workload on a profile's devices."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recsys_opt.bench.record import write_csv
from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.progress import ConsoleProgress
from recsys_opt.cli.simulate_text import against_lines, held_lines, side_by_side, sweep_lines
from recsys_opt.cli.values import at_least, output_file
from recsys_opt.errors import InputError
from recsys_opt.report.serving import write_serving_report
from recsys_opt.serving import sizes, workload
from recsys_opt.serving.against import against
from recsys_opt.serving.choices import POLICIES, parse_policy, python_policy
from recsys_opt.serving.events import parse_event
from recsys_opt.serving.held import QUERIES as HELD_QUERIES
from recsys_opt.serving.held import RUNS, held_load
from recsys_opt.serving.profile import Profile
from recsys_opt.serving.simulation import QUERIES, Policy, Run, Setup, simulate
from recsys_opt.serving.spec import seconds
from recsys_opt.serving.sweep import (
    bin_width,
    loads_to_show,
    parse_sweep,
    size_choices,
    sweep,
    timeline,
)
from recsys_opt.serving.trace import read_trace, write_trace
from recsys_opt.serving.trace_of import trace_of

EXAMPLE = """recsys-opt simulate profile.json --policy adaptive --policy mp-rec --load 1000 --sla 25ms
  recsys-opt simulate profile.json --load-held --sla 10ms --sizes lognormal:mean=128
  recsys-opt simulate profile.json --load 2000 --event 10s:gpu:lost --event 20s:gpu:ok --html p.html
  recsys-opt simulate profile.json --sweep load=100:5000:log,sla=10ms,25ms,100ms --csv sweep.csv
  recsys-opt simulate profile.json --against run.npz"""
BLIND = "tables only"
"""The accuracy-blind baseline's column."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    add = parser.add_argument
    add("profile", type=Path, metavar="PROFILE", help="profile.json of recsys-opt profile")
    known = "; ".join(f"{name}: {what}" for name, what in POLICIES.items())
    add(
        "--policy",
        action="append",
        default=[],
        metavar="POLICY",
        help=f"may be given several times (default adaptive). {known}",
    )
    add(
        "--python-policy",
        action="append",
        default=[],
        metavar="FILE:CLASS",
        help="a policy of your own, a subclass of recsys_opt._serving.Policy; may be given several times",
    )
    add("--load", type=float, metavar="QPS", help="queries a second")
    add("--sla", type=seconds_of, metavar="TIME", help="e.g. 25ms (the default), or the recorded run's")
    arrivals = "; ".join(f"{name}:{what}" for name, what in workload.KINDS.items())
    add("--arrivals", default="poisson", metavar="TEXT", help=f"default poisson. {arrivals}")
    kinds = "; ".join(f"{name}:{what}" for name, what in sizes.KINDS.items())
    add("--sizes", metavar="TEXT", help=f"of queries; default lognormal:mean=128, or the trace's. {kinds}")
    add("--paths", metavar="A,B,..", help="the profile's paths to use (default: all)")
    add(
        "--event",
        action="append",
        default=[],
        metavar="T:DEVICE:WHAT",
        help="WHAT is lost, ok, or x2 (takes twice as long), e.g. 10s:gpu:lost; may be given several times",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--queries", type=at_least(1), metavar="N", help=f"to simulate (default {QUERIES})")
    length.add_argument(
        "--seconds", type=seconds_of, metavar="TIME", help="to simulate, in place of --queries"
    )
    add("--seed", type=at_least(0), default=0, metavar="N", help="default 0")
    add("--max-waiting", type=at_least(1), default=1 << 40, metavar="N", help="samples (default: no limit)")
    add(
        "--overhead",
        type=seconds_of,
        metavar="TIME",
        help="of each query beside wait and batch: network and server (default: what a profile says whose "
        "times are as served, else 0s)",
    )
    what = parser.add_argument_group("what to find out, in place of one simulation of each policy")
    what.add_argument(
        "--load-held",
        action="store_true",
        help=f"the most load of which 99 %% of the queries that arrive are answered inside the SLA, with its "
        f"confidence interval over {RUNS} runs of {HELD_QUERIES} queries",
    )
    what.add_argument(
        "--sweep",
        metavar="TEXT",
        help="loads and SLAs, e.g. load=100:5000:log,sla=10ms,25ms (a range has 12 points unless it says "
        "e.g. 100:5000:log:30)",
    )
    what.add_argument(
        "--against",
        type=Path,
        metavar="RUN",
        help="a recorded run's arrivals, simulated beside what was measured: with its own service times, "
        "from the profile alone, and from the profile at the speed that each path had in the run",
    )
    what.add_argument(
        "--skip",
        type=seconds_of,
        default=0.0,
        metavar="TIME",
        help="of the recorded run's start, simulated but not compared: a server may have been busy before",
    )
    add("--csv", type=output_file, metavar="FILE", help="the figures of each simulation as CSV")
    add("--html", type=output_file, metavar="FILE", help="a page: latency by load, timelines, paths by size")
    add(
        "--record",
        type=output_file,
        metavar="FILE",
        help="a trace of the first policy's simulation, .npz or .jsonl, as the load generator writes them",
    )


def seconds_of(text: str) -> float:
    """A time on the command line."""
    try:
        return seconds(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run(args: argparse.Namespace) -> Outcome:
    """Simulates, prints figures side by side."""
    profile = Profile.load(args.profile)
    if args.paths:
        profile = profile.with_paths([p.strip() for p in args.paths.split(",")])
    policies = [parse_policy(text) for text in args.policy] + [python_policy(t) for t in args.python_policy]
    policies = policies or [parse_policy("adaptive")]
    if sum(bool(chosen) for chosen in (args.load_held, args.sweep, args.against)) > 1:
        raise InputError("--load-held, --sweep and --against are three questions; ask one at a time")
    head = [profile.assumption()] if profile.assumed else []
    about: dict[str, Any] = {"profile": str(args.profile), "assumption": profile.assumption()}
    with ConsoleProgress() as progress:
        if args.against:
            trace = read_trace(args.against)
            compared = [
                against(
                    profile, p, trace, sla=args.sla, seed=args.seed, overhead=args.overhead, skip=args.skip
                )
                for p in policies
            ]
            lines = [line for c in compared for line in against_lines(c)]
            return Outcome(
                "\n".join([*_told(head), *lines]), {**about, "against": [c.to_json() for c in compared]}
            )
        setup = make_setup(args, profile)
        about |= {"workload": setup.workload.spec, "sla": setup.sla, "seed": setup.seed}
        if args.load_held:
            progress.start("finding the loads held", len(policies) * RUNS, "runs")
            held = [(p.name, held_load(setup, p, done=lambda: progress.advance(1))) for p in policies]
            rows = [{"policy": name, **_held_row(h)} for name, h in held]
            _write(args.csv, rows)
            return Outcome("\n".join([*_told(head), *held_lines(held)]), {**about, "held": rows})
        if args.sweep:
            over = parse_sweep(args.sweep)
            progress.start(
                "sweeping", len(policies) * len(over.get("sla", "1")) * len(over.get("load", "1")), "runs"
            )
            found = sweep(setup, policies, over, done=lambda: progress.advance(1))
            rows = [flat(s.to_json()) for s in found]
            _write(args.csv, rows)
            text = "\n".join([*_told(head), *sweep_lines(found)])
            return Outcome(text, {**about, "simulations": [s.to_json() for s in found]})
        return _simulate(args, setup, policies, _told(head), about, progress)


def _simulate(
    args: argparse.Namespace,
    setup: Setup,
    policies: Sequence[Policy],
    head: Sequence[str],
    about: dict[str, Any],
    progress: ConsoleProgress,
) -> Outcome:
    width = bin_width(setup) if args.html else 0.0
    progress.start("simulating", len(policies), "policies")
    runs: list[Run] = []
    for policy in policies:
        keep = args.record is not None and not runs
        runs.append(simulate(setup, policy, bin_seconds=width, record=keep))
        progress.advance(1)
    if args.record is not None:
        write_trace(args.record, trace_of(setup, runs[0]))
    blind = blind_run(setup)
    summaries = [r.summary for r in runs]
    result = {
        **about,
        "events": [e.spec for e in setup.events],
        "simulations": [s.to_json() for s in summaries],
        "accuracy_blind": None if blind is None else blind.to_json(),
    }
    _write(args.csv, [flat(s.to_json()) for s in summaries])
    lines = [*head, *side_by_side(setup, summaries, blind)]
    if args.html:
        loads = loads_to_show(setup)
        progress.start("curves over the load", len(policies) * len(loads), "runs")
        plain = setup.at(events=(), queries=min(setup.queries, 100_000), warmup=None)
        curves = sweep(plain, policies, {"load": loads}, done=lambda: progress.advance(1))
        page = {
            **result,
            "load": setup.workload.rate,
            "curves": [s.to_json() for s in curves],
            "timelines": [timeline(r, width) for r in runs],
            "size_choices": [size_choices(r) for r in runs],
        }
        write_serving_report(page, args.html)
        lines.append(f"page    {args.html}")
    if args.record is not None:
        lines.append(f"trace   {args.record}")
    return Outcome("\n".join(lines), result)


def make_setup(args: argparse.Namespace, profile: Profile) -> Setup:
    """What the arguments say is simulated."""
    arrivals = workload.parse_arrivals(args.arrivals)
    own = isinstance(arrivals, workload.Recorded) and arrivals.sizes is not None
    text = args.sizes or (None if own else "lognormal:mean=128")
    load = args.load
    if load is None and arrivals.rate is None and (args.load_held or (args.sweep and "load=" in args.sweep)):
        load = 1.0  # others are tried
    found = workload.make_workload(arrivals, sizes.parse_sizes(text) if text else None, load)
    queries = args.queries or QUERIES
    if args.seconds is not None:
        queries = max(1, round(args.seconds * found.rate))
    if isinstance(arrivals, workload.Recorded):
        queries = min(queries, len(arrivals.arrivals))
    return Setup(
        profile,
        found,
        0.025 if args.sla is None else args.sla,
        queries=queries,
        seed=args.seed,
        events=tuple(parse_event(text) for text in args.event),
        max_waiting=args.max_waiting,
        overhead=args.overhead,
    )


def blind_run(setup: Setup) -> Any:
    """The adaptive policy with the tables alone: it picks a device, but no representation."""
    tables = [p for p in setup.profile.paths if p.representation == "table"]
    if not tables or len(tables) == len(setup.profile.paths):
        return None
    profile = setup.profile.with_paths([p.name for p in tables])
    left = {d.name for d in profile.devices}
    own = setup.at(profile=profile, events=tuple(e for e in setup.events if e.device in left))
    warmup = setup.warmup_queries  # the same queries count
    policy = parse_policy("adaptive")
    return simulate(own.at(warmup=warmup), Policy(BLIND, policy.make)).summary


def flat(document: dict[str, Any]) -> dict[str, Any]:
    """Figures by path and device in columns of their own."""
    found: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, dict):
            found |= {f"{key}[{name}]": v for name, v in value.items()}
        else:
            found[key] = value
    return found


def _held_row(held: Any) -> dict[str, Any]:
    return {
        "load": held.load,
        "within": held.within,
        "share": held.share,
        "sla": held.sla,
        "bound": held.bound,
        "ratio": held.ratio,
        "runs": held.runs,
        "queries": held.queries,
    }


def _write(path: Path | None, rows: Sequence[dict[str, Any]]) -> None:
    if path is not None:
        write_csv(path, rows)


def _told(head: Sequence[str | None]) -> list[str]:
    return [line for line in head if line]
