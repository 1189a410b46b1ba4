"""Lookups in tensor trains: shapes, and gradients of the cores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from recsys_opt.ops.bags import bounds_of_bags
from recsys_opt.ops.library import differentiated_once, eager_op, fake


@fake("recsys_opt::tt_embedding_bag")
def bag_shape(
    indices: Tensor,
    offsets: Tensor,
    cores: list[Tensor],
    cores_per_table: list[int],
    num_embeddings: list[int],
    pooling_modes: list[int],
    padding_idx: list[int],
    per_sample_weights: Tensor | None,
) -> Tensor:
    """An empty tensor of the shape of `tt_embedding_bag`\'s result."""
    columns, first = 0, 0
    for d in cores_per_table:
        columns += math.prod(core.shape[1] for core in cores[first : first + d])
        first += d
    return cores[0].new_empty((offsets.shape[0] - 1) // len(cores_per_table), columns)


@fake("recsys_opt::tt_embedding_bag_backward")
def _tt_embedding_bag_backward_fake(
    grad: Tensor,
    indices: Tensor,
    offsets: Tensor,
    cores: list[Tensor],
    cores_per_table: list[int],
    num_embeddings: list[int],
    pooling_modes: list[int],
    padding_idx: list[int],
    per_sample_weights: Tensor | None,
    weights_grad: bool,
) -> list[Tensor]:
    grads = [core.new_empty(core.shape) for core in cores]
    return [*grads, grad.new_empty(indices.shape[0])] if weights_grad else grads


def _tt_embedding_bag_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    indices, offsets, cores, *options, per_sample_weights = inputs
    ctx.options = options
    ctx.save_for_backward(indices, offsets, per_sample_weights, *cores)


def _tt_embedding_bag_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    indices, offsets, weights, *cores = ctx.saved_tensors
    weights_grad = ctx.needs_input_grad[7]
    grads = torch.ops.recsys_opt.tt_embedding_bag_backward(
        grad, indices, offsets, cores, *ctx.options, weights, weights_grad
    )
    return None, None, grads[: len(cores)], *[None] * 4, grads[-1] if weights_grad else None


# Eager mode's own ops, for the CPU. `kept` holds the forward pass's arguments, plan and products: the
# backward pass needs little besides, and computes none of them again.
LOOK_UP = eager_op("tt_lookup")
_BACKWARD = eager_op("tt_lookup_backward")


def options_of(tables: Sequence[int]) -> list[Sequence[int]]:
    """The op's cores_per_table, num_embeddings, pooling_modes and padding_idx, which lie in `tables`."""
    count = len(tables) // 4
    return [tables[i * count : (i + 1) * count] for i in range(4)]


def look_up_elsewhere(
    indices: Tensor,
    offsets: Tensor | None,
    include_last_offset: bool,
    cores: list[Tensor],
    tables: list[int],
    per_sample_weights: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor | None]:
    """Other devices keep nothing; their backward pass begins anew."""
    ids, bounds = bounds_of_bags(indices, offsets, include_last_offset)
    weights = None if per_sample_weights is None else per_sample_weights.reshape(-1)
    options = options_of(tables)
    with torch._C._AutoDispatchBelowAutograd():  # less bookkeeping
        result: Tensor = torch.ops.recsys_opt.tt_embedding_bag.default(ids, bounds, cores, *options, weights)
    return result, None


torch.library.impl("recsys_opt::tt_lookup", "CUDA", look_up_elsewhere)
fake("recsys_opt::tt_lookup")(look_up_elsewhere)


class EagerLookup(torch.autograd.Function):
    """The registered gradient, for eager mode."""

    boxed_grads_call = False  # torch asks for it; where it is missing, by way of an AttributeError

    @staticmethod
    def forward(
        ctx: Any,
        bags: tuple[Tensor, Tensor | None, bool],
        tables: Sequence[int],
        per_sample_weights: Tensor | None,
        *cores: Tensor,
    ) -> Tensor:
        """Looks up, and keeps what the backward pass can use."""
        result: Tensor
        # No saved tensor: hooks on those copy bytes, and `kept` is more than bytes.
        result, ctx.kept = LOOK_UP(*bags, cores, tables, per_sample_weights, True)
        indices, offsets, include_last_offset = bags
        weights_grad = per_sample_weights is not None and ctx.needs_input_grad[2]
        ctx.call = (include_last_offset, tables, weights_grad)
        ctx.save_for_backward(indices, offsets, per_sample_weights, *cores)
        return result

    @staticmethod
    @differentiated_once
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Gradients of the per-sample weights and the cores."""
        indices, offsets, weights, *cores = ctx.saved_tensors  # raises where they have changed since
        include_last_offset, tables, weights_grad = ctx.call
        kept, ctx.kept = ctx.kept, None  # a second pass over the graph begins anew
        if kept is not None:
            grads = _BACKWARD(kept, grad, weights_grad)
        else:
            ids, bounds = bounds_of_bags(indices, offsets, include_last_offset)
            factors = None if weights is None else weights.reshape(-1)
            grads = torch.ops.recsys_opt.tt_embedding_bag_backward.default(
                grad, ids, bounds, cores, *options_of(tables), factors, weights_grad
            )
        return None, None, grads.pop().view_as(weights) if weights_grad else None, *grads


torch.library.register_autograd(
    "recsys_opt::tt_embedding_bag", _tt_embedding_bag_backward, setup_context=_tt_embedding_bag_setup
)


def _tt_embedding_bag_twice(ctx: Any, grads: Any) -> None:
    raise RuntimeError(
        "the gradients of tt_embedding_bag cannot be differentiated twice; for second derivatives use "
        "recsys_opt.reference.tt_embedding_bag"
    )


torch.library.register_autograd("recsys_opt::tt_embedding_bag_backward", _tt_embedding_bag_twice)
