"""The rankings that a plan counts its rows by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_opt.errors import InputError
from recsys_opt.plan import Plan
from recsys_opt.ranks import rank_order

Rankings = Mapping[str, NDArray[Any]]
"""Table -> its rows, hottest first (`TableStatistics.ranking()`); rows that are missing follow in ascending
order. The rows of a table that is missing are ranked by their ids."""


def table_order(rankings: Rankings, table: str, num_embeddings: int) -> NDArray[Any]:
    """The row at each rank of a table."""
    try:
        return rank_order(rankings.get(table, np.empty(0, np.int64)), num_embeddings)
    except InputError as error:
        raise InputError(f"table {table}: {error}; use the statistics that the plan was made from") from None


def check_rankings(plan: Plan, rankings: Rankings) -> None:
    """Refuses rankings of tables that the plan does not have."""
    unknown = sorted(set(rankings) - {t.name for t in plan.tables})
    if unknown:
        raise InputError(
            f"rankings are given for {', '.join(unknown)}, which the plan does not have; use the statistics "
            "that it was made from"
        )
