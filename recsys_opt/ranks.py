"""Rows in the order of rank: the one rule by which plans, tables and remapped ids count rows.

Rank 0 is the row that is looked up most. Rows that a ranking does not name follow in ascending order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_opt.errors import InputError

_CHUNK = 1 << 20


def rank_order(ranking: NDArray[Any], num_embeddings: int) -> NDArray[Any]:
    """The row at each rank, [num_embeddings]; int32 where the rows fit into it, else int64.

    ranking  [n] different rows, hottest first (`TableStatistics.ranking`)
    """
    ranking = np.asarray(ranking)
    dtype = np.int32 if num_embeddings <= np.iinfo(np.int32).max else np.int64
    if ranking.ndim != 1 or (ranking.size and ranking.dtype.kind not in "iu"):
        raise InputError(
            f"the ranking is {ranking.dtype} {ranking.shape}; it must be rows of the table, hottest first"
        )
    if ranking.size:
        low, high = int(ranking.min()), int(ranking.max())
        if low < 0 or high >= num_embeddings:
            raise InputError(
                f"the ranking names row {low if low < 0 else high}; the table has {num_embeddings} rows, "
                "counted from 0"
            )
    unranked = np.ones(num_embeddings, dtype=np.bool_)
    unranked[ranking] = False
    if np.count_nonzero(unranked) + len(ranking) != num_embeddings:
        row = int(np.flatnonzero(np.bincount(ranking, minlength=num_embeddings) > 1)[0])
        raise InputError(f"the ranking names row {row} twice")
    order = np.empty(num_embeddings, dtype=dtype)
    order[: len(ranking)] = ranking
    at = len(ranking)
    for start in range(0, num_embeddings, _CHUNK):  # their int64 indices at once would be twice the result
        rest = np.flatnonzero(unranked[start : start + _CHUNK])
        order[at : at + len(rest)] = rest + start
        at += len(rest)
    return order


def rank_of(order: NDArray[Any]) -> NDArray[Any]:
    """The rank of each row: the inverse of `rank_order`.

    order  [num_embeddings] every row once
    """
    ranks = np.empty_like(order)
    ranks[order] = np.arange(len(order), dtype=order.dtype)
    return ranks


def restriped(order: NDArray[Any], base: NDArray[Any], stripes: int) -> NDArray[Any]:
    """Rows dealt to the stripes to which `base` deals them, each stripe in the order of `order`.

    order, base  [num_embeddings] the row at each rank (`rank_order`)
    stripes      how many; the rows at the ranks s, s + stripes, ... are stripe s
    """
    stripe = (rank_of(base) % stripes)[order]
    found = np.empty_like(order)
    for s in range(stripes):
        found[s::stripes] = order[stripe == s]
    return found
