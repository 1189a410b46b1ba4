"""Distributions of query sizes, in samples: a law with parameters, or what a file holds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_opt.errors import InputError
from recsys_opt.serving.recorded import read_columns
from recsys_opt.serving.spec import Parameters

Array = NDArray[Any]
LARGEST = 1 << 20
"""Samples that a query may have at most."""
KINDS = {
    "lognormal": "mean=128,sigma=1,max=4096: log-normal, sigma of the logarithm",
    "pareto": "mean=128,alpha=1.5,max=4096: heavy-tailed, P(size > n) falls as n^-alpha",
    "mlperf": "100 to 700 in hundreds, mean 270: MLPerf DLRM's",
    "fixed": "size=128",
    "file": "FILE[,column=size]: sizes of a trace, CSV, Parquet, JSON lines or .npy file",
}
"""The kinds of `parse_sizes` and their parameters."""
MLPERF = {100: 0.10, 200: 0.60, 300: 0.10, 400: 0.05, 500: 0.05, 600: 0.05, 700: 0.05}
"""Shares of MLPerf inference's DLRM queries by their user-item pairs (20 quantiles, mean 270)."""


@dataclass(frozen=True, eq=False)
class Sizes:
    """Sizes and how likely each is."""

    values: Array
    """i64 [k], ascending."""
    weights: Array
    """f64 [k], positive, sum 1."""
    spec: str = ""
    """The text it was made from."""

    def __post_init__(self) -> None:
        values, weights = np.asarray(self.values), np.asarray(self.weights, dtype=np.float64)
        if values.shape != weights.shape or values.ndim != 1 or not len(values):
            raise InputError(f"sizes {values.shape} and weights {weights.shape}; they must be of one length")
        if values.min() < 1 or values.max() > LARGEST:
            raise InputError(f"sizes {values.min()} .. {values.max()}; they must be 1 .. {LARGEST} samples")
        if np.any(np.diff(values) <= 0):
            raise InputError("sizes must ascend, each given once")
        if not (np.isfinite(weights).all() and weights.min() >= 0 and weights.sum() > 0):
            raise InputError("weights of sizes must be 0 or more and not all 0")
        keep = weights > 0
        object.__setattr__(self, "values", np.ascontiguousarray(values[keep], dtype=np.int64))
        object.__setattr__(self, "weights", np.ascontiguousarray(weights[keep] / weights.sum()))

    @property
    def mean(self) -> float:
        """Samples of a query."""
        return float(self.values @ self.weights)

    @property
    def max(self) -> int:
        """Samples of the largest query."""
        return int(self.values[-1])

    def quantile(self, q: float) -> int:
        """The smallest size that a share q of the queries does not exceed."""
        at = int(np.searchsorted(np.cumsum(self.weights), q - 1e-12))
        return int(self.values[min(at, len(self.values) - 1)])

    def least_samples(self, share: float) -> float:
        """Samples per query offered, if only the smallest queries, a share of all, are answered."""
        before = np.cumsum(self.weights) - self.weights
        kept = np.clip(share - before, 0.0, self.weights)
        return float(self.values @ kept)

    def draw(self, count: int, random: np.random.Generator) -> Array:
        """Sizes of queries."""
        return random.choice(self.values, size=count, p=self.weights)

    @classmethod
    def of(cls, sizes: Array, spec: str = "") -> Sizes:
        """The distribution of sizes seen."""
        values, counts = np.unique(np.asarray(sizes), return_counts=True)
        return cls(values, counts / counts.sum(), spec)


def parse_sizes(text: str) -> Sizes:
    """Sizes from a text, e.g. "lognormal:mean=128,sigma=1,max=4096"; see KINDS."""
    kind, _, rest = text.partition(":")
    if kind not in _MAKERS:
        raise InputError(
            f"sizes {text!r}: {kind!r} is no kind of sizes; it must be one of "
            + "; ".join(f"{name}:{what}" for name, what in KINDS.items())
        )
    return _MAKERS[kind](Parameters.parse(f"sizes {text!r}", rest, first="file" if kind == "file" else None))


