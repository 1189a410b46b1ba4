"""From derived statistics to the tables that the native generator draws from.

A categorical column is a list of cells: runs of equally likely ids, by falling frequency. A column that
follows another (`Dependence`) gets its id from the parent's id alone: the parent's frequent ids are dealt to
this column's ids, each to the one with the most frequency still free; its rare ids fall, in order, on what is
left. So the child keeps its own frequencies, and the dependence is exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import recsys_opt._synth as _synth
from recsys_opt.data.statistics import DenseStatistics, SparseStatistics, Statistics

Array = NDArray[Any]
# A fleeting id lives for this share of the period.
WINDOW = 0.25
_MASK64 = (1 << 64) - 1


def cells(column: SparseStatistics) -> tuple[Array, Array, Array]:
    """(first id, number of ids, frequency of the whole cell) of each cell; ids start at 1."""
    width = np.array([1] * len(column.head) + [n for n, _ in column.tail], dtype=np.int64)
    each = np.array([*column.head, *(rate for _, rate in column.tail)], dtype=np.float64)
    first = np.concatenate([[1], 1 + np.cumsum(width)[:-1]])
    mass = width * each
    return first, width, mass / mass.sum()


def deal(
    parent_width: Array, parent_mass: Array, child_width: Array, child_mass: Array
) -> tuple[Array, Array]:
    """Deals the parent's single-id cells to the child's: (child cell or -1 per parent cell, what is left)."""
    import heapq

    left = child_mass.copy()
    free = [(-left[i], i) for i in range(len(left)) if child_width[i] == 1]
    heapq.heapify(free)
    assigned = np.full(len(parent_mass), -1, dtype=np.int32)
    for cell in np.argsort(-parent_mass, kind="stable"):
        if parent_width[cell] != 1 or not free or -free[0][0] < 0.5 * parent_mass[cell]:
            continue
        room, child = free[0]
        assigned[cell] = child
        left[child] = max(0.0, -room - parent_mass[cell])
        heapq.heapreplace(free, (-left[child], child))
    if left.sum() <= 0:  # every id is spoken for
        left = child_mass.copy()
    return assigned, left


def partner_odds(head_mass: Array, trend: float, random: np.random.Generator) -> Array:
    """Per cell, how its draws go over to its neighbour (2j and 2j + 1) as time goes from 0 to 1.

    At time t a draw moves with probability odds x (2 t - 1) where that is positive. What one gives in one
    half of the period it gets back in the other, so that frequencies over the whole period stay.
    """
    pairs = len(head_mass) // 2
    mass = head_mass[: 2 * pairs].reshape(pairs, 2)
    sign = np.where(random.random(pairs) < 0.5, -1.0, 1.0)[:, None] * np.array([1.0, -1.0])
    odds: Array = sign * trend * mass.min(axis=1, keepdims=True) / mass
    return odds.reshape(-1).astype(np.float32)


def sparse_columns(statistics: Statistics, seed: int, max_cardinality: int | None) -> list[dict[str, Any]]:
    """The categorical columns for `_synth.Generator`."""
    names = [c.name for c in statistics.sparse]
    all_cells = [cells(c) for c in statistics.sparse]
    result = []
    for index, column in enumerate(statistics.sparse):
        first, width, mass = all_cells[index]
        limit = (
            column.num_embeddings if max_cardinality is None else min(column.num_embeddings, max_cardinality)
        )
        table: dict[str, Any] = {
            "num_embeddings": limit,
            "never_missing": column.never_missing,
            "first": first,
            "width": width,
            "mass": mass,
            "effect": column.effect * statistics.effect_scale,
            "interaction": statistics.interaction_scale if column.interaction else 0.0,
        }
        if column.trend > 0:
            random = np.random.default_rng([seed & _MASK64, index])
            table["partner_odds"] = partner_odds(mass[: len(column.head)], column.trend, random)
        if column.fleeting > 0:
            table |= {"fleeting": column.fleeting, "window": WINDOW}
        if column.dependence is not None:
            parent = names.index(column.dependence.parent)
            table |= {"parent": parent, "strength": column.dependence.strength}
            table["shuffled"] = column.dependence.shuffled
            _, parent_width, parent_mass = all_cells[parent]
            assigned, table["residual"] = deal(parent_width, parent_mass, width, mass)
            rare = np.where(assigned < 0, parent_mass, 0.0)
            share = rare / max(rare.sum(), 1e-300)
            table["assigned"] = assigned
            table["tail_start"] = np.concatenate([[0.0], np.cumsum(share)[:-1]])
            table["tail_step"] = share / parent_width
        result.append(table)
    return result


def dense_column(column: DenseStatistics, names: list[str], scale: float) -> dict[str, Any]:
    """An integer column for `_synth.Generator`."""
    steps = _synth.QUANTILES
    given = np.asarray(column.quantiles, dtype=np.int64)
    places = np.linspace(0, len(given) - 1, steps + 1)
    quantiles = given[places.astype(np.int64)]
    edges = np.asarray(column.effect_edges)
    values = np.asarray(column.effects) * scale
    # Negatives and missing are 0 after the transform: no reader can tell them from 0, nor may the label.
    effects = values[np.maximum(np.searchsorted(edges, np.maximum(quantiles[:-1], 0), side="right") - 1, 0)]
    loadings = np.asarray(column.loadings)
    explained = float((loadings**2).sum() + column.tie**2)
    return {
        "quantiles": quantiles.astype(np.int32),
        "effects": effects.astype(np.float32),
        "missing_effect": float(values[max(int(np.searchsorted(edges, 0, side="right")) - 1, 0)]),
        "loadings": loadings.astype(np.float32),
        "noise": max(1.0 - explained, 0.0) ** 0.5,
        "tied_to": -1 if column.tied_to is None else names.index(column.tied_to),
        "tie": column.tie,
    }


def make_generator(
    statistics: Statistics, rows: int, seed: int, max_cardinality: int | None = None
) -> _synth.Generator:
    """The native generator of `rows` rows."""
    names = [c.name for c in statistics.sparse]
    return _synth.Generator(
        rows,
        seed & _MASK64,
        dense=[dense_column(d, names, statistics.effect_scale) for d in statistics.dense],
        sparse=sparse_columns(statistics, seed, max_cardinality),
        patterns=np.array([mask for mask, _ in statistics.patterns], dtype=np.uint64),
        pattern_mass=np.array([n for _, n in statistics.patterns], dtype=np.float64),
        bias=statistics.bias,
    )
