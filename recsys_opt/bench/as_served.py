"""A profile's paths inside the server: `recsys-opt serve` with each by itself, under a load of its own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from recsys_opt.bench.load import Load, Plan, samples_for, send
from recsys_opt.bench.served import Served, served
from recsys_opt.environment import environment
from recsys_opt.errors import InputError
from recsys_opt.progress import Progress, SilentProgress
from recsys_opt.serving.calibration import as_served
from recsys_opt.serving.profile import Path as ServedPath
from recsys_opt.serving.profile import Profile
from recsys_opt.serving.trace import State, Trace

_FIRST_S = 0.5
_MOST_LOST = 0.02
_LIMITS = ("--sla", "30s", "--max-within", "60s")


@dataclass(frozen=True)
class Serving:
    """How the profile's paths are served while they are measured."""

    profile: Path
    runs: Path
    data: Path | None = None
    """Whose rows are sent; None: generated ones."""
    spin_s: float = 0.0005
    """As `recsys-opt serve --spin`."""

    @contextlib.contextmanager
    def server(self, *arguments: str, grpc: bool = False) -> Iterator[Served]:
        """A server; the process that asks it keeps to the server's own cores meanwhile."""
        own = os.sched_getaffinity(0)
        spin = ("--spin", f"{self.spin_s:g}s")
        with served(self.profile, self.runs, *spin, *arguments, grpc=grpc) as server:
            os.sched_setaffinity(0, os.sched_getaffinity(server.process.pid))
            try:
                yield server
            finally:
                os.sched_setaffinity(0, own)


def measured_as_served(
    serving: Serving,
    *,
    paths: Sequence[str] = (),
    seconds: float = 10.0,
    share: float = 0.6,
    seed: int = 0,
    progress: Progress | None = None,
) -> Profile:
    """The measured paths (default: all) with their times inside the server, and what it adds to a query."""
    traces = served_traces(serving, paths=paths, seconds=seconds, share=share, seed=seed, progress=progress)
    found = as_served(Profile.load(serving.profile), traces)
    devices = {p.device for p in found.paths}
    about: dict[str, Any] = {
        **environment(),
        "as_served": f"{seconds:g} s of load on each path by itself, {share:.0%} of its capacity",
        "spin_s": serving.spin_s,
        "queries": traces[0].circumstances["samples"],
    }
    before = found.circumstances
    return replace(found, circumstances={**before, **{d: {**before.get(d, {}), **about} for d in devices}})


def served_traces(
    serving: Serving,
    *,
    paths: Sequence[str] = (),
    seconds: float = 10.0,
    share: float = 0.6,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Trace]:
    """Of a load on each of the measured paths (default: all) by itself.

    seconds  of load for each path
    share    of its capacity: a worker is found at work and waiting, about as often
    """
    progress = progress or SilentProgress()
    profile = Profile.load(serving.profile)
    names = list(paths) or [p.name for p in profile.paths if not p.assumed]
    if not names:
        raise InputError(f"all paths of {serving.profile} are assumed: there is nothing to serve")
    traces = []
    progress.start("serving", len(names), "paths")
    for name in names:
        path = profile.path(name)
        workers = profile.device(path.device).workers
        with serving.server("--paths", name, "--policy", f"static:{name}", *_LIMITS) as server:
            samples = samples_for(server.target, serving.data)
            # Batches take longer here than in the profile; what is sent is a share of what they leave.
            first = send(server.target, _plan(path, _FIRST_S, share * workers, seed + 1), samples).trace
            (slower,) = as_served(profile.with_paths([name]), [first]).paths
            load = send(server.target, _plan(slower, seconds, share * workers, seed), samples, seed=seed)
            server.stop()
        _refuse_losses(name, load)
        traces.append(load.trace)
        progress.advance(1, path=name)
    progress.finish()
    return traces


def capacity(path: ServedPath, sizes: np.ndarray[Any, Any], workers: int = 1) -> float:
    """Queries of these sizes that a path answers in a second, one at a time on each worker."""
    found, counts = np.unique(np.minimum(sizes, path.max_size), return_counts=True)
    each = np.array([path.expected(int(s)) for s in found])
    return float(workers * len(sizes) / (each @ counts))


def _plan(path: ServedPath, seconds: float, share: float, seed: int) -> Plan:
    """Poisson arrivals: half of the time sizes lognormal as queries' are, then sizes spread evenly over all
    scales. Not mixed, as a small batch that follows a large one finds the caches cold, and takes longer."""
    random = np.random.default_rng([seed, 7])
    count = 1_000_000 // 8
    usual = random.lognormal(np.log(128) - 0.5, 1.0, count)
    spread = np.exp(random.uniform(0.0, np.log(path.max_size), count))
    arrivals, sizes, rates = [], [], []
    for begin, drawn in ((0.0, usual), (seconds / 2, spread)):
        whole = np.clip(np.rint(drawn), 1, path.max_size).astype(np.int64)
        rates.append(share * capacity(path, whole))
        at = begin + np.cumsum(random.exponential(1 / rates[-1], count))
        kept = at < begin + seconds / 2
        arrivals.append(at[kept])
        sizes.append(whole[kept])
    said = f"{rates[0]:.4g} queries/s of lognormal sizes, then {rates[1]:.4g} of spread ones"
    return Plan(np.concatenate(arrivals), np.concatenate(sizes), said)


def _refuse_losses(name: str, load: Load) -> None:
    lost = int((load.trace.state != State.ANSWERED).sum())
    if lost > _MOST_LOST * len(load.trace):
        raise InputError(
            f"path {name}: {lost} of {len(load.trace)} queries were not answered ({dict(load.messages)}); "
            "its times in the profile are shorter than here: profile it again on this machine"
        )
