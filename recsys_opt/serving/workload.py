"""Workloads: when queries arrive and how large they are, from short texts or from recorded files."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_opt.errors import InputError
from recsys_opt.serving.recorded import read_columns
from recsys_opt.serving.sizes import LARGEST, Sizes
from recsys_opt.serving.spec import Parameters

Array = NDArray[Any]
KINDS = {
    "poisson": "rate=1000: independent arrivals at a mean rate, in queries a second",
    "mmpp": "rate=1000,peak=3,share=0.2,dwell=1s: bursts of `peak` times the mean rate, in a share of the "
    "time, lasting `dwell` on average (Markov-modulated Poisson)",
    "diurnal": "rate=1000,swing=0.5,period=60s: a sine about the mean rate, from (1 - swing) to (1 + swing) "
    "times it",
    "trace": "FILE[,rate=1000]: arrivals (and sizes, where the file has them) of a recorded trace, CSV, "
    "Parquet, JSON lines, .npz or .npy file; a rate shortens or stretches the time",
}
"""The kinds of `parse_arrivals` and their parameters."""
DIURNAL_POINTS = 96
"""Points of a period between which the rate is linear."""


@dataclass(frozen=True)
class Poisson:
    """Independent arrivals."""

    rate: float | None = None
    """Queries a second, on average; None: to be told."""

    @property
    def spec(self) -> str:
        """The text that gives it again."""
        return _text("poisson", self.rate)

    def at_rate(self, rate: float) -> Poisson:
        """The same at another mean rate."""
        return replace(self, rate=rate)


@dataclass(frozen=True)
class Bursty:
    """A Markov-modulated Poisson process with two states: quiet, and bursts."""

    rate: float | None = None
    peak: float = 3.0
    """Rate of a burst over the mean rate."""
    share: float = 0.2
    """Share of the time in bursts."""
    dwell: float = 1.0
    """Seconds that a burst lasts on average."""

    def __post_init__(self) -> None:
        if self.peak * self.share >= 1:
            raise InputError(
                f"bursts of {self.peak:g} times the mean rate in {self.share:g} of the time leave none "
                f"for the rest; peak times share must be below 1: take a peak below {1 / self.share:g}"
            )

    @property
    def spec(self) -> str:
        """The text that gives it again."""
        return _text("mmpp", self.rate, peak=self.peak, share=self.share, dwell=f"{self.dwell:g}s")

    def at_rate(self, rate: float) -> Bursty:
        """The same at another mean rate."""
        return replace(self, rate=rate)

    def rates(self) -> tuple[float, float]:
        """Queries a second outside bursts and in them."""
        rate = _told(self.rate)
        return rate * (1 - self.peak * self.share) / (1 - self.share), rate * self.peak

    def dwells(self) -> tuple[float, float]:
        """Mean seconds between bursts and of bursts."""
        return self.dwell * (1 - self.share) / self.share, self.dwell


@dataclass(frozen=True)
class Diurnal:
    """A rate that follows a sine, as over a day."""

    rate: float | None = None
    swing: float = 0.5
    period: float = 60.0
    """Seconds."""

    @property
    def spec(self) -> str:
        """The text that gives it again."""
        return _text("diurnal", self.rate, swing=self.swing, period=f"{self.period:g}s")

    def at_rate(self, rate: float) -> Diurnal:
        """The same at another mean rate."""
        return replace(self, rate=rate)

    def curve(self) -> tuple[Array, Array]:
        """Times of a period, its end left out, and the rates there; between them the rate is linear."""
        times = np.arange(DIURNAL_POINTS) * (self.period / DIURNAL_POINTS)
        return times, _told(self.rate) * (1 + self.swing * np.sin(2 * math.pi * times / self.period))


@dataclass(frozen=True, eq=False)
class Recorded:
    """Arrivals of a file."""

    arrivals: Array
    """f64 [N] seconds, ascending from 0."""
    sizes: Array | None
    """i64 [N], where the file has them."""
    name: str = "trace"

    @property
    def rate(self) -> float:
        """Queries a second, on average."""
        return (
            (len(self.arrivals) - 1) / max(float(self.arrivals[-1]), 1e-9) if len(self.arrivals) > 1 else 1.0
        )

    @property
    def spec(self) -> str:
        """The text that gives it again."""
        return f"trace:{self.name},rate={self.rate:g}"

    def at_rate(self, rate: float) -> Recorded:
        """The same arrivals in a shorter or longer time."""
        return replace(self, arrivals=self.arrivals * (self.rate / rate))


Arrivals = Poisson | Bursty | Diurnal | Recorded


@dataclass(frozen=True)
class Workload:
    """Arrivals and sizes."""

    arrivals: Arrivals
    sizes: Sizes

    @property
    def rate(self) -> float:
        """Queries a second, on average."""
        return _told(self.arrivals.rate)

    @property
    def samples_per_s(self) -> float:
        """Samples offered a second, on average."""
        return self.rate * self.sizes.mean

    @property
    def spec(self) -> str:
        """For a reader."""
        return f"{self.arrivals.spec}, sizes {self.sizes.spec or 'given'}"

    def at_rate(self, rate: float) -> Workload:
        """The same at another mean rate."""
        if not (math.isfinite(rate) and rate > 0):
            raise InputError(f"a load of {rate} queries a second; it must be above 0")
        return replace(self, arrivals=self.arrivals.at_rate(rate))


def make_workload(arrivals: Arrivals, sizes: Sizes | None, rate: float | None = None) -> Workload:
    """A workload; sizes of a trace that has them are its own, unless others are given."""
    if sizes is None:
        if not isinstance(arrivals, Recorded) or arrivals.sizes is None:
            raise InputError("no sizes of queries; give them, e.g. lognormal:mean=128")
        sizes = Sizes.of(arrivals.sizes, f"of {arrivals.name}")
    elif isinstance(arrivals, Recorded):
        arrivals = replace(arrivals, sizes=None)
    workload = Workload(arrivals, sizes)
    return workload if rate is None else workload.at_rate(rate)


def parse_arrivals(text: str) -> Arrivals:
    """Arrivals from a text, e.g. "poisson:rate=1000"; see KINDS."""
    kind, _, rest = text.partition(":")
    if kind not in _MAKERS:
        raise InputError(
            f"arrivals {text!r}: {kind!r} is no kind of arrivals; it must be one of "
            + "; ".join(f"{name}:{what}" for name, what in KINDS.items())
        )
    given = Parameters.parse(f"arrivals {text!r}", rest, first="file" if kind == "trace" else None)
    return _MAKERS[kind](given)


def read_recorded(path: Path) -> Recorded:
    """Arrivals, and sizes where there are some, of a file; see `recsys_opt.serving.recorded`."""
    columns = read_columns(path, ("arrival", "size"), only="arrival")
    arrivals, sizes = columns["arrival"], columns.get("size")
    order = np.argsort(arrivals, kind="stable")
    if sizes is not None:
        wrong = (sizes < 1) | (sizes > LARGEST) | (sizes != np.floor(sizes))
        if wrong.any():
            at = int(np.argmax(wrong))
            raise InputError(
                f"{path}: size[{at}] = {sizes[at]:g}; it must be a whole number of 1 .. {LARGEST} samples"
            )
        sizes = sizes.astype(np.int64)[order]
    return Recorded(arrivals[order] - arrivals[order[0]], sizes, path.name)


def _told(rate: float | None) -> float:
    if rate is None:
        raise InputError("no load; give one, e.g. --load 1000, or rate=1000 with the arrivals")
    return rate


def _text(kind: str, rate: float | None, **values: float | str) -> str:
    named = {**({} if rate is None else {"rate": rate}), **values}
    shown = ",".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in named.items())
    return f"{kind}:{shown}" if shown else kind


def _rate(given: Parameters) -> float | None:
    return given.number("rate", above=0) if given.has("rate") else None


def _poisson(given: Parameters) -> Arrivals:
    rate = _rate(given)
    given.no_more()
    return Poisson(rate)


def _bursty(given: Parameters) -> Arrivals:
    rate = _rate(given)
    peak = given.number("peak", 3.0, above=0)
    share = given.number("share", 0.2, above=0, most=0.99)
    dwell = given.duration("dwell", 1.0)
    given.no_more()
    return given.checked(lambda: Bursty(rate, peak, share, dwell))


def _diurnal(given: Parameters) -> Arrivals:
    rate = _rate(given)
    swing = given.share("swing", 0.5)
    period = given.duration("period", 60.0)
    given.no_more()
    return Diurnal(rate, swing, period)


def _trace(given: Parameters) -> Arrivals:
    path, rate = Path(given.text("file")), _rate(given)
    given.no_more()
    found = read_recorded(path)
    return found if rate is None else found.at_rate(rate)


_MAKERS: dict[str, Callable[[Parameters], Arrivals]] = {
    "poisson": _poisson,
    "mmpp": _bursty,
    "diurnal": _diurnal,
    "trace": _trace,
}
