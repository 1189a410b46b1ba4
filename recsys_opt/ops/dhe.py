"""Deep hash embeddings: encodings of ids, lookups in many tables, their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from recsys_opt.ops.dhe_torch import (
    DHE_ENCODINGS,
    TABLE_NUMBERS,
    backward_by_torch,
    dhe_encode,
    forward_by_torch,
    layers_of,
)
from recsys_opt.ops.library import fake

__all__ = ["DHE_ENCODINGS", "TABLE_NUMBERS", "dhe_embedding_bag", "dhe_encode"]


def dhe_embedding_bag(
    indices: Tensor,
    offsets: Tensor | None,
    hashes: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    tables: Sequence[int],
    per_sample_weights: Tensor | None = None,
) -> Tensor:
    """Pooled rows of T tables in one launch; `reference.dhe_embedding_bag` defines them.

    indices             [N] int32 or int64 ids, feature-major
    offsets             [T * B + 1] int64; bag c = t * B + b is indices[offsets[c] : offsets[c + 1]]; None:
                        one id per bag
    hashes              T times [2, k] int64
    weights, biases     of all tables' layers in order: [in, out] and [out]
    tables              TABLE_NUMBERS per table
    per_sample_weights  [N] factors of the rows; sum pooling only
    returns             [B, sum of the tables' columns]

    Gradients are those of weights, biases and per_sample_weights. Each distinct id of a batch is computed
    once; on the CPU an encoding is never written to memory.
    """
    learning = torch.is_grad_enabled() and (
        any(tensor.requires_grad for tensor in (*weights, *biases))
        or (per_sample_weights is not None and per_sample_weights.requires_grad)
    )
    result: Tensor = torch.ops.recsys_opt.dhe_embedding_bag(
        indices, offsets, hashes, weights, biases, tables, per_sample_weights, learning
    )[0]
    return result


@fake("recsys_opt::dhe_embedding_bag")
def _(
    indices: Tensor,
    offsets: Tensor | None,
    hashes: list[Tensor],
    weights: list[Tensor],
    biases: list[Tensor],
    tables: list[int],
    per_sample_weights: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    bags = indices.shape[0] if offsets is None else offsets.shape[0] - 1
    widths = [[bias.shape[0] for bias in own] for own in layers_of(biases, tables)]
    lookups = indices.shape[0] if keep else 0
    return (
        weights[0].new_empty(bags // len(hashes), sum(own[-1] for own in widths)),
        indices.new_empty(lookups, dtype=torch.int64),
        indices.new_empty(lookups, dtype=torch.int32),
        indices.new_empty(len(hashes) if keep else 0, dtype=torch.int64),
        weights[0].new_empty(lookups, max(sum(own) for own in widths)),
    )


@fake("recsys_opt::dhe_embedding_bag_backward")
def _(
    grad: Tensor,
    indices: Tensor,
    offsets: Tensor | None,
    distinct: Tensor,
    slots: Tensor,
    counts: Tensor,
    hidden: Tensor,
    hashes: list[Tensor],
    weights: list[Tensor],
    biases: list[Tensor],
    tables: list[int],
    per_sample_weights: Tensor | None,
    factors_grad: bool,
) -> list[Tensor]:
    found = [tensor.new_empty(tensor.shape) for tensor in (*weights, *biases)]
    return [*found, grad.new_empty(indices.shape[0])] if factors_grad else found


def _context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    indices, offsets, hashes, weights, biases, ctx.tables, factors, ctx.kept = inputs
    _, distinct, slots, counts, hidden = output
    ctx.mark_non_differentiable(distinct, slots, counts, hidden)
    ctx.sizes = len(hashes), len(weights)
    ctx.has_offsets, ctx.has_factors = offsets is not None, factors is not None
    optional = [tensor for tensor in (offsets, factors) if tensor is not None]
    ctx.save_for_backward(indices, distinct, slots, counts, hidden, *hashes, *weights, *biases, *optional)


def _backward(ctx: Any, grad: Tensor, *unused: Any) -> tuple[Any, ...]:
    (indices, *kept), rest = ctx.saved_tensors[:5], list(ctx.saved_tensors[5:])
    tables, layers = ctx.sizes
    hashes, weights = rest[:tables], rest[tables : tables + layers]
    biases, optional = rest[tables + layers : tables + 2 * layers], rest[tables + 2 * layers :]
    offsets = optional.pop(0) if ctx.has_offsets else None
    factors = optional.pop(0) if ctx.has_factors else None
    factors_grad = ctx.needs_input_grad[6]
    grads = torch.ops.recsys_opt.dhe_embedding_bag_backward(
        grad, indices, offsets, *kept, hashes, weights, biases, ctx.tables, factors, factors_grad
    )
    return (
        None,
        None,
        [None] * tables,
        grads[:layers],
        grads[layers : 2 * layers],
        None,
        grads[-1] if factors_grad else None,
        None,
    )


def _refuse(ctx: Any, *grads: Any) -> tuple[Any, ...]:
    raise RuntimeError("gradients of a deep hash embedding cannot be differentiated again")


torch.library.register_autograd("recsys_opt::dhe_embedding_bag", _backward, setup_context=_context)
torch.library.register_autograd("recsys_opt::dhe_embedding_bag_backward", _refuse)


torch.library.impl("recsys_opt::dhe_embedding_bag", "CUDA", forward_by_torch)
torch.library.impl("recsys_opt::dhe_embedding_bag_backward", "CUDA", backward_by_torch)