def lognormal(mean: float, sigma: float, largest: int) -> Sizes:
    """Log-normal sizes, rounded, cut at `largest`; their mean is `mean` after both."""
    edges = np.log(np.arange(1, largest) + 0.5)

    def weights(mu: float) -> Array:
        below = np.array([_normal((edge - mu) / sigma) for edge in edges.tolist()])
        return np.diff(np.concatenate([[0.0], below, [1.0]])) if largest > 1 else np.ones(1)

    return _with_mean(weights, mean, largest, math.log(mean) - sigma * sigma / 2)


def pareto(mean: float, alpha: float, largest: int) -> Sizes:
    """Sizes above a scale x0 with P(size > n) = (x0 / n)^alpha, rounded, cut at `largest`; mean `mean`."""
    edges = np.arange(1, largest) + 0.5

    def weights(log_scale: float) -> Array:
        above = np.minimum((math.exp(log_scale) / edges) ** alpha, 1.0)
        return -np.diff(np.concatenate([[1.0], above, [0.0]]))

    return _with_mean(weights, mean, largest, math.log(mean) - 1.0)


def _with_mean(weights: Callable[[float], Array], mean: float, largest: int, start: float) -> Sizes:
    """Sizes 1 .. largest whose parameter, in which the mean grows, gives `mean`."""
    values = np.arange(1, largest + 1)
    if not 1 < mean < largest:
        if mean == largest:
            return Sizes(values[-1:], np.ones(1))
        raise InputError(
            f"a mean of {mean:g} with at most {largest} samples; it must be above 1 and below max"
        )
    low, high = start - 1.0, start + 1.0
    while values @ weights(low) > mean:
        low -= 2.0
    while values @ weights(high) < mean:
        high += 2.0
        if high > start + 200.0:
            raise InputError(f"no such distribution up to {largest} samples has the mean {mean:g}; raise max")
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if values @ weights(middle) < mean else (low, middle)
    return Sizes(values, weights(high))


def _normal(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2.0))


def _spec(sizes: Sizes, spec: str) -> Sizes:
    return Sizes(sizes.values, sizes.weights, spec)


def _lognormal(given: Parameters) -> Sizes:
    mean = given.number("mean", 128.0, above=0)
    sigma = given.number("sigma", 1.0, above=0, most=5)
    largest = given.whole("max", 4096, least=1, most=LARGEST)
    given.no_more()
    return _spec(
        given.checked(lambda: lognormal(mean, sigma, largest)),
        f"lognormal:mean={mean:g},sigma={sigma:g},max={largest}",
    )


def _pareto(given: Parameters) -> Sizes:
    mean = given.number("mean", 128.0, above=0)
    alpha = given.number("alpha", 1.5, above=0, most=20)
    largest = given.whole("max", 4096, least=1, most=LARGEST)
    given.no_more()
    return _spec(
        given.checked(lambda: pareto(mean, alpha, largest)),
        f"pareto:mean={mean:g},alpha={alpha:g},max={largest}",
    )


def _mlperf(given: Parameters) -> Sizes:
    given.no_more()
    return Sizes(np.array(list(MLPERF)), np.array(list(MLPERF.values())), "mlperf")


def _fixed(given: Parameters) -> Sizes:
    size = given.whole("size", 128, least=1, most=LARGEST)
    given.no_more()
    return Sizes(np.array([size]), np.ones(1), f"fixed:size={size}")


def _file(given: Parameters) -> Sizes:
    path = Path(given.text("file"))
    column = given.text("column", "size")
    given.no_more()
    names = ("arrival", "size") if column == "size" else (column,)
    found = read_columns(path, names, only=column)
    return given.checked(lambda: Sizes.of(found[column], f"file:{path.name}"))


_MAKERS: dict[str, Callable[[Parameters], Sizes]] = {
    "lognormal": _lognormal,
    "pareto": _pareto,
    "mlperf": _mlperf,
    "fixed": _fixed,
    "file": _file,
}
