"""What a memory budget is compared with: one rank for the largest tables, at as many bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from recsys_opt.data.dataset import SparseColumn
from recsys_opt.embeddings.tt_budget import BYTES, TTOption
from recsys_opt.embeddings.tt_shapes import column_factors, row_factors
from recsys_opt.errors import InfeasibleError

LEAST_RANK = 8
"""More tables become tensor trains where fewer would leave less than this rank."""


def uniform_options(
    columns: Sequence[SparseColumn], embedding_dim: int, budget_bytes: int
) -> dict[str, dict[str, Any]]:
    """Options of the largest tables: three cores, the largest rank that fits; as few tables as give it 8."""
    by_size = sorted(columns, key=lambda c: -c.num_embeddings)
    for count in range(len(columns) + 1):
        large, small = by_size[:count], by_size[count:]
        left = budget_bytes - sum(BYTES * c.num_embeddings * embedding_dim for c in small)
        if left < 0:
            continue
        rank = 0
        found: dict[str, TTOption] = {}
        while large:
            options = {c.name: _option(c.num_embeddings, embedding_dim, rank + 1) for c in large}
            if found == options or BYTES * sum(o.parameters for o in options.values()) > left:
                break
            rank, found = rank + 1, options
        if rank >= LEAST_RANK or not large:
            return {name: option.to_json() for name, option in found.items()}
    raise InfeasibleError(
        f"no uniform rank of at least {LEAST_RANK} fits into {budget_bytes:,} bytes; give a larger budget"
    )


def _option(rows: int, embedding_dim: int, rank: int) -> TTOption:
    """Every bond has `rank`, or as much as it can use."""
    p, q = row_factors(rows, 3), column_factors(embedding_dim, 3)
    sides = [a * b for a, b in zip(p, q, strict=True)]
    most = (min(sides[0], sides[1] * sides[2]), min(sides[0] * sides[1], sides[2]))
    return TTOption(p, q, (min(rank, most[0]), min(rank, most[1])))
