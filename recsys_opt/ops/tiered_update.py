"""Lookups in tables of two tiers whose backward pass updates the rows, in place of their gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recsys_opt.ops.library import differentiated_once, eager_apply, eager_op, fake
from recsys_opt.ops.tiered import position_dtype, tiered_bag
from recsys_opt.ops.tt_update import ANCHOR, TT_ALGORITHMS

_LOOK_UP, _UPDATE = eager_op("tiered_bag"), eager_op("tiered_bag_backward_update")


class TieredUpdate(NamedTuple):
    """An update of the looked-up rows in the backward pass, in place of the tiers' gradients."""

    algorithm: int
    """One of TT_ALGORITHMS; csrc/tt/tt_update.h says what they compute, with a row for a slice."""
    hot_states: Sequence[Tensor]
    """The states of table 0's hot rows, then of table 1's, ...: SGD none; Adagrad one as large as the tier;
    row-wise Adagrad one number per row; Adam two as large as the tier. They have the rows' dtype."""
    cold_states: Sequence[Tensor]
    """The same of the cold rows."""
    hyperparameters: Tensor
    """[6] float64: lr, eps, beta1, beta2, weight_decay, step. Each backward pass of Adam adds 1 to the step
    first."""


def tiered_bag_updating(
    hot: Sequence[Tensor],
    cold: Sequence[Tensor],
    remaps: Sequence[Tensor],
    indices: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    mean: Sequence[bool],
    update: TieredUpdate,
) -> Tensor:
    """`tiered_bag` whose backward pass updates the tables (`reference_tiered.tiered_bag_backward_update`).

    The tiers must not require gradients, and get none.
    """
    if not torch.is_grad_enabled():
        return tiered_bag(hot, cold, remaps, indices, offsets, per_sample_weights, mean)
    flags = [int(m) for m in mean]
    if torch.compiler.is_compiling():
        result: Tensor = torch.ops.recsys_opt.tiered_bag_updating(
            ANCHOR,
            list(hot),
            list(cold),
            list(remaps),
            list(update.hot_states),
            list(update.cold_states),
            indices,
            offsets,
            per_sample_weights,
            flags,
            update.algorithm,
            update.hyperparameters,
        )[0]
        return result
    tables = (list(hot), list(cold), list(remaps))
    return _UPDATING(ANCHOR, tables, indices, offsets, per_sample_weights, flags, update)


def _update_rows(
    grad: Tensor,
    hot: Sequence[Tensor],
    cold: Sequence[Tensor],
    batch: tuple[Tensor, Tensor | None, Tensor | None],
    mean: Sequence[int],
    factors_grad: bool,
    update: TieredUpdate,
) -> Tensor | None:
    """Updates the rows; returns the gradient of the per-sample weights where they need one.

    batch  positions, offsets, per-sample weights
    """
    if update.algorithm == TT_ALGORITHMS["adam"]:
        update.hyperparameters[-1] += 1
    factors: Tensor = _UPDATE(
        grad,
        hot,
        cold,
        update.hot_states,
        update.cold_states,
        *batch,
        mean,
        factors_grad,
        update.algorithm,
        update.hyperparameters,
    )
    return factors if factors_grad else None


