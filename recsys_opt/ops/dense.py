"""Dense tables, and the updates of their rows and of dense parameters: shapes and gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from recsys_opt.ops.library import fake
from recsys_opt.ops.row_update import RowUpdate, UpdatingBag


def dense_bag(
    weights: Sequence[Tensor],
    indices: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    mean: Sequence[bool],
) -> Tensor:
    """Lookup and pooling in many dense tables; `reference.dense_bag` says what it computes.

    The gradients of the weights are sparse COO tensors with one entry per looked-up id, not coalesced.
    """
    flags = [int(m) for m in mean]
    result: Tensor = torch.ops.recsys_opt.dense_bag(weights, indices, offsets, per_sample_weights, flags)
    return result


_UPDATING = UpdatingBag("dense_bag", rows=("weights",))


def dense_bag_updating(
    weights: Sequence[Tensor],
    indices: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    mean: Sequence[bool],
    update: RowUpdate,
) -> Tensor:
    """`dense_bag` whose backward pass updates the tables (`reference.dense_bag_backward_update`)."""
    if not torch.is_grad_enabled():
        return dense_bag(weights, indices, offsets, per_sample_weights, mean)
    return _UPDATING((weights,), (), indices, offsets, per_sample_weights, mean, update)


# The gradients as one op, so that torch.compile has nothing to look into: their sizes depend on the offsets.
torch.library.define(
    "recsys_opt::dense_bag_backward",
    "(Tensor grad, Tensor[] weights, Tensor indices, Tensor? offsets, Tensor? per_sample_weights, int[] mean)"
    " -> Tensor[]",
)


def _dense_bag_gradients(
    grad: Tensor,
    weights: list[Tensor],
    indices: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    mean: list[int],
) -> list[Tensor]:
    rows = torch.ops.recsys_opt.dense_bag_row_gradients(
        grad, weights, indices, offsets, per_sample_weights, mean
    )
    ids = indices.to(torch.int64, copy=True).unsqueeze(0)
    if offsets is None:
        batch = indices.numel() // len(weights)
        bounds = [t * batch for t in range(len(weights) + 1)]
    else:
        batch = (offsets.numel() - 1) // len(weights)
        bounds = offsets[torch.arange(len(weights) + 1) * batch].tolist()
    grads, first = [], 0
    for weight, start, stop in zip(weights, bounds[:-1], bounds[1:], strict=True):
        count, dim = stop - start, weight.shape[1]
        values = rows[first : first + count * dim].view(count, dim)
        first += count * dim
        grads.append(
            torch.sparse_coo_tensor(ids[:, start:stop], values, weight.shape, check_invariants=False)
        )
    return grads


torch.library.impl("recsys_opt::dense_bag_backward", "CPU", _dense_bag_gradients)


@fake("recsys_opt::dense_bag")
def _(
    weights: list[Tensor],
    indices: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    mean: list[int],
) -> Tensor:
    bags = indices.shape[0] if offsets is None else offsets.shape[0] - 1
    return weights[0].new_empty(bags // len(weights), sum(w.shape[1] for w in weights))


@fake("recsys_opt::dense_bag_backward")
def _(
    grad: Tensor,
    weights: list[Tensor],
    indices: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    mean: list[int],
) -> list[Tensor]:
    ids = torch.empty(1, 0, dtype=torch.int64, device=grad.device)
    return [
        torch.sparse_coo_tensor(ids, grad.new_empty(0, w.shape[1]), w.shape, check_invariants=False)
        for w in weights
    ]


@fake("recsys_opt::dense_bag_factor_gradients")
def _(
    grad: Tensor,
    weights: list[Tensor],
    indices: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor,
) -> Tensor:
    return grad.new_empty(indices.shape[0])


def _dense_bag_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    weights, indices, offsets, factors, ctx.mean = inputs
    ctx.tables, ctx.has_offsets, ctx.has_factors = len(weights), offsets is not None, factors is not None
    ctx.save_for_backward(*weights, indices, *(t for t in (offsets, factors) if t is not None))


def _dense_bag_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    weights, (indices, *rest) = ctx.saved_tensors[: ctx.tables], ctx.saved_tensors[ctx.tables :]
    offsets = rest.pop(0) if ctx.has_offsets else None
    factors = rest.pop(0) if ctx.has_factors else None
    grads: Any = [None] * ctx.tables
    factor_grad = None
    if any(ctx.needs_input_grad[0]):
        grads = torch.ops.recsys_opt.dense_bag_backward(grad, weights, indices, offsets, factors, ctx.mean)
    if ctx.needs_input_grad[3]:
        factor_grad = torch.ops.recsys_opt.dense_bag_factor_gradients(
            grad, weights, indices, offsets, factors
        )
    return grads, None, None, factor_grad, None


torch.library.register_autograd(
    "recsys_opt::dense_bag", _dense_bag_backward, setup_context=_dense_bag_context
)


def adagrad_(
    parameters: Sequence[Tensor], states: Sequence[Tensor], grads: Sequence[Tensor], lr: float, eps: float
) -> None:
    """Adagrad on dense parameters; `reference.adagrad_` says what it computes."""
    torch.ops.recsys_opt.adagrad_(parameters, states, grads, lr, eps)


@fake("recsys_opt::adagrad_")
def _(parameters: list[Tensor], states: list[Tensor], grads: list[Tensor], lr: float, eps: float) -> None:
    return None


def sgd_rows_(weights: Sequence[Tensor], ids: Sequence[Tensor], grads: Sequence[Tensor], lr: float) -> None:
    """SGD on the looked-up rows of dense tables; `reference.sgd_rows_` says what it computes."""
    torch.ops.recsys_opt.sgd_rows_(weights, ids, grads, lr)


def rowwise_adagrad_rows_(
    weights: Sequence[Tensor],
    states: Sequence[Tensor],
    ids: Sequence[Tensor],
    grads: Sequence[Tensor],
    lr: float,
    eps: float,
) -> None:
    """Row-wise Adagrad on looked-up rows; `reference.rowwise_adagrad_rows_` says what it computes."""
    torch.ops.recsys_opt.rowwise_adagrad_rows_(weights, states, ids, grads, lr, eps)


@fake("recsys_opt::sgd_rows_")
def _(weights: list[Tensor], ids: list[Tensor], grads: list[Tensor], lr: float) -> None:
    return None


@fake("recsys_opt::rowwise_adagrad_rows_")
def _(
    weights: list[Tensor],
    states: list[Tensor],
    ids: list[Tensor],
    grads: list[Tensor],
    lr: float,
    eps: float,
) -> None:
    return None


@fake("recsys_opt::dense_bag_backward_update")
def _(
    grad: Tensor,
    weights: list[Tensor],
    states: list[Tensor],
    indices: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    mean: list[int],
    factors_grad: bool,
    algorithm: int,
    hyperparameters: Tensor,
) -> Tensor:
    return grad.new_empty(indices.shape[0] if factors_grad else 0)
