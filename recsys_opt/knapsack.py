"""The multiple-choice knapsack: one option of every group, least total loss within a capacity.

Solved exactly as a rule, and always with a certified lower bound. With a price per unit of capacity (Everett
1963) the groups come apart, and each takes the option of least loss + price * size; at the best price this
gives the bound of the linear relaxation. Options that the bound proves useless are dropped, and the rest is
solved by dynamic programming over undominated partial choices (Nemhauser & Ullmann 1969).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_opt.errors import InfeasibleError, InputError

Array = NDArray[Any]

MAX_STATES = 200_000
"""Partial choices kept per group; where there are more, the most promising ones, and the gap says so."""


@dataclass(frozen=True)
class Solution:
    """One option per group."""

    options: tuple[int, ...]
    """The option taken, by group."""
    size: int
    loss: float
    lower_bound: float
    """No choice within the capacity has a lower loss."""
    price: float
    """Loss that one more unit of capacity would save, by the linear relaxation."""

    @property
    def gap(self) -> float:
        """How far the loss may be from the least possible; 0: proved optimal."""
        return max(self.loss - self.lower_bound, 0.0)


def solve(sizes: Sequence[Array], losses: Sequence[Array], capacity: int) -> Solution:
    """The choice of least loss.

    sizes   [options] whole numbers per group, 0 or larger
    losses  [options] per group, finite
    raises  InfeasibleError when even the smallest options exceed the capacity
    """
    sizes = [np.asarray(s, dtype=np.int64) for s in sizes]
    losses = [np.asarray(v, dtype=np.float64) for v in losses]
    for group, (size, loss) in enumerate(zip(sizes, losses, strict=True)):
        if not size.size or size.shape != loss.shape or size.min() < 0 or not np.isfinite(loss).all():
            raise InputError(
                f"group {group}: {size.size} sizes, {loss.size} losses; a group needs options, one loss "
                "each, sizes of at least 0 and finite losses"
            )
    least = sum(int(s.min()) for s in sizes)
    if least > capacity:
        raise InfeasibleError(f"the smallest options take {least}; the capacity is {capacity}")
    price = _best_price(sizes, losses, capacity)
    reduced = [loss + price * size for size, loss in zip(sizes, losses, strict=True)]
    bound = sum(float(r.min()) for r in reduced) - price * capacity
    start = _greedy(sizes, losses, capacity)
    start_loss = _total(losses, start)
    # Rounding must not drop the best option: sums of floats differ in their last digits.
    slack = 1e-9 * (1.0 + sum(float(np.abs(loss).max()) for loss in losses))
    kept = [np.flatnonzero(bound + r - r.min() <= start_loss + slack) for r in reduced]
    found, exact = _dynamic_program(sizes, losses, reduced, kept, price, capacity, start_loss + slack)
    if found is None or _total(losses, found) > start_loss:
        found = start
    total = _total(losses, found)
    return Solution(
        options=tuple(found),
        size=sum(int(s[i]) for s, i in zip(sizes, found, strict=True)),
        loss=total,
        lower_bound=total if exact else min(bound, total),
        price=price,
    )


def _total(losses: Sequence[Array], options: Sequence[int]) -> float:
    return float(sum(float(v[i]) for v, i in zip(losses, options, strict=True)))


def _hull(size: Array, loss: Array) -> Array:
    """The options on the lower convex hull, by ascending size; losses strictly fall along it."""
    order = np.lexsort((loss, size))
    hull: list[int] = []
    for i in order:
        if hull and loss[i] >= loss[hull[-1]]:
            continue
        while len(hull) > 1 and _slope(size, loss, hull[-2], hull[-1]) >= _slope(size, loss, hull[-1], i):
            hull.pop()
        hull.append(int(i))
    return np.array(hull)


def _slope(size: Array, loss: Array, a: int, b: int) -> float:
    """Loss per unit of size from option a to the larger option b (negative)."""
    step = float(size[b] - size[a])
    return float(loss[b] - loss[a]) / step if step else -np.inf


def _steps(sizes: Sequence[Array], losses: Sequence[Array]) -> list[tuple[float, int, int, int]]:
    """(slope, group, option, added size) of all hull steps, those that save most per unit first."""
    steps = []
    for group, (size, loss) in enumerate(zip(sizes, losses, strict=True)):
        hull = _hull(size, loss)
        for a, b in itertools.pairwise(hull):
            steps.append((_slope(size, loss, a, b), group, int(b), int(size[b] - size[a])))
    return sorted(steps)


def _best_price(sizes: Sequence[Array], losses: Sequence[Array], capacity: int) -> float:
    """The price at which the relaxed choice just fills the capacity."""
    left = capacity - sum(int(s[_hull(s, v)[0]]) for s, v in zip(sizes, losses, strict=True))
    for slope, _, _, added in _steps(sizes, losses):
        left -= added
        if left < 0:
            return -slope
    return 0.0


def _greedy(sizes: Sequence[Array], losses: Sequence[Array], capacity: int) -> list[int]:
    """Hull steps in order, skipping what does not fit; then the best single change, while there is one."""
    chosen = [int(_hull(s, v)[0]) for s, v in zip(sizes, losses, strict=True)]
    left = capacity - sum(int(s[i]) for s, i in zip(sizes, chosen, strict=True))
    stopped: set[int] = set()
    for _, group, option, added in _steps(sizes, losses):
        if group not in stopped and added <= left:
            chosen[group], left = option, left - added
        else:
            stopped.add(group)
    while True:
        best, change = 0.0, None
        for group, (size, loss) in enumerate(zip(sizes, losses, strict=True)):
            fits = size <= size[chosen[group]] + left
            option = int(np.where(fits, loss, np.inf).argmin())
            gain = float(loss[chosen[group]] - loss[option])
            if gain > best:
                best, change = gain, (group, option)
        if change is None:
            return chosen
        group, option = change
        left -= int(sizes[group][option] - sizes[group][chosen[group]])
        chosen[group] = option


def _dynamic_program(
    sizes: Sequence[Array],
    losses: Sequence[Array],
    reduced: Sequence[Array],
    kept: Sequence[Array],
    price: float,
    capacity: int,
    known: float,
) -> tuple[list[int] | None, bool]:
    """(options, whether they are proved best); None where nothing better than `known` is left."""
    groups = len(sizes)
    if any(not k.size for k in kept):
        return None, True
    order = sorted(range(groups), key=lambda g: kept[g].size)  # groups without a choice first
    rest_size = np.zeros(groups + 1, dtype=np.int64)
    rest_reduced = np.zeros(groups + 1)
    for place in range(groups - 1, -1, -1):
        g = order[place]
        rest_size[place] = rest_size[place + 1] + sizes[g][kept[g]].min()
        rest_reduced[place] = rest_reduced[place + 1] + reduced[g][kept[g]].min()
    size, loss, exact = np.zeros(1, dtype=np.int64), np.zeros(1), True
    trail: list[tuple[Array, Array]] = []
    for place, g in enumerate(order):
        new_size = (size[:, None] + sizes[g][kept[g]]).ravel()
        new_loss = (loss[:, None] + losses[g][kept[g]]).ravel()
        promise = new_loss + price * (new_size - capacity) + rest_reduced[place + 1]
        alive = np.flatnonzero((new_size + rest_size[place + 1] <= capacity) & (promise <= known))
        alive = alive[np.lexsort((new_loss[alive], new_size[alive]))]
        before = np.concatenate([[np.inf], np.minimum.accumulate(new_loss[alive])[:-1]])
        alive = alive[new_loss[alive] < before]
        if alive.size > MAX_STATES:
            alive = np.sort(alive[np.argpartition(promise[alive], MAX_STATES)[:MAX_STATES]])
            exact = False
        if not alive.size:
            return None, exact
        size, loss = new_size[alive], new_loss[alive]
        trail.append((alive // kept[g].size, kept[g][alive % kept[g].size]))
    state = int(loss.argmin())
    options = [0] * groups
    for place in range(groups - 1, -1, -1):
        parents, taken = trail[place]
        options[order[place]] = int(taken[state])
        state = int(parents[state])
    return options, exact