class EagerUpdatingTiers(torch.autograd.Function):
    """Tiers and states are not saved as tensors whose version autograd checks: the lookups of one backward
    pass update them one after the other."""

    boxed_grads_call = False  # torch asks for it; where it is missing, by way of an AttributeError

    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        tables: tuple[list[Tensor], list[Tensor], list[Tensor]],
        indices: Tensor,
        offsets: Tensor | None,
        per_sample_weights: Tensor | None,
        mean: list[int],
        update: TieredUpdate,
    ) -> Tensor:
        """Looks up."""
        ctx.tiers, ctx.mean, ctx.update = tables[:2], mean, update
        ctx.factors_grad = per_sample_weights is not None and ctx.needs_input_grad[4]
        with torch._C._AutoDispatchBelowAutograd():
            result, positions = _LOOK_UP(*tables, indices, offsets, per_sample_weights, mean)
        remapped = any(remap.numel() for remap in tables[2])
        ctx.save_for_backward(positions if remapped else indices, offsets, per_sample_weights)
        output: Tensor = result
        return output

    @staticmethod
    @differentiated_once
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Updates the rows; the gradient of the per-sample weights."""
        hot, cold = ctx.tiers
        batch = ctx.saved_tensors
        factors = _update_rows(grad, hot, cold, batch, ctx.mean, ctx.factors_grad, ctx.update)
        for tier in ctx.tiers:
            torch.autograd.graph.increment_version(tier)
        return None, None, None, None, factors, None, None


_UPDATING: Callable[..., Tensor] = eager_apply(EagerUpdatingTiers)


@torch.library.custom_op("recsys_opt::tiered_bag_updating", mutates_args=())
def _tiered_bag_updating(
    anchor: Tensor,
    hot: Sequence[Tensor],
    cold: Sequence[Tensor],
    remaps: Sequence[Tensor],
    hot_states: Sequence[Tensor],
    cold_states: Sequence[Tensor],
    indices: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    mean: Sequence[int],
    algorithm: int,
    hyperparameters: Tensor,
) -> tuple[Tensor, Tensor]:
    """tiered_bag whose gradient updates the tables, for torch.compile."""
    output, positions = torch.ops.recsys_opt.tiered_bag(
        hot, cold, remaps, indices, offsets, per_sample_weights, mean
    )
    return output, positions


@_tiered_bag_updating.register_fake
def _(
    anchor: Tensor,
    hot: list[Tensor],
    cold: list[Tensor],
    remaps: list[Tensor],
    hot_states: list[Tensor],
    cold_states: list[Tensor],
    indices: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    mean: list[int],
    algorithm: int,
    hyperparameters: Tensor,
) -> tuple[Tensor, Tensor]:
    bags = indices.shape[0] if offsets is None else offsets.shape[0] - 1
    rows = max(h.shape[0] + c.shape[0] for h, c in zip(hot, cold, strict=True))
    remapped = any(remap.numel() for remap in remaps)
    return (
        hot[0].new_empty(bags // len(hot), sum(h.shape[1] for h in hot)),
        indices.new_empty(indices.shape[0] if remapped else 0, dtype=position_dtype(rows)),
    )


def _updating_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, hot, cold, remaps, hot_states, cold_states, indices, offsets, factors, *rest = inputs
    ctx.mean, ctx.algorithm, hyperparameters = rest
    ctx.tables, ctx.states = len(hot), len(hot_states)
    positions = output[1] if any(remap.numel() for remap in remaps) else indices
    ctx.save_for_backward(
        positions, offsets, factors, hyperparameters, *hot, *cold, *hot_states, *cold_states
    )


def _updating_backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
    positions, offsets, factors, hyperparameters, *tensors = ctx.saved_tensors
    parts = []
    for count in (ctx.tables, ctx.tables, ctx.states, ctx.states):
        parts.append(tensors[:count])
        tensors = tensors[count:]
    hot, cold, hot_states, cold_states = parts
    update = TieredUpdate(ctx.algorithm, hot_states, cold_states, hyperparameters)
    factors = _update_rows(
        grad, hot, cold, (positions, offsets, factors), ctx.mean, ctx.needs_input_grad[8], update
    )
    tables, states = [None] * ctx.tables, [None] * ctx.states
    return None, tables, tables, tables, states, states, None, None, factors, None, None, None


_tiered_bag_updating.register_autograd(_updating_backward, setup_context=_updating_setup)


@fake("recsys_opt::tiered_bag_backward_update")
def _(
    grad: Tensor,
    hot: list[Tensor],
    cold: list[Tensor],
    hot_states: list[Tensor],
    cold_states: list[Tensor],
    positions: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    mean: list[int],
    factors_grad: bool,
    algorithm: int,
    hyperparameters: Tensor,
) -> Tensor:
    return grad.new_empty(positions.shape[0] if factors_grad else 0)
