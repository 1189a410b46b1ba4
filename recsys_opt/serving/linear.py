"""Linear programs with few shared limits and very many shares, solved exactly without a solver.

    maximise    sum over groups n and columns p of  supply[n] weight[p] x[n, p]
    subject to  sum over n and p with owner[p] = d of  supply[n] cost[n, p] x[n, p]  <=  capacity[d]
                sum over p of x[n, p] <= 1,  x >= 0

Only the D capacities tie the groups together, so the program is decomposed (Dantzig and Wolfe 1960): for
given prices of the capacities each group chooses its best column by itself; the master program of D + 1 rows
mixes the choices seen so far and sets the prices anew. It ends when no choice is worth more than it costs.

The value given is the dual's at the final prices: by weak duality an upper bound of the program whatever
the rounding did, and at the optimum its value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_TOLERANCE = 1e-11
_ROUNDS = 500


@dataclass(frozen=True, eq=False)
class Shared:
    """A solution."""

    value: float
    """Upper bound of the program, equal to its optimum but for rounding."""
    reached: float
    """Value of `used`, a solution within the limits."""
    used: Array
    """f64 [P]: supply that goes to each column."""
    prices: Array
    """f64 [D]: what a unit of each capacity is worth."""


def share_out(weight: Array, cost: Array, owner: Array, supply: Array, capacity: Array) -> Shared:
    """Solves the program above.

    weight    f64 [P], per unit of supply
    cost      f64 [N, P], capacity per unit of supply, inf where it cannot go
    owner     i64 [P], whose capacity a column uses
    supply    f64 [N]
    capacity  f64 [D]
    """
    total = float(supply.sum())
    if total <= 0:
        return Shared(0.0, 0.0, np.zeros(len(weight)), np.zeros(len(capacity)))
    part = supply / total
    usable = np.isfinite(cost) & (capacity[owner] > 0)
    # In units in which each capacity is 1.
    scaled = np.where(usable, cost, 0.0) * (total / np.where(capacity > 0, capacity, 1.0)[owner])
    columns: list[tuple[float, Array, Array]] = []  # value, use of each capacity, supply to each column
    prices, best, best_prices = np.zeros(len(capacity)), np.inf, np.zeros(len(capacity))
    mix = np.zeros(0)
    for _ in range(_ROUNDS):
        worth = np.where(usable, weight - prices[owner] * scaled, -np.inf)
        choice = np.argmax(worth, axis=1)
        gain = np.maximum(worth[np.arange(len(part)), choice], 0.0)
        bound = float(prices.sum() + part @ gain)
        if bound < best:
            best, best_prices = bound, prices
        reached = sum(float(m) * c[0] for m, c in zip(mix, columns, strict=True))
        if best - reached <= _TOLERANCE * max(1.0, abs(best)):
            break
        taken = gain > 0
        if prices.max(initial=0.0) == 0.0 and not columns:
            taken = np.isfinite(worth[np.arange(len(part)), choice])
        given = np.bincount(choice[taken], part[taken], minlength=len(weight))
        spent = part[taken] * scaled[np.flatnonzero(taken), choice[taken]]
        use = np.bincount(owner[choice[taken]], spent, minlength=len(capacity))
        columns.append((float(given @ weight), use, given))
        table = np.stack([np.append(c[1], 1.0) for c in columns], axis=1)
        mix, duals = maximise(np.array([c[0] for c in columns]), table, np.ones(len(capacity) + 1))
        prices = np.maximum(duals[:-1], 0.0)
    used = sum((m * c[2] for m, c in zip(mix, columns, strict=True)), np.zeros(len(weight)))
    price = np.where(capacity > 0, best_prices * total / np.where(capacity > 0, capacity, 1.0), 0.0)
    return Shared(best * total, float(used @ weight) * total, used * total, price)


def maximise(objective: Array, matrix: Array, limit: Array) -> tuple[Array, Array]:
    """The x >= 0 that maximises objective x subject to matrix x <= limit (>= 0), and the limits' duals.

    The primal simplex method on a dense tableau; Bland's rule, so it ends. The program must be bounded.
    """
    rows, count = matrix.shape
    tableau = np.hstack([matrix.astype(np.float64), np.eye(rows), limit.reshape(-1, 1).astype(np.float64)])
    reduced = np.concatenate([-objective.astype(np.float64), np.zeros(rows + 1)])
    basis = np.arange(count, count + rows)
    scale = max(1.0, float(np.abs(objective).max(initial=0.0)))
    while True:
        entering = np.flatnonzero(reduced[:-1] < -1e-13 * scale)
        if not len(entering):
            break
        at = int(entering[0])
        column = tableau[:, at]
        positive = column > 1e-13
        ratio = np.full(rows, np.inf)
        ratio[positive] = tableau[positive, -1] / column[positive]
        tied = np.flatnonzero(ratio <= ratio.min() * (1 + 1e-13))
        row = int(tied[np.argmin(basis[tied])])
        tableau[row] /= tableau[row, at]
        for other in range(rows):
            if other != row:
                tableau[other] -= tableau[other, at] * tableau[row]
        reduced -= reduced[at] * tableau[row]
        basis[row] = at
    found = np.zeros(count + rows)
    found[basis] = tableau[:, -1]
    return found[:count], reduced[count : count + rows]
