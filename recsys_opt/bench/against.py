"""Simulation held against measurement: real runs of the server, each beside what simulation says of it.

Every load is sent twice, and each path is measured by itself before all runs and after each policy's: how far
the two runs, and what two halves of these measurements predict, lie apart is the machine's noise, without
which an error says nothing. The server has the first measurement as its profile. Predictions are from all of
them: they lie among the runs, so that the machine's slow phases are in both.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recsys_opt.bench.as_served import Serving, capacity, served_traces
from recsys_opt.bench.load import Plan, samples_for, send
from recsys_opt.bench.served import Disturbance
from recsys_opt.progress import Progress
from recsys_opt.serving.against import Comparison, against
from recsys_opt.serving.calibration import as_served
from recsys_opt.serving.choices import parse_policy
from recsys_opt.serving.profile import Profile
from recsys_opt.serving.sizes import Sizes
from recsys_opt.serving.trace import Trace, write_trace
from recsys_opt.serving.workload import make_workload, parse_arrivals

_FIRST = 100
"""SLAs; the adaptive policy averages arrivals over half as long."""


@dataclass(frozen=True)
class AgainstSettings:
    """What is run."""

    policies: tuple[str, ...]
    shares: tuple[float, ...] = (0.3, 0.6, 0.8)
    """Of what the fastest path answers, one query at a time."""
    sizes: Sizes | None = None
    sla: float = 0.1
    seconds: float = 10.0
    """Of each run, after the first ones, which are not compared."""
    path_seconds: float = 10.0
    """Of each path's own load, before the runs and after each policy's."""
    repeats: int = 2
    seed: int = 0

    @property
    def first_s(self) -> float:
        """What the policy may remember of the run before."""
        return _FIRST * self.sla


def measure(
    serving: Serving, settings: AgainstSettings, folder: Path, progress: Progress
) -> tuple[list[dict[str, Any]], Profile]:
    """A row for each policy and load, and the profile as served that predictions are from.

    folder  gets the server's profile and the runs' traces
    """
    folder.mkdir(parents=True, exist_ok=True)
    before = _served(serving, settings, settings.seed, progress)
    profile = as_served(Profile.load(serving.profile), before)
    own = folder / "profile.json"
    profile.save(own)
    plans = _plans(profile, settings)
    served = Serving(own, serving.runs, serving.data, serving.spin_s)
    runs: dict[tuple[str, float], list[tuple[Trace, Disturbance]]] = {}
    parts = [before]
    for repeat in range(settings.repeats):
        for policy in settings.policies:
            progress.start("runs", len(plans), "runs")
            with served.server("--policy", policy, "--sla", f"{settings.sla:g}s") as server:
                samples = samples_for(server.target, serving.data)
                send(server.target, Plan.of(_workload(settings, 50.0), 0.5, 99), samples)  # warms up
                for share, plan in plans.items():
                    with Disturbance.during(server) as disturbance:
                        trace = send(server.target, plan, samples, seed=settings.seed).trace
                    runs.setdefault((policy, share), []).append((trace, disturbance[0]))
                    name = policy.partition(":")[0]
                    write_trace(folder / f"{name}_{100 * share:.0f}_{repeat}.npz", trace)
                    progress.advance(1, policy=policy, share=f"{share:.0%}")
                server.stop()
            progress.finish()
            parts.append(_served(serving, settings, settings.seed + len(parts), progress))
    bare = Profile.load(serving.profile)
    times, *halves = (
        as_served(bare, list(itertools.chain(*own))) for own in (parts, parts[::2], parts[1::2])
    )
    return [row(profile, times, halves, *key, found, settings.first_s) for key, found in runs.items()], times


def row(
    profile: Profile,
    times: Profile,
    halves: Sequence[Profile],
    policy: str,
    share: float,
    runs: Sequence[tuple[Trace, Disturbance]],
    skip: float = 0.0,
) -> dict[str, Any]:
    """One load's runs beside their simulations; relative errors, and how far apart measurements are.

    profile  that the server had
    times    that predictions are from
    halves   measurements of it
    skip     seconds at the start of runs
    """
    traces = [trace for trace, _ in runs]
    chosen = parse_policy(policy)
    found = [against(profile, chosen, trace, times=times, skip=skip) for trace in traces]
    others = [against(profile, chosen, traces[0], times=half, skip=skip) for half in halves]
    figures: dict[str, Any] = {"policy": policy, "share": share, "load": found[0].load, "sla": found[0].sla}
    for name in ("p50", "p95", "p99", "mean"):
        mine = [_row(c, name) for c in found]
        measured = [r.measured for r in mine]
        figures[name] = {
            "measured_ms": [1e3 * (m or 0.0) for m in measured],
            "replayed_off": [r.replayed_off for r in mine],
            "profiled_off": [r.profiled_off for r in mine],
            "at_speed_off": [r.at_speed_off for r in mine],
            "runs_apart": _apart(measured),
            "profiles_apart": _apart([_row(c, name).profiled for c in others]),
        }
    figures["in_sla"] = {
        "measured": [_row(c, "in SLA").measured for c in found],
        "profiled": [_row(c, "in SLA").profiled for c in found],
    }
    for name in ("batch_size", "paths"):
        figures[name] = [_of_batches(trace)[name] for trace in traces]
    figures["queries"] = len(traces[0])
    figures["slowness"] = [c.slowness for c in found]
    figures["disturbance"] = [vars(d) for _, d in runs]
    figures["notes"] = [list(c.notes) for c in found]
    return figures


def _plans(profile: Profile, settings: AgainstSettings) -> dict[float, Plan]:
    sizes = settings.sizes or Sizes.of(np.array([128]), "128")
    drawn = sizes.draw(100_000, np.random.default_rng(settings.seed))
    most = max(capacity(p, drawn, profile.device(p.device).workers) for p in profile.paths)
    return {
        share: Plan.of(_workload(settings, share * most), settings.first_s + settings.seconds, settings.seed)
        for share in settings.shares
    }


def _served(serving: Serving, settings: AgainstSettings, seed: int, progress: Progress) -> list[Trace]:
    return served_traces(serving, seconds=settings.path_seconds, seed=seed, progress=progress)


def _workload(settings: AgainstSettings, rate: float) -> Any:
    return make_workload(parse_arrivals("poisson"), settings.sizes, rate)


def _row(compared: Comparison, name: str) -> Any:
    (found,) = (r for r in compared.rows if r.name == name)
    return found


def _apart(values: Sequence[float | None]) -> float | None:
    """The largest over the smallest, less one."""
    known = [v for v in values if v]
    return max(known) / min(known) - 1 if len(known) > 1 else None


def _of_batches(trace: Trace) -> dict[str, Any]:
    answered = trace.answered
    shares = np.bincount(trace.path[answered], trace.size[answered], minlength=len(trace.paths))
    total = max(1.0, float(shares.sum()))
    return {
        "batch_size": float(trace.batch_size[answered].mean()) if answered.any() else None,
        "paths": {name: float(s) / total for name, s in zip(trace.paths, shares, strict=True)},
    }
