"""Readable torch versions of the ops of `recsys_opt.ops.tiered`: what tests hold them to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from recsys_opt import reference


def joined(hot: Sequence[Tensor], cold: Sequence[Tensor]) -> list[Tensor]:
    """Every table's rows in the order of their positions; tables of the same tiers are one tensor."""
    made: dict[tuple[int, int], Tensor] = {}
    return [made.setdefault((id(h), id(c)), torch.cat([h, c])) for h, c in zip(hot, cold, strict=True)]


def positions(tables: int, remaps: Sequence[Tensor], indices: Tensor, offsets: Tensor | None) -> Tensor:
    """The position of every id: remaps[t][id], or the id where table t has no remap."""
    bounds = torch.arange(indices.numel() + 1) if offsets is None else offsets
    batch = (bounds.numel() - 1) // tables
    parts = []
    for t, remap in enumerate(remaps):
        ids = indices[int(bounds[t * batch]) : int(bounds[(t + 1) * batch])].long()
        parts.append(remap[ids].long() if remap.numel() else ids)
    beyond = indices[int(bounds[-1]) :].long()  # of no bag
    return torch.cat([*parts, beyond])


def tiered_bag(
    hot: Sequence[Tensor],
    cold: Sequence[Tensor],
    remaps: Sequence[Tensor],
    indices: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    mean: Sequence[bool],
) -> Tensor:
    """Rows of many tables of two tiers, summed or averaged over bags.

    hot      T x [H_t, D_t] the rows of the positions 0 .. H_t - 1
    cold     T x [C_t, D_t] the rows of the positions H_t .. H_t + C_t - 1
    remaps   T x [H_t + C_t] the position of each id; or [0]: the ids are positions
    returns  [B, sum D_t]; the other arguments are those of `reference.dense_bag`
    """
    found = positions(len(hot), remaps, indices, offsets)
    return reference.dense_bag(joined(hot, cold), found, offsets, per_sample_weights, mean)


def tiered_bag_backward_update(
    grad: Tensor,
    hot: Sequence[Tensor],
    cold: Sequence[Tensor],
    hot_states: Sequence[Tensor],
    cold_states: Sequence[Tensor],
    positions: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    mean: Sequence[int],
    factors_grad: bool,
    algorithm: int,
    hyperparameters: Tensor,
) -> Tensor:
    """`reference.dense_bag_backward_update` on rows and states in two tiers, from the ids' positions."""
    weights, states = joined(hot, cold), joined(hot_states, cold_states)
    result = reference.dense_bag_backward_update(
        grad,
        weights,
        states,
        positions,
        offsets,
        per_sample_weights,
        mean,
        factors_grad,
        algorithm,
        hyperparameters,
    )
    for tiers, whole in (((hot, cold), weights), ((hot_states, cold_states), states)):
        for h, c, both in zip(*tiers, whole, strict=True):
            h.copy_(both[: h.shape[0]])
            c.copy_(both[h.shape[0] :])
    return result
