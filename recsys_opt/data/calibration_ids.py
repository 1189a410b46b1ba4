"""What calibration measures on a categorical column."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_opt.data.synth_model import WINDOW

Array = NDArray[Any]
HEAD_COUNT = 64
"""Ids that occur more often are kept one by one; the rest is a mixture."""


def mixture(occurrences: Array, rates: Array, iterations: int = 4000) -> Array:
    """Number of ids of each rate that best explains how many ids occur 0, 1 .. K times.

    Maximum likelihood by EM for a mixture of Poisson distributions, truncated at K. `occurrences` [K + 1] are
    numbers of ids, that of ids never seen included (the cardinality is known); the result [len(rates)] has
    the same sum. It is what makes distinct ids, singletons and unseen ids come out right at once.
    """
    k = np.arange(len(occurrences))
    log_factorial = np.array([math.lgamma(i + 1) for i in k])
    log_kernel = k[:, None] * np.log(rates) - rates - log_factorial[:, None]
    kernel = np.exp(log_kernel - log_kernel.max(axis=0))
    kernel /= kernel.sum(axis=0)
    numbers = np.full(len(rates), occurrences.sum() / len(rates), dtype=np.float64)
    for _ in range(iterations):
        numbers *= kernel.T @ (occurrences / np.maximum(kernel @ numbers, 1e-300))
    return numbers


def frequencies(ids: Array, num_embeddings: int) -> tuple[tuple[int, ...], tuple[tuple[int, float], ...]]:
    """(head, tail) of `SparseStatistics`; `ids` [N] are ranks from 1, 0 is missing."""
    counts = np.bincount(ids)[1:]
    head = np.sort(counts[counts > HEAD_COUNT])[::-1]
    others = num_embeddings - int((ids == 0).any()) - len(head)
    if others == 0:
        return tuple(int(n) for n in head), ()
    occurrences = np.bincount(counts[counts <= HEAD_COUNT], minlength=HEAD_COUNT + 1).astype(np.float64)
    occurrences[0] = others - occurrences[1:].sum()
    rates = np.geomspace(1.25 * HEAD_COUNT, 1e-4, 100)
    numbers = mixture(occurrences, rates)
    # whole numbers of ids with the right sum
    borders = np.rint(np.cumsum(numbers)).astype(np.int64)
    borders[-1] = others
    whole = np.diff(np.concatenate([[0], borders]))
    tail = tuple((int(n), round(float(rate), 7)) for n, rate in zip(whole, rates, strict=True) if n > 0)
    return tuple(int(n) for n in head), tail


def pair_agreement(parent: Array, child: Array) -> float:
    """The chance that two rows that share the parent's id share the child's, both present."""
    present = (parent > 0) & (child > 0)
    parent, child = parent[present], child[present]
    _, inverse, counts = np.unique(parent, return_inverse=True, return_counts=True)
    _, joint_inverse, joint = np.unique(
        parent * (np.int64(1) << 32) + child, return_inverse=True, return_counts=True
    )
    often = counts[inverse] >= 2
    if not often.any():
        return 0.0
    return float(((joint[joint_inverse] - 1)[often] / (counts[inverse] - 1)[often]).mean())


def collision_chance(ids: Array) -> float:
    """The chance that two rows share an id, among rows that have one."""
    present = ids[ids > 0]
    return float(((np.bincount(present) / max(len(present), 1)) ** 2).sum())


def link_strength(parent: Array, child: Array) -> float:
    """`Dependence.strength`: the share p of rows that follow, from agreement = p^2 + (1 - p^2) chance."""
    chance = collision_chance(child)
    agreement = pair_agreement(parent, child)
    if agreement > 0.99:
        return 1.0
    return round(math.sqrt(max(agreement - chance, 0.0) / (1 - chance)), 4)


def effect_variance(ids: Array, labels: Array) -> float:
    """Variance, over rows, of the click rate that an id (or "missing") has of its own, free of noise.

    The covariance of the labels of two rows with the same id, averaged over ids by their rows.
    """
    deviation = labels - labels.mean()
    counts = np.bincount(ids).astype(np.float64)
    sums = np.bincount(ids, weights=deviation)
    squares = np.bincount(ids, weights=deviation**2)
    often = counts >= 2
    covariance = (sums**2 - squares)[often] / (counts * (counts - 1))[often]
    return max(float((covariance * counts[often]).sum() / counts[often].sum()), 0.0)


def trend(ids: Array, head: int) -> float:
    """`SparseStatistics.trend`, from how far the first and the last tenth of the rows differ on frequent ids.

    Sampling noise is taken off by the same figure on rows in a random order.
    """
    if head < 2:
        return 0.0
    tenth = len(ids) // 10

    def distance(order: Array) -> float:
        known = np.where(order <= head, order, 0)
        first = np.bincount(known[:tenth], minlength=head + 1) / tenth
        last = np.bincount(known[-tenth:], minlength=head + 1) / tenth
        return float(0.5 * np.abs(first - last).sum())

    random = np.random.default_rng(0)
    noise = float(np.mean([distance(random.permutation(ids)) for _ in range(5)]))
    seen = distance(ids)
    excess = math.sqrt(max(seen**2 - noise**2, 0.0))
    mass = np.bincount(ids, minlength=head + 1)[1 : head + 1] / len(ids)
    pairs = mass[: head // 2 * 2].reshape(-1, 2).min(axis=1).sum()
    # pairs exchange between time .05 and .95 of the period: 1.8 x trend x the smaller of the two
    return round(min(excess / (1.8 * pairs), 1.0), 4) if pairs > 0 else 0.0


def unseen_share(ids: Array) -> float:
    """Share of the last tenth of the rows whose id does not occur in the first eight tenths."""
    n = len(ids)
    return float((~np.isin(ids[n * 9 // 10 :], ids[: n * 8 // 10])).mean())


def expected_unseen(head: Array, tail: Array, missing: float, fleeting: float) -> float:
    """`unseen_share` that the generator gives: a draw at time t of an id that lives around t or always."""
    rows = (1 - missing) * 1.0
    total = head.sum() + (tail[:, 0] * tail[:, 1]).sum()
    if len(tail) == 0:
        return 0.0
    place = (np.arange(200) + 0.5) / 200  # of an id within its cell
    when = 0.9 + 0.1 * (np.arange(40) + 0.5) / 40
    low = when[:, None] * (1 - WINDOW)
    alive = ((place >= low) & (place < low + WINDOW)).astype(np.float64)
    alive /= alive.mean(axis=1, keepdims=True)
    # share of an id's fleeting occurrences before .8, by its place
    earlier = (np.arange(400) + 0.5) / 400
    low = earlier[:, None] * (1 - WINDOW)
    lives = ((place >= low) & (place < low + WINDOW)) / WINDOW
    before = (lives * (earlier < 0.8)[:, None]).mean(axis=0)
    result = 0.0
    for number, rate in tail:
        f = fleeting if number >= 16 else 0.0
        met = np.exp(-rate * ((1 - f) * 0.8 + f * before))
        weight = (1 - f) + f * alive.mean(axis=0)
        result += number * rate * float((weight * met).mean() / weight.mean())
    return float(rows * result / total)


def fleeting_share(ids: Array, head: tuple[int, ...], tail: tuple[tuple[int, float], ...]) -> float:
    """`SparseStatistics.fleeting` that gives the share of unseen ids of the sample."""
    wanted = unseen_share(ids)
    missing = float((ids == 0).mean())
    heads, tails = np.array(head, dtype=np.float64), np.array(tail, dtype=np.float64).reshape(-1, 2)
    low, high = 0.0, 1.0
    if expected_unseen(heads, tails, missing, 0.0) >= wanted or wanted < 0.005:
        return 0.0
    for _ in range(20):
        middle = 0.5 * (low + high)
        if expected_unseen(heads, tails, missing, middle) < wanted:
            low = middle
        else:
            high = middle
    return round(low, 4)
