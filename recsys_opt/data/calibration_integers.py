"""What calibration measures on the integer columns."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
EFFECT_GROUPS = 24
EFFECT_PRIOR_ROWS = 200


def normal_scores(values: Array) -> Array:
    """Values as quantiles of the normal distribution by their mean rank; NaN stays NaN."""
    present = ~np.isnan(values)
    distinct, inverse, counts = np.unique(values[present], return_inverse=True, return_counts=True)
    del distinct
    middle = (np.cumsum(counts) - 0.5 * counts) / counts.sum()
    normal = NormalDist()
    table = np.array([normal.inv_cdf(float(p)) for p in middle])
    result = np.full(len(values), np.nan)
    scores = table[inverse]
    result[present] = (scores - scores.mean()) / max(float(scores.std()), 1e-9)
    return result


def factor_loadings(scores: Array, factors: int) -> Array:
    """Loadings [columns, factors] of the correlations of `scores`, over rows with both present.

    Principal factors, with communalities found by iteration.
    """
    columns = scores.shape[1]
    correlation = np.eye(columns)
    for a in range(columns):
        for b in range(a):
            both = ~np.isnan(scores[:, a]) & ~np.isnan(scores[:, b])
            if both.sum() > 1000:
                correlation[a, b] = correlation[b, a] = np.corrcoef(scores[both, a], scores[both, b])[0, 1]
    communality = np.full(columns, 0.5)
    loadings = np.zeros((columns, factors))
    for _ in range(100):
        reduced = correlation.copy()
        np.fill_diagonal(reduced, communality)
        values, vectors = np.linalg.eigh(reduced)
        top = np.argsort(-values)[:factors]
        loadings = vectors[:, top] * np.sqrt(np.maximum(values[top], 0.0))
        communality = np.minimum((loadings**2).sum(axis=1), 0.95)
    length = (loadings**2).sum(axis=1, keepdims=True)
    result: Array = loadings * np.sqrt(np.minimum(1.0, 0.95 / np.maximum(length, 1e-12)))
    return result


def tie(scores: Array, ids: Array) -> tuple[int, float]:
    """The categorical column whose ids explain an integer column best, and the variance they explain.

    Columns with an id on more than a tenth of the rows are passed over: one id's effect would then move the
    whole distribution.
    """
    best, explained = 0, 0.0
    for c in range(ids.shape[1]):
        use = ~np.isnan(scores) & (ids[:, c] > 0)
        column, values = ids[use, c], scores[use]
        counts = np.bincount(column).astype(np.float64)
        if counts.max(initial=0.0) > 0.1 * len(ids):
            continue
        deviation = values - values.mean()
        sums = np.bincount(column, weights=deviation)
        squares = np.bincount(column, weights=deviation**2)
        often = counts >= 2
        covariance = (sums**2 - squares)[often] / (counts * (counts - 1))[often]
        share = float((covariance * counts[often]).sum() / max(counts[often].sum(), 1.0))
        if share > explained and counts[often].sum() > 0.3 * len(ids):
            best, explained = c, share
    return best, explained


def effect_table(values: Array, labels: Array) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """(edges, effects): the logit of the click rate above the mean, by groups of equal size.

    Missing and negative values count as 0, as after the transform.
    """
    shown = np.maximum(np.nan_to_num(values, nan=0.0), 0.0).astype(np.int64)
    ordered = np.sort(shown)
    edges = np.unique(ordered[(np.arange(EFFECT_GROUPS) * len(ordered)) // EFFECT_GROUPS])
    group = np.searchsorted(edges, shown, side="right") - 1
    rows = np.bincount(group, minlength=len(edges))
    clicks = np.bincount(group, weights=labels, minlength=len(edges))
    mean = float(labels.mean())
    rate = (clicks + EFFECT_PRIOR_ROWS * mean) / (rows + EFFECT_PRIOR_ROWS)
    effects = np.log(rate / (1 - rate)) - math.log(mean / (1 - mean))
    return tuple(int(e) for e in edges), tuple(round(float(e), 4) for e in effects)
