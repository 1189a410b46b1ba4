"""Tables of several representations looked up together: those of one in one launch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from recsys_opt.embeddings.base import EmbeddingRepresentation


def look_up_mixed(
    bags: Sequence[EmbeddingRepresentation], indices: Tensor, offsets: Tensor | None, weights: Tensor | None
) -> list[Tensor]:
    """The pooled rows of each table; arguments as `EmbeddingRepresentation.forward_group`'s."""
    kinds: dict[type[EmbeddingRepresentation], list[int]] = defaultdict(list)
    for t, bag in enumerate(bags):
        kinds[type(bag)].append(t)
    found: dict[int, Tensor] = {}
    for kind, positions in kinds.items():
        own = [bags[t] for t in positions]
        picked = (indices, offsets, weights)
        if len(kinds) > 1:
            picked = _picked(positions, len(bags), indices, offsets, weights)
        output = kind.forward_group(own, *picked)
        found |= zip(positions, output.split([bag.embedding_dim for bag in own], dim=1), strict=True)
    return [found[t] for t in range(len(bags))]


def bounds_of(lengths: Tensor) -> Tensor:
    """Where bags of these lengths begin, and the end of the last."""
    lengths = lengths.reshape(-1)
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


def _picked(
    positions: Sequence[int], tables: int, indices: Tensor, offsets: Tensor | None, weights: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The lookups of some of the tables, in the same form."""
    if offsets is None:
        ids = indices.view(tables, -1)[list(positions)].reshape(-1)
        own = None if weights is None else weights.view(tables, -1)[list(positions)].reshape(-1)
        return ids, None, own
    # Of a size that no number in a tensor decides: ids of the others come behind the last bag.
    batch = (offsets.shape[0] - 1) // tables
    lengths = offsets.diff().view(tables, batch)
    table_of = torch.bucketize(
        torch.arange(indices.shape[0], device=indices.device),
        offsets[batch::batch].contiguous(),
        right=True,
    )
    wanted = torch.zeros(tables + 1, dtype=torch.bool, device=indices.device)
    wanted[list(positions)] = True
    order = torch.argsort((~wanted[table_of]).to(torch.int8), stable=True)
    return (
        indices[order],
        bounds_of(lengths[list(positions)]),
        None if weights is None else weights[order],
    )
