"""What no policy can exceed: an upper bound of correct predictions, of accuracy and of the load held.

The claim. Let queries arrive in any way at Lambda samples a second on average over a long time. Whatever
the scheduler does (admit or reject, wait, coalesce queries into batches, split a query into parts, run parts
on several devices, drop, all of it decided late and with any knowledge of the past and of arrivals to come,
but not of how long a batch will take), the correct predictions a second that are answered inside the SLA
are at most

    B = max  sum_p acc[p] z[p]
        s.t. sum_p z[p] <= Lambda                                                                        (1)
             sum over p on d of c[p] z[p] <= W[d]  for each device d, z >= 0                             (2)
        with c[p] = min over batch sizes m of  s[p](m) / (m r[p](m))                                     (3)

acc[p] a path's accuracy, W[d] a device's workers, s[p](m) the mean seconds of a batch of m samples,
r[p](m) = P(S[p](m) <= SLA) the probability that the batch alone takes no longer than the SLA.

The proof. Call a sample timely if its query is answered inside the SLA, and let z[p] be the timely samples a
second that path p computes. A sample arrives once, is computed for its answer by one path: (1), and the
correct predictions are the objective. A timely sample's batch begins after its query has arrived and ends
before its query is answered, so it takes no longer than the SLA. A batch of m samples on p therefore
contributes at most m timely samples, and none if it takes longer. Since its time S is independent of all
that was decided before it began, it contributes m r[p](m) in expectation at most, and keeps a worker busy for
s[p](m) in expectation; by (3) expected busy time is at least c[p] times expected timely samples, batch by
batch. Summed over the batches that begin in a time T, a martingale argument (bounded differences) carries
expectations over to averages over a long time. A worker computes one batch at a time, so a device is busy at
most W[d] T: (2). Batches cut short by the loss of a device are one a worker and loss, and vanish over a long
time.

With service times that do not vary the same holds for every single run of length T + SLA, not only on
average: `tests/serving/test_bound.py` holds both against simulations.

B is loose where it takes batches of the best size for granted that only a long wait could fill, at loads far
below saturation on a device with a large fixed cost, but there capacity does not bind and B is Lambda times
the best accuracy. Between, tighter bounds exist.

Policies that do not coalesce. Where each batch holds samples of one query alone, the samples of a query of n
samples are in batches of m <= n samples, so that (3) becomes c[n, p], the minimum over m <= n, and the
program has x[n, p], the share of such queries' samples that goes to p: `Coalescing.NONE`.

The load held. A load of lambda queries a second is held at a share g if g of the queries arrived are
answered inside the SLA. The samples answered are least if these are the smallest queries, with
M(g) samples per query offered (`Sizes.least_samples`); by (2) lambda M(g) <= sum_d W[d] / min_p c[p].
"""

from __future__ import annotations

import enum
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_opt.errors import InputError
from recsys_opt.serving.linear import share_out
from recsys_opt.serving.profile import Path, Profile, ServiceTime
from recsys_opt.serving.sizes import Sizes

Array = NDArray[Any]
_ALL = 1e3
"""What answering a sample is worth beside its accuracy, where all are to be answered if they can be."""


class Coalescing(enum.Enum):
    """Whether a batch may hold samples of several queries."""

    FULL = "batched"
    NONE = "not batched"


@dataclass(frozen=True)
class DeviceState:
    """A device as it is for a part of the time."""

    device: str
    workers: float
    """That work, times the share of the time."""
    factor: float = 1.0
    """On its times."""


@dataclass(frozen=True)
class Bound:
    """The solution of the program above."""

    correct_per_s: float
    """Correct predictions a second inside the SLA: at most so many."""
    offered_per_s: float
    """Samples a second, Lambda."""
    path_samples: dict[str, float]
    """Samples a second that go to each path at the optimum."""
    prices: dict[str, float]
    """Correct predictions that one more worker of each device would add a second."""

    @property
    def samples_per_s(self) -> float:
        """Samples answered a second at the optimum."""
        return math.fsum(self.path_samples.values())


def sample_costs(path: Path, sla: float, factor: float = 1.0) -> Array:
    """f64 [max_size]: device seconds per timely sample of batches of m = 1 .. max_size; inf if none is."""
    return _costs(path.times, sla, factor)


