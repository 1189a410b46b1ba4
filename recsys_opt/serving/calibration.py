"""A profile as a server serves it, from recorded runs of one.

`recsys-opt profile` times models by themselves. In a server a batch takes longer: its inputs are copied to
the worker and its outputs back, the worker is woken, the batch is filled up to one of a few sizes, and the
caches hold what the batch before it left there. All this is in the service times that a server reports, so
the profile's times are scaled to them: by how many times the profile's mean the recorded batches of about
a size took.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_opt.errors import InputError
from recsys_opt.serving.as_served import AsServed, padded
from recsys_opt.serving.profile import Path, Profile, ServiceTime
from recsys_opt.serving.trace import Trace

Array = NDArray[Any]
SIZES = (
    *(1, 2, 4, 8, 12, 16, 24, 32, 40, 48, 56, 64, 80, 96, 128, 160, 192, 256, 320, 384, 512, 640, 768),
    *(1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384),
)
"""Those that times are given for; the server computes batches of all of them as they are."""
FEWEST = 100
"""Batches of about a size that its times rest on; where it has fewer, the nearest others are taken, too."""
_AT_ONCE_S = 1e-6


def as_served(profile: Profile, traces: Sequence[Trace]) -> Profile:
    """The profile with the service times of recorded runs, and what they took of a query beside.

    Paths without a recorded batch are left out.
    """
    runs = [recorded_batches(trace) for trace in traces]
    paths, late = [], []
    for path in profile.paths:
        own = [b.of_path(path.name) for b in runs]
        sizes, seconds, waited_for = (np.concatenate(column) for column in zip(*own, strict=True))
        if not len(sizes):
            continue
        full = np.minimum([padded(int(s)) for s in sizes], path.max_size)
        # Of a worker that computed one batch after another, where there are enough of them.
        busy = ~waited_for if (~waited_for).sum() >= FEWEST else np.ones(len(sizes), bool)
        paths.append(_scaled(path, full[busy], seconds[busy]))
        late.append(seconds[~busy] - _expected(paths[-1], full[~busy]))
    if not paths:
        raise InputError("the recorded runs have no batch of a path of this profile with a service time")
    found = profile.with_paths([p.name for p in paths])
    further = np.concatenate(late)
    wake = max(0.0, float(np.median(further))) if len(further) else 0.0
    query, sample, other = _beside(traces)
    work = AsServed(*map(_rounded, (query, sample, wake, other)))
    return replace(found, paths=tuple(paths), as_served=work)


def slowness(profile: Profile, trace: Trace) -> dict[str, float]:
    """By path: how many times as long as by the profile a recorded run's batches took, all together, what
    workers woke for included.

    Paths without a recorded batch are left out.
    """
    batches = recorded_batches(trace)
    found = {}
    for path in profile.paths:
        sizes, seconds, waited_for = batches.of_path(path.name)
        if len(sizes):
            server = profile.as_served
            full = np.minimum([padded(int(s)) if server else s for s in sizes], path.max_size)
            woken = server.wake_s * waited_for.sum() if server else 0.0
            found[path.name] = float(seconds.sum() / (_expected(path, full).sum() + woken))
    return found


def slowed(profile: Profile, factors: Mapping[str, float]) -> Profile:
    """The profile with the service times of some paths multiplied."""
    return replace(profile, paths=tuple(_times(path, factors.get(path.name, 1.0)) for path in profile.paths))


def _times(path: Path, factor: float) -> Path:
    times = [replace(t, quantiles=tuple(factor * q for q in t.quantiles)) for t in path.times]
    return replace(path, times=tuple(times))


@dataclass(frozen=True, eq=False)
class Batches:
    """Of a recorded run."""

    rows: Array
    """The row of one of its queries."""
    paths: Array
    """Names."""
    sizes: Array
    seconds: Array
    waited_for: Array
    """Whether a worker waited for it: it began as one of its queries arrived."""

    def of_path(self, name: str) -> tuple[Array, Array, Array]:
        """Sizes, seconds and `waited_for`."""
        own = self.paths == name
        return self.sizes[own], self.seconds[own], self.waited_for[own]


def recorded_batches(trace: Trace) -> Batches:
    """The batches that are known."""
    queries = np.flatnonzero(trace.answered & (trace.path >= 0) & (trace.service > 0))
    numbered = np.where(trace.batch[queries] >= 0, trace.batch[queries], -1 - queries)
    _, first, batch = np.unique(numbered, return_index=True, return_inverse=True)
    least = np.full(len(first), np.inf)
    np.minimum.at(least, batch, trace.wait[queries])
    rows = queries[first]
    sizes = np.where(trace.batch_size[rows] > 0, trace.batch_size[rows], trace.size[rows])
    names = np.array([*trace.paths, ""])[trace.path[rows]]
    return Batches(rows, names, sizes, trace.service[rows], least <= _AT_ONCE_S)


def _expected(path: Path, sizes: Array) -> Array:
    means = {int(s): path.expected(int(s)) for s in np.unique(sizes)}
    return np.array([means[int(s)] for s in sizes])


def _scaled(path: Path, full: Array, seconds: Array) -> Path:
    largest = path.max_size
    ratios = seconds / _expected(path, full)
    grid = np.array([s for s in SIZES if s < largest] + [largest])
    edges = np.sqrt(grid[1:] * grid[:-1])
    first, last = np.concatenate([[0.0], edges]), np.concatenate([edges, [np.inf]])
    times = []
    for size, low, high in zip(grid.tolist(), first, last, strict=True):
        own = ratios[(full > low) & (full <= high)]
        if len(own) < FEWEST:
            nearest = np.argsort(np.abs(np.log(full / size)), kind="stable")
            own = ratios[nearest[:FEWEST]]
        expected = path.expected(size)
        times.append(ServiceTime.of_samples(size, expected * own, len(path.times[0].quantiles)))
    return replace(path, times=tuple(times))


def _beside(traces: Sequence[Trace]) -> tuple[float, float, float]:
    """Of a query, of a sample, of another query of its batch: a plane through what queries took beside.

    It is small beside these, so that it moves a percentile of the sum by its mean rather than its median. But
    one query in a hundred counts as no more than the others at most: the machine may have stood still.
    """
    own = np.concatenate([(t.latency - t.wait - t.service)[t.answered] for t in traces])
    sizes = np.concatenate([t.size[t.answered] for t in traces])[np.isfinite(own)]
    others = np.concatenate([_others(t.batch[t.answered]) for t in traces])[np.isfinite(own)]
    own = own[np.isfinite(own)]
    if not len(own):
        return 0.0, 0.0, 0.0
    kept = own <= np.quantile(own, 0.95)
    columns = np.stack([np.ones(len(own)), sizes, others], axis=1)
    _, sample, other = np.maximum(0.0, np.linalg.lstsq(columns[kept], own[kept], rcond=None)[0])
    rest = own - sample * sizes - other * others
    query = np.minimum(rest, np.quantile(rest, 0.99)).mean()
    return max(0.0, float(query)), float(sample), float(other)


def _others(batches: Array) -> Array:
    """How many other queries each one's batch answered; batch -1: unknown."""
    _, batch, counts = np.unique(batches, return_inverse=True, return_counts=True)
    return np.where(batches < 0, 0, counts[batch] - 1)


def _rounded(seconds: float) -> float:
    return float(f"{seconds:.4g}")
