"""Lookups in tensor trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from recsys_opt.errors import InputError
from recsys_opt.ops.bags import bounds_of_bags
from recsys_opt.ops.library import eager_apply
from recsys_opt.ops.tt_gradient import LOOK_UP, EagerLookup
from recsys_opt.ops.tt_update import ANCHOR, EagerUpdatingLookup, TTUpdate

# The registered gradients with less bookkeeping in Python.
_DIFFERENTIABLE: Callable[..., Tensor] = eager_apply(EagerLookup)
_UPDATING: Callable[..., Tensor] = eager_apply(EagerUpdatingLookup)


def tt_embedding_bag(
    indices: Tensor,
    offsets: Tensor | None,
    cores: Sequence[Tensor],
    *,
    cores_per_table: Sequence[int],
    num_embeddings: Sequence[int],
    pooling_modes: Sequence[int],
    padding_idx: Sequence[int],
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = True,
    update: TTUpdate | None = None,
) -> Tensor:
    """Pooled rows of T tensor-train tables in one launch; `reference.tt_embedding_bag` says what it computes.

    indices             [N] int32 or int64 ids, feature-major; [T * B, L] without offsets: rows are bags
    offsets             [T * B + 1] int32 or int64; bag c = t * B + b is indices[offsets[c] : offsets[c + 1]];
                        the first is 0, ids after the last are of no bag and not looked at; None: one id per
                        bag, of 1-D indices
    cores               of table 0, then of table 1, ...; core k is [n_k, q_k, r_k, r_{k+1}]
    cores_per_table     T numbers from 2 to 4
    num_embeddings      T numbers; ids are below them
    pooling_modes       T numbers: 0 sum, 1 mean
    padding_idx         T ids that count for nothing; -1 for none
    per_sample_weights  like indices: factors of the rows; sum pooling only
    include_last_offset False: offsets is [T * B], and the last bag ends with the indices
    update              the backward pass updates the cores (`reference.tt_embedding_bag_backward_update`);
                        they must not require gradients, and get none
    returns             [B, sum of the tables' dimensions]
    """
    options = (cores_per_table, num_embeddings, pooling_modes, padding_idx)
    for option in options:
        if len(option) != len(cores_per_table):
            raise InputError(
                f"tt_embedding_bag: {len(cores_per_table)} tables, but {len(num_embeddings)} num_embeddings, "
                f"{len(pooling_modes)} pooling_modes and {len(padding_idx)} padding_idx"
            )
    bags = (indices, offsets, include_last_offset)
    result: Tensor
    if torch.compiler.is_compiling():
        ids, bounds = bounds_of_bags(*bags)
        weights = None if per_sample_weights is None else per_sample_weights.reshape(-1)
        if update is None or not torch.is_grad_enabled():
            result = torch.ops.recsys_opt.tt_embedding_bag(ids, bounds, cores, *options, weights)
        else:
            result = torch.ops.recsys_opt.tt_embedding_bag_updating(
                ANCHOR,
                ids,
                bounds,
                cores,
                update.states,
                *options,
                weights,
                update.algorithm,
                update.hyperparameters,
            )
        return result
    tables = [*cores_per_table, *num_embeddings, *pooling_modes, *padding_idx]
    if torch.is_grad_enabled():
        if update is not None:
            return _UPDATING(ANCHOR, bags, cores, tables, per_sample_weights, update)
        if (per_sample_weights is not None and per_sample_weights.requires_grad) or any(
            core.requires_grad for core in cores
        ):
            return _DIFFERENTIABLE(bags, tables, per_sample_weights, *cores)
    result, _ = LOOK_UP(*bags, cores, tables, per_sample_weights, False)
    return result
