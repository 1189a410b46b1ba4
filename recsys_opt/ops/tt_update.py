"""Lookups in tensor trains whose backward pass updates the cores, in place of their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recsys_opt.ops.bags import bounds_of_bags
from recsys_opt.ops.library import differentiated_once, eager_op, fake
from recsys_opt.ops.tt_gradient import LOOK_UP, bag_shape, options_of

TT_ALGORITHMS = {"sgd": 0, "adagrad": 1, "rowwise_adagrad": 2, "adam": 3}
"""Update rules of `TTUpdate` by name; csrc/tt/tt_update.h says what they compute."""


class TTUpdate(NamedTuple):
    """An update of the cores in the backward pass, in place of their gradients."""

    algorithm: int
    """One of TT_ALGORITHMS."""
    states: Sequence[Tensor]
    """The states of core 0, then of core 1, ...: SGD none; Adagrad one as large as the core; row-wise Adagrad
    one number per slice; Adam two as large as the core. They are float32; float64 where the cores are."""
    hyperparameters: Tensor
    """[6] float64 on the cores' device: lr, eps, beta1, beta2, weight_decay, step. Each backward pass of Adam
    adds 1 to the step first."""


# Updates in the backward pass. The cores have no gradient; what makes autograd call the backward pass is an
# empty tensor that requires one.
ANCHOR = torch.empty(0, requires_grad=True)


_UPDATE = eager_op("tt_lookup_update")
_ADAM = TT_ALGORITHMS["adam"]


def count_step(update: Any) -> None:
    """Before an update: Adam's number of steps."""
    if update.algorithm == _ADAM:
        update.hyperparameters[-1] += 1


def _update_cores(
    grad: Tensor,
    batch: tuple[Tensor, Tensor, Sequence[Tensor]],
    options: Sequence[Sequence[int]],
    per_sample_weights: Tensor | None,
    weights_grad: bool,
    update: TTUpdate,
) -> Tensor | None:
    """Updates the cores; returns the gradient of the per-sample weights where they need one."""
    count_step(update)
    indices, offsets, cores = batch
    weights_grads: Tensor = torch.ops.recsys_opt.tt_embedding_bag_backward_update.default(
        grad,
        indices,
        offsets,
        cores,
        update.states,
        *options,
        per_sample_weights,
        weights_grad,
        update.algorithm,
        update.hyperparameters,
    )
    return weights_grads if weights_grad else None


class EagerUpdatingLookup(torch.autograd.Function):
    """Cores and states are not saved as tensors whose version autograd checks: the lookups of one backward
    pass update them one after the other."""

    boxed_grads_call = False  # torch asks for it; where it is missing, by way of an AttributeError

    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        bags: tuple[Tensor, Tensor | None, bool],
        cores: Sequence[Tensor],
        tables: Sequence[int],
        per_sample_weights: Tensor | None,
        update: TTUpdate,
    ) -> Tensor:
        """Looks up, and keeps what the backward pass can use."""
        result: Tensor
        result, ctx.kept = LOOK_UP(*bags, cores, tables, per_sample_weights, True)
        indices, offsets, include_last_offset = bags
        versions = [core._version for core in cores]
        weights_grad = per_sample_weights is not None and ctx.needs_input_grad[4]
        ctx.call = (include_last_offset, cores, versions, tables, weights_grad, update)
        ctx.save_for_backward(indices, offsets, per_sample_weights)
        return result

    @staticmethod
    @differentiated_once
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Updates the cores; the gradient of the per-sample weights."""
        indices, offsets, weights = ctx.saved_tensors  # raises where they have changed since
        include_last_offset, cores, versions, tables, weights_grad, update = ctx.call
        kept, ctx.kept = ctx.kept, None
        if kept is None:
            ids, bounds = bounds_of_bags(indices, offsets, include_last_offset)
            factors = None if weights is None else weights.reshape(-1)
            found = _update_cores(
                grad, (ids, bounds, cores), options_of(tables), factors, weights_grad, update
            )
        else:
            count_step(update)
            moved = versions != [core._version for core in cores]  # by another lookup's update
            found = _UPDATE(
                kept, grad, weights_grad, moved, update.states, update.algorithm, update.hyperparameters
            )
        torch.autograd.graph.increment_version(cores)
        return None, None, None, None, None if found is None else found.view_as(weights), None


@torch.library.custom_op("recsys_opt::tt_embedding_bag_updating", mutates_args=())
def _tt_embedding_bag_updating(
    anchor: Tensor,
    indices: Tensor,
    offsets: Tensor,
    cores: Sequence[Tensor],
    states: Sequence[Tensor],
    cores_per_table: Sequence[int],
    num_embeddings: Sequence[int],
    pooling_modes: Sequence[int],
    padding_idx: Sequence[int],
    per_sample_weights: Tensor | None,
    algorithm: int,
    hyperparameters: Tensor,
) -> Tensor:
    """tt_embedding_bag whose gradient updates the cores, for torch.compile."""
    options = (cores_per_table, num_embeddings, pooling_modes, padding_idx)
    result: Tensor = torch.ops.recsys_opt.tt_embedding_bag(
        indices, offsets, cores, *options, per_sample_weights
    )
    return result


@_tt_embedding_bag_updating.register_fake
def _(
    anchor: Tensor,
    indices: Tensor,
    offsets: Tensor,
    cores: list[Tensor],
    states: list[Tensor],
    cores_per_table: list[int],
    num_embeddings: list[int],
    pooling_modes: list[int],
    padding_idx: list[int],
    per_sample_weights: Tensor | None,
    algorithm: int,
    hyperparameters: Tensor,
) -> Tensor:
    options = (cores_per_table, num_embeddings, pooling_modes, padding_idx)
    return bag_shape(indices, offsets, cores, *options, per_sample_weights)


def _tt_updating_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, indices, offsets, cores, states, *options, weights, ctx.algorithm, hyperparameters = inputs
    ctx.options, ctx.count = options, len(cores)
    ctx.save_for_backward(indices, offsets, weights, hyperparameters, *cores, *states)


def _tt_updating_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    indices, offsets, weights, hyperparameters, *rest = ctx.saved_tensors
    update = TTUpdate(ctx.algorithm, rest[ctx.count :], hyperparameters)
    batch = (indices, offsets, rest[: ctx.count])
    weights = _update_cores(grad, batch, ctx.options, weights, ctx.needs_input_grad[9], update)
    nothing = [None] * ctx.count, [None] * (len(rest) - ctx.count)
    return None, None, None, *nothing, None, None, None, None, weights, None, None


_tt_embedding_bag_updating.register_autograd(_tt_updating_backward, setup_context=_tt_updating_setup)


@fake("recsys_opt::tt_embedding_bag_backward_update")
def _(
    grad: Tensor,
    indices: Tensor,
    offsets: Tensor,
    cores: list[Tensor],
    states: list[Tensor],
    cores_per_table: list[int],
    num_embeddings: list[int],
    pooling_modes: list[int],
    padding_idx: list[int],
    per_sample_weights: Tensor | None,
    weights_grad: bool,
    algorithm: int,
    hyperparameters: Tensor,
) -> Tensor:
    return grad.new_empty(indices.shape[0] if weights_grad else 0)