@functools.lru_cache(maxsize=256)
def _costs(times: tuple[ServiceTime, ...], sla: float, factor: float) -> Array:
    sizes = np.array([t.size for t in times], dtype=np.float64)
    m = np.arange(1, times[-1].size + 1, dtype=np.float64)
    known = np.array([t.quantiles for t in times]) * factor  # [S, Q]
    at = np.clip(np.searchsorted(sizes, m), 1, max(len(sizes) - 1, 1))
    if len(sizes) == 1:
        quantiles = np.repeat(known, len(m), axis=0)
    else:
        part = np.clip((m - sizes[at - 1]) / (sizes[at] - sizes[at - 1]), 0.0, 1.0)[:, None]
        quantiles = known[at - 1] * (1 - part) + known[at] * part
    # A batch takes one of the quantiles, each as likely; what rounding adds is not late.
    timely = (quantiles <= sla * (1 + 1e-9)).mean(axis=1)
    with np.errstate(divide="ignore"):
        costs = np.where(timely > 0, quantiles.mean(axis=1) / (m * timely), np.inf)
    costs.flags.writeable = False  # others have it too
    return costs


def correct_bound(
    profile: Profile,
    sizes: Sizes,
    rate: float,
    sla: float,
    *,
    coalescing: Coalescing = Coalescing.FULL,
    states: Sequence[DeviceState] | None = None,
) -> Bound:
    """The most correct predictions a second inside the SLA at a load of `rate` queries a second.

    states  of the devices over the time, where they are not all healthy throughout
    """
    return _solve(profile, sizes, rate, sla, coalescing, states, accuracy_only=False)


def accuracy_bound(
    profile: Profile,
    sizes: Sizes,
    rate: float,
    sla: float,
    *,
    states: Sequence[DeviceState] | None = None,
) -> float | None:
    """The best mean accuracy with which all samples can be answered inside the SLA; None: not all can."""
    found = _solve(profile, sizes, rate, sla, Coalescing.FULL, states, accuracy_only=True)
    offered = found.offered_per_s
    if found.samples_per_s < offered * (1 - 1e-9):
        return None
    return found.correct_per_s / offered - _ALL


def held_bound(profile: Profile, sizes: Sizes, sla: float, share: float = 0.99) -> float:
    """Queries a second of which this share can be answered inside the SLA: at most so many."""
    if not 0 < share <= 1:
        raise InputError(f"share = {share}; it must be above 0 and at most 1")
    samples = 0.0
    for device in profile.devices:
        cheapest = min(
            (float(sample_costs(p, sla).min()) for p in profile.on_device(device.name)), default=math.inf
        )
        samples += device.workers / cheapest
    return samples / sizes.least_samples(share)


def _solve(
    profile: Profile,
    sizes: Sizes,
    rate: float,
    sla: float,
    coalescing: Coalescing,
    states: Sequence[DeviceState] | None,
    *,
    accuracy_only: bool,
) -> Bound:
    for name, value in (("rate", rate), ("sla", sla)):
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{name} = {value}; it must be a positive number")
    if states is None:
        states = [DeviceState(d.name, d.workers) for d in profile.devices]
    # A column is a path while its device is in one of its states.
    columns = [
        (path, at, state)
        for at, state in enumerate(states)
        for path in profile.on_device(state.device)
        if math.isfinite(state.factor)
    ]
    costs = []
    for path, _, state in columns:
        best = np.minimum.accumulate(sample_costs(path, sla, state.factor))
        if coalescing is Coalescing.FULL:
            costs.append(best[-1:])
        else:
            costs.append(best[np.minimum(sizes.values, len(best)) - 1])
    samples = rate * sizes.values * sizes.weights
    supply = samples if coalescing is Coalescing.NONE else np.array([samples.sum()])
    weight = np.array([path.accuracy + (_ALL if accuracy_only else 0.0) for path, _, _ in columns])
    owner = np.array([at for _, at, _ in columns], dtype=np.int64)
    capacity = np.array([state.workers for state in states], dtype=np.float64)
    if columns:
        found = share_out(weight, np.stack(costs, axis=1), owner, supply, capacity)
        value, used, priced = found.value, found.used, found.prices
    else:
        value, used, priced = 0.0, np.zeros(0), np.zeros(len(states))
    path_samples = dict.fromkeys((p.name for p in profile.paths), 0.0)
    for (path, _, _), given in zip(columns, used.tolist(), strict=True):
        path_samples[path.name] += given
    prices = dict.fromkeys((d.name for d in profile.devices), 0.0)
    for state, price in zip(states, priced.tolist(), strict=True):
        prices[state.device] = max(prices[state.device], price)
    return Bound(value, float(samples.sum()), path_samples, prices)
