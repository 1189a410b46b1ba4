"""Lookups in dense tables whose backward pass updates the rows, in place of their gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recsys_opt.ops.library import differentiated_once, eager_apply, fake
from recsys_opt.ops.tt_update import ANCHOR, TT_ALGORITHMS


class DenseUpdate(NamedTuple):
    """An update of the looked-up rows in the backward pass, in place of the tables' gradients."""

    algorithm: int
    """One of TT_ALGORITHMS; csrc/tt/tt_update.h says what they compute, with a row for a slice."""
    states: Sequence[Tensor]
    """The states of table 0, then of table 1, ...: SGD none; Adagrad one as large as the table; row-wise
    Adagrad one number per row; Adam two as large as the table. They have the tables' dtype."""
    hyperparameters: Tensor
    """[6] float64: lr, eps, beta1, beta2, weight_decay, step. Each backward pass of Adam adds 1 to the step
    first."""


def dense_bag_updating(
    weights: Sequence[Tensor],
    indices: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    mean: Sequence[bool],
    update: DenseUpdate,
) -> Tensor:
    """`dense_bag` whose backward pass updates the tables (`reference.dense_bag_backward_update`).

    The tables must not require gradients, and get none.
    """
    flags = [int(m) for m in mean]
    result: Tensor
    if not torch.is_grad_enabled():
        result = torch.ops.recsys_opt.dense_bag(list(weights), indices, offsets, per_sample_weights, flags)
        return result
    if torch.compiler.is_compiling():
        result = torch.ops.recsys_opt.dense_bag_updating(
            ANCHOR,
            list(weights),
            list(update.states),
            indices,
            offsets,
            per_sample_weights,
            flags,
            update.algorithm,
            update.hyperparameters,
        )
        return result
    return _UPDATING(ANCHOR, list(weights), indices, offsets, per_sample_weights, flags, update)


def _update_rows(
    grad: Tensor,
    weights: Sequence[Tensor],
    batch: tuple[Tensor, Tensor | None, Tensor | None],
    mean: Sequence[int],
    factors_grad: bool,
    update: DenseUpdate,
) -> Tensor | None:
    """Updates the rows; returns the gradient of the per-sample weights where they need one."""
    if update.algorithm == TT_ALGORITHMS["adam"]:
        update.hyperparameters[-1] += 1
    factors: Tensor = torch.ops.recsys_opt.dense_bag_backward_update.default(
        grad, weights, update.states, *batch, mean, factors_grad, update.algorithm, update.hyperparameters
    )
    return factors if factors_grad else None


class EagerUpdatingRows(torch.autograd.Function):
    """Tables and states are not saved as tensors whose version autograd checks: the lookups of one backward
    pass update them one after the other."""

    boxed_grads_call = False  # torch asks for it; where it is missing, by way of an AttributeError

    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        weights: list[Tensor],
        indices: Tensor,
        offsets: Tensor | None,
        per_sample_weights: Tensor | None,
        mean: list[int],
        update: DenseUpdate,
    ) -> Tensor:
        """Looks up."""
        ctx.weights, ctx.mean, ctx.update = weights, mean, update
        ctx.factors_grad = per_sample_weights is not None and ctx.needs_input_grad[4]
        ctx.save_for_backward(indices, offsets, per_sample_weights)
        with torch._C._AutoDispatchBelowAutograd():  # 10 us of bookkeeping less
            result: Tensor = torch.ops.recsys_opt.dense_bag.default(
                weights, indices, offsets, per_sample_weights, mean
            )
        return result

    @staticmethod
    @differentiated_once
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Updates the rows; the gradient of the per-sample weights."""
        factors = _update_rows(grad, ctx.weights, ctx.saved_tensors, ctx.mean, ctx.factors_grad, ctx.update)
        torch.autograd.graph.increment_version(ctx.weights)
        return None, None, None, None, factors, None, None


_UPDATING: Callable[..., Tensor] = eager_apply(EagerUpdatingRows)


@torch.library.custom_op("recsys_opt::dense_bag_updating", mutates_args=())
def _dense_bag_updating(
    anchor: Tensor,
    weights: Sequence[Tensor],
    states: Sequence[Tensor],
    indices: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    mean: Sequence[int],
    algorithm: int,
    hyperparameters: Tensor,
) -> Tensor:
    """dense_bag whose gradient updates the tables, for torch.compile."""
    result: Tensor = torch.ops.recsys_opt.dense_bag(weights, indices, offsets, per_sample_weights, mean)
    return result


@_dense_bag_updating.register_fake
def _(
    anchor: Tensor,
    weights: list[Tensor],
    states: list[Tensor],
    indices: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    mean: list[int],
    algorithm: int,
    hyperparameters: Tensor,
) -> Tensor:
    bags = indices.shape[0] if offsets is None else offsets.shape[0] - 1
    return weights[0].new_empty(bags // len(weights), sum(w.shape[1] for w in weights))


def _updating_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, weights, states, indices, offsets, factors, ctx.mean, ctx.algorithm, hyperparameters = inputs
    ctx.tables = len(weights)
    ctx.save_for_backward(indices, offsets, factors, hyperparameters, *weights, *states)


def _updating_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    indices, offsets, factors, hyperparameters, *rest = ctx.saved_tensors
    weights, states = rest[: ctx.tables], rest[ctx.tables :]
    update = DenseUpdate(ctx.algorithm, states, hyperparameters)
    factors = _update_rows(
        grad, weights, (indices, offsets, factors), ctx.mean, ctx.needs_input_grad[5], update
    )
    return None, [None] * len(weights), [None] * len(states), None, None, factors, None, None, None


_dense_bag_updating.register_autograd(_updating_backward, setup_context=_updating_setup)


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
