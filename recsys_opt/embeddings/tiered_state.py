"""The rows of a `TieredEmbeddingBag` taken over from a saved state, whatever table it is of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from recsys_opt.embeddings.tiered_rows import chunks, positions_of, read_range, write_range, write_rows
from recsys_opt.errors import InputError

if TYPE_CHECKING:
    from recsys_opt.embeddings.tiered import TieredEmbeddingBag


@torch.no_grad()
def take_rows(bag: TieredEmbeddingBag, weight: Tensor) -> None:
    """Row i becomes weight[i], wherever it is."""
    for start, stop in chunks(bag.num_embeddings, bag.cold):
        write_rows(bag.hot, bag.cold, positions_of(bag.remap, start, stop), weight[start:stop])


@torch.no_grad()
def load_rows(bag: TieredEmbeddingBag, state: Mapping[str, Any], prefix: str) -> bool:
    """Takes over a dense table's state, by its "weight", or a tiered one's of any split, whose ranking the
    table then has; False where the state is neither."""
    weight, rows = state.get(f"{prefix}weight"), (bag.num_embeddings, bag.embedding_dim)
    if weight is not None and f"{prefix}hot" not in state:
        if tuple(weight.shape) != rows:
            raise InputError(f"{prefix}weight is {list(weight.shape)}; the table is {list(rows)}")
        take_rows(bag, weight)
        return True
    hot, cold, remap = (state.get(f"{prefix}{name}") for name in ("hot", "cold", "remap"))
    if hot is None or cold is None or remap is None:
        return False
    if (len(hot) + len(cold), *hot.shape[1:]) != rows or len(remap) not in (0, rows[0]):
        raise InputError(
            f"{prefix}hot, cold and remap are {list(hot.shape)}, {list(cold.shape)} and "
            f"{list(remap.shape)}; the table is {list(rows)}"
        )
    bag.remap = remap.to(device=bag.remap.device, dtype=bag.remap.dtype, copy=True)
    for start, stop in chunks(rows[0], bag.cold):
        write_range(bag.hot, bag.cold, start, read_range(hot, cold, start, stop))
    return True
