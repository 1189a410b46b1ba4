"""From derived statistics to the tables that the native generator draws from.

A categorical column is a list of cells: runs of equally likely ids, by falling frequency. A column that
follows another (`Dependence`) gets its id from the parent's id alone: the parent's frequent ids are dealt to
this column's ids, each to the one with the most frequency still free; its rare ids fall, in order, on what is
left. So the child keeps its own frequencies, and the dependence is exact.
"""

from __future__ import annotations

import heapq
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import recsys_opt._synth as _synth
from recsys_opt.data.statistics import DenseStatistics, SparseStatistics, Statistics

Array = NDArray[Any]
# A fleeting id lives for this share of the period.
WINDOW = 0.25
# Ids expected to occur less often than this in the rows measured are very rare.
VERY_RARE = 0.1
_MASK64 = (1 << 64) - 1


class Cells(NamedTuple):
    """A column's runs of equally likely ids, by falling frequency; ids start at 1."""

    first: Array
    """First id of each."""
    width: Array
    """Number of ids."""
    mass: Array
    """Frequency of the whole run."""
    rate: Array
    """Expected occurrences of one id in the rows that were measured."""


def cells(column: SparseStatistics) -> Cells:
    """The cells of a column."""
    width = np.array([1] * len(column.head) + [n for n, _ in column.tail], dtype=np.int64)
    rate = np.array([*column.head, *(rate for _, rate in column.tail)], dtype=np.float64)
    first = np.concatenate([[1], 1 + np.cumsum(width)[:-1]])
    mass = width * rate
    return Cells(first, width, mass / mass.sum(), rate)


def deal(parent: Cells, child: Cells, *, exact: bool) -> tuple[Array, Array]:
    """Deals the parent's frequent ids to the child's: (what to do per parent cell, mass of the child left).

    A parent's id that is too frequent for any child is, where the dependence is exact, placed in order with
    the rare ones; else it is left out.
    """
    left = child.mass.copy()
    free = [(-left[i], i) for i in range(len(left)) if child.width[i] == 1]
    heapq.heapify(free)
    assigned = np.full(len(parent.mass), _synth.IN_ORDER, dtype=np.int32)
    for cell in np.argsort(-parent.mass, kind="stable"):
        if parent.width[cell] != 1 or not free:
            continue
        if -free[0][0] < (0.5 if exact else 0.9) * parent.mass[cell]:
            if not exact:
                assigned[cell] = _synth.UNLINKED
            continue
        room, index = free[0]
        assigned[cell] = index
        left[index] = max(0.0, -room - parent.mass[cell])
        heapq.heapreplace(free, (-left[index], index))
    if left.sum() <= 0:  # every id is spoken for
        left = child.mass.copy()
    return assigned, left


def dependence_tables(parent: Cells, child: Cells, strength: float) -> dict[str, Any]:
    """How the child's id follows from the parent's.

    Frequent ids are dealt. The others fall in order of frequency on the mass that is left, so that each of
    the child's ids is made of parents of about its own frequency; but the very rare parents that are more
    than the child's very rare ids can take are scattered over all its other ids. That is how real columns
    nest: an id of the coarse column is one frequent id of the fine one and a dust of rare ones.
    """
    exact = strength == 1
    assigned, residual = deal(parent, child, exact=exact)
    unlinked = float(parent.mass[assigned == _synth.UNLINKED].sum())
    placed = np.where(assigned == _synth.IN_ORDER, parent.mass, 0.0)
    rare = (assigned == _synth.IN_ORDER) & (parent.rate < VERY_RARE)
    rare_mass, other_mass = float(placed[rare].sum()), float(placed[~rare].sum())
    # places [0, scatter_end) are the child's other ids, [scatter_end, 1) its very rare ones
    total = max(float(residual.sum()), 1e-300)
    child_rare = float(residual[child.rate < VERY_RARE].sum()) / total
    parent_rare = rare_mass / max(rare_mass + other_mass, 1e-300)
    if other_mass == 0 or child_rare >= parent_rare:
        share = placed / max(rare_mass + other_mass, 1e-300)
        scatter = {"kept_rare": 1.0, "scatter_end": 1.0}
    else:
        end = 1.0 - child_rare
        share = np.where(rare, placed * child_rare / rare_mass, placed * end / other_mass)
        assigned[rare] = _synth.SCATTERED
        scatter = {"kept_rare": child_rare / parent_rare, "scatter_end": end}
    return {
        # the rows of parents that are left out are made up for by the others
        "strength": min(1.0, strength / max(1.0 - unlinked, 1e-9) ** 0.5),
        "assigned": assigned,
        "residual": residual,
        "place": np.concatenate([[0.0], np.cumsum(share)[:-1]]),
        "place_step": share / parent.width,
        **scatter,
    }


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
        here = all_cells[index]
        limit = (
            column.num_embeddings if max_cardinality is None else min(column.num_embeddings, max_cardinality)
        )
        table: dict[str, Any] = {
            "num_embeddings": limit,
            "never_missing": column.never_missing,
            "first": here.first,
            "width": here.width,
            "mass": here.mass,
            "effect": column.effect * statistics.effect_scale,
            "interaction": statistics.interaction_scale if column.interaction else 0.0,
        }
        if column.trend > 0:
            random = np.random.default_rng([seed & _MASK64, index])
            table["partner_odds"] = partner_odds(here.mass[: len(column.head)], column.trend, random)
        if column.fleeting > 0:
            table |= {"fleeting": column.fleeting, "window": WINDOW}
        if column.dependence is not None:
            parent = names.index(column.dependence.parent)
            table["parent"] = parent
            table |= dependence_tables(all_cells[parent], here, column.dependence.strength)
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
