"""Lookups in tensor trains: shapes, and gradients of the cores."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from recsys_opt.ops.library import fake


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


# The three ops of eager mode. `kept` holds the forward pass's plan and products, so that the backward pass
# computes neither again; other devices keep nothing.
def _tt_embedding_bag_keeping(*arguments: Any) -> tuple[Tensor, Tensor]:
    return torch.ops.recsys_opt.tt_embedding_bag(*arguments), torch.empty(0, dtype=torch.uint8)


def _tt_embedding_bag_backward_kept(kept: Tensor, *arguments: Any) -> Any:
    return torch.ops.recsys_opt.tt_embedding_bag_backward(*arguments)


def _tt_embedding_bag_backward_update_kept(kept: Tensor, *arguments: Any) -> Any:
    return torch.ops.recsys_opt.tt_embedding_bag_backward_update(*arguments)


for _name, _kernel in (
    ("recsys_opt::tt_embedding_bag_keeping", _tt_embedding_bag_keeping),
    ("recsys_opt::tt_embedding_bag_backward_kept", _tt_embedding_bag_backward_kept),
    ("recsys_opt::tt_embedding_bag_backward_update_kept", _tt_embedding_bag_backward_update_kept),
):
    torch.library.impl(_name, "CUDA", _kernel)
    torch.library.register_fake(_name, _kernel)


class EagerLookup(torch.autograd.Function):
    """The registered gradient, for eager mode."""

    @staticmethod
    def forward(
        ctx: Any,
        indices: Tensor,
        offsets: Tensor,
        options: tuple[list[int], ...],
        per_sample_weights: Tensor | None,
        *cores: Tensor,
    ) -> Tensor:
        """Looks up, and keeps what the backward pass can use."""
        result: Tensor
        result, kept = torch.ops.recsys_opt.tt_embedding_bag_keeping.default(
            indices, offsets, cores, *options, per_sample_weights
        )
        ctx.options = options
        ctx.weights_grad = per_sample_weights is not None and ctx.needs_input_grad[3]
        ctx.save_for_backward(indices, offsets, per_sample_weights, *cores)
        ctx.kept = kept  # no saved tensor: hooks on those copy bytes, and this is more than bytes
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Gradients of the per-sample weights and the cores."""
        indices, offsets, weights, *cores = ctx.saved_tensors
        arguments = (grad, indices, offsets, cores, *ctx.options, weights, ctx.weights_grad)
        kept, ctx.kept = ctx.kept, None  # a second pass over the graph plans again
        if kept is None:
            grads = torch.ops.recsys_opt.tt_embedding_bag_backward.default(*arguments)
        else:
            grads = torch.ops.recsys_opt.tt_embedding_bag_backward_kept.default(kept, *arguments)
        return None, None, None, grads[-1] if ctx.weights_grad else None, *grads[: len(cores)]


torch.library.register_autograd(
    "recsys_opt::tt_embedding_bag", _tt_embedding_bag_backward, setup_context=_tt_embedding_bag_setup
)


def _tt_embedding_bag_twice(ctx: Any, grads: Any) -> None:
    raise RuntimeError(
        "the gradients of tt_embedding_bag cannot be differentiated twice; for second derivatives use "
        "recsys_opt.reference.tt_embedding_bag"
    )


torch.library.register_autograd("recsys_opt::tt_embedding_bag_backward", _tt_embedding_bag_twice)
