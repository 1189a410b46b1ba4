"""The native ops of rows held dense beside a tensor train: shapes (fake kernels) and gradients.

`recsys_opt.reference_hot_rows` says in plain torch what each op computes. Nothing here waits for the device.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from recsys_opt.ops.library import fake

COLD = -1
"""In `slots`: the row is not held."""
PADDING = -2
"""In `slots`: the id counts for nothing."""
ID_BITS = 40
"""Lower bits of a candidate, which hold its id + 1; the count is above them."""


def hot_rows_split(
    indices: Tensor,
    offsets: Tensor | None,
    keys: Sequence[Tensor],
    directories: Sequence[Tensor],
    num_embeddings: Sequence[int],
    padding_idx: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Divides the lookups of T tables into hot and cold ones; `reference_hot_rows.split` says how.

    indices         [N] int32 or int64 ids, feature-major
    offsets         [T * B + 1] int64; ids after the last are of no bag; None: one id per bag
    keys            T x [K_t] int64, the id of each slot; -1: none
    directories     T x [C_t] int32, made by `hot_rows_directory_`
    num_embeddings  T numbers; ids are below them
    padding_idx     T ids that count for nothing; -1 for none
    returns         slots [N] int32: the slot of each lookup, COLD or PADDING;
                    cold_indices [N], cold_offsets [T * B + 1]: the cold lookups as bags, filled up with 0;
                    cold_positions [N] int64: where the cold ones were, filled up with 0
    """
    result: tuple[Tensor, Tensor, Tensor, Tensor] = torch.ops.recsys_opt.hot_rows_split(
        indices, offsets, list(keys), list(directories), list(num_embeddings), list(padding_idx)
    )
    return result


@fake("recsys_opt::hot_rows_split")
def _(
    indices: Tensor,
    offsets: Tensor | None,
    keys: list[Tensor],
    directories: list[Tensor],
    num_embeddings: list[int],
    padding_idx: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    count = indices.shape[0]
    bounds = count + 1 if offsets is None else offsets.shape[0]
    return (
        indices.new_empty(count, dtype=torch.int32),
        indices.new_empty(count),
        indices.new_empty(bounds, dtype=torch.int64),
        indices.new_empty(count, dtype=torch.int64),
    )


def hot_rows_directory_(directory: Tensor, keys: Tensor) -> None:
    """Makes the hash table in which `hot_rows_split` finds the slots of `keys`.

    directory  [C] int32, a power of two long, longer than keys; overwritten
    keys       [K] int64, all different but for -1, which stands for an empty slot
    """
    torch.ops.recsys_opt.hot_rows_directory_(directory, keys)


@fake("recsys_opt::hot_rows_directory_")
def _(directory: Tensor, keys: Tensor) -> None:
    return None


def hot_rows_count_(
    hot_counts: Sequence[Tensor],
    counts: Sequence[Tensor],
    candidates: Sequence[Tensor],
    indices: Tensor,
    slots: Tensor,
    offsets: Tensor | None,
    num_embeddings: Sequence[int],
    stride: int = 1,
    phase: int = 0,
) -> None:
    """Counts lookups in bounded memory; `reference_hot_rows.count_` says how.

    hot_counts  T x [K_t] int32, of the slots
    counts      T x [2, W_t] int32, a count-min sketch of the cold ids; or [1, num_embeddings] exact counts
    candidates  T x [C_t] int64, frequent cold ids with their estimated counts; or [0] with exact counts
    indices     [N], slots [N], offsets [T * B + 1]: as in and from `hot_rows_split`
    stride      of each table's lookups only phase, phase + stride, ... are counted
    """
    torch.ops.recsys_opt.hot_rows_count_(
        list(hot_counts),
        list(counts),
        list(candidates),
        indices,
        slots,
        offsets,
        list(num_embeddings),
        stride,
        phase,
    )


@fake("recsys_opt::hot_rows_count_")
def _(
    hot_counts: list[Tensor],
    counts: list[Tensor],
    candidates: list[Tensor],
    indices: Tensor,
    slots: Tensor,
    offsets: Tensor | None,
    num_embeddings: list[int],
    stride: int,
    phase: int,
) -> None:
    return None


def hot_rows_bag(
    base: Tensor,
    weights: Sequence[Tensor],
    slots: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    mean: Sequence[bool],
) -> Tensor:
    """Adds the hot rows of each bag to `base`; `reference_hot_rows.bag` says what it computes.

    base                [B, sum D_t] the sums of the cold rows
    weights             T x [K_t, D_t] the hot rows; their gradients are sparse, one entry per looked-up slot
                        on the CPU and, where no size may depend on the ids, K_t entries on CUDA: those beyond
                        the looked-up slots add 0 to one of them (to slot 0 where there is none)
    slots               [N] int32 of `hot_rows_split`
    offsets             [T * B + 1] int64 of all lookups; None: one id per bag
    per_sample_weights  [N] factors of the rows; sum pooling only
    mean                T flags: divide by the number of ids in the bag, hot and cold, without padding
    returns             [B, sum D_t]
    """
    flags = [int(m) for m in mean]
    wanted = any(t is not None and t.requires_grad for t in (base, per_sample_weights, *weights))
    if torch.compiler.is_compiling() or not (wanted and torch.is_grad_enabled()):
        result: Tensor = torch.ops.recsys_opt.hot_rows_bag(
            base, list(weights), slots, offsets, per_sample_weights, flags
        )
        return result
    # The registered gradient with less bookkeeping in Python, as for tt_embedding_bag.
    apply: Callable[..., Tensor] = _HotRowsBag.apply
    return apply(base, slots, offsets, per_sample_weights, flags, *weights)


# The sparse gradients as one op, so that torch.compile has nothing to look into.
torch.library.define(
    "recsys_opt::hot_rows_bag_weight_gradients",
    "(Tensor grad, Tensor[] weights, Tensor slots, Tensor? offsets, Tensor? per_sample_weights, int[] mean)"
    " -> Tensor[]",
)


def _weight_gradients(
    grad: Tensor,
    weights: list[Tensor],
    slots: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    mean: list[int],
) -> list[Tensor]:
    found = torch.ops.recsys_opt.hot_rows_bag_row_gradients(
        grad, weights, slots, offsets, per_sample_weights, mean
    )
    return [
        torch.sparse_coo_tensor(ids.unsqueeze(0), rows, weight.shape, check_invariants=False)
        for weight, ids, rows in zip(weights, found[::2], found[1::2], strict=True)
    ]


def _weight_gradients_by_atomics(*arguments: Any) -> list[Tensor]:
    if torch.are_deterministic_algorithms_enabled():
        message = (
            "the gradients of held rows are added by atomics on CUDA: rows that several lookups share differ "
            "in the last bits from run to run; deterministic are TTEmbeddingBag, and the CPU"
        )
        if not torch.is_deterministic_algorithms_warn_only_enabled():
            raise RuntimeError(f"{message}; or torch.use_deterministic_algorithms(True, warn_only=True)")
        warnings.warn(message, stacklevel=2)
    return _weight_gradients(*arguments)


torch.library.impl("recsys_opt::hot_rows_bag_weight_gradients", "CPU", _weight_gradients)
torch.library.impl("recsys_opt::hot_rows_bag_weight_gradients", "CUDA", _weight_gradients_by_atomics)


@fake("recsys_opt::hot_rows_bag")
def _(
    base: Tensor,
    weights: list[Tensor],
    slots: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    mean: list[int],
) -> Tensor:
    return base.new_empty(base.shape)


@fake("recsys_opt::hot_rows_bag_weight_gradients")
def _(
    grad: Tensor,
    weights: list[Tensor],
    slots: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    mean: list[int],
) -> list[Tensor]:
    ids = torch.empty(1, 0, dtype=torch.int64, device=grad.device)
    return [
        torch.sparse_coo_tensor(ids, grad.new_empty(0, w.shape[1]), w.shape, check_invariants=False)
        for w in weights
    ]


@fake("recsys_opt::hot_rows_bag_base_gradient")
def _(grad: Tensor, weights: list[Tensor], slots: Tensor, offsets: Tensor | None, mean: list[int]) -> Tensor:
    return grad.new_empty(grad.shape)


@fake("recsys_opt::hot_rows_bag_factor_gradients")
def _(grad: Tensor, weights: list[Tensor], slots: Tensor, offsets: Tensor | None) -> Tensor:
    return grad.new_empty(slots.shape[0])


def _gradients(
    ctx: Any, grad: Tensor, want_base: bool, want_weights: bool, want_factors: bool
) -> tuple[Tensor | None, list[Any], Tensor | None]:
    slots, offsets, factors, *weights = ctx.saved_tensors
    ops, mean = torch.ops.recsys_opt, ctx.mean
    base_grad, factor_grad = grad if want_base else None, None
    weight_grads: list[Any] = [None] * len(weights)
    if want_base and any(mean):
        base_grad = ops.hot_rows_bag_base_gradient(grad, weights, slots, offsets, mean)
    if want_weights:
        weight_grads = ops.hot_rows_bag_weight_gradients(grad, weights, slots, offsets, factors, mean)
    if want_factors:
        factor_grad = ops.hot_rows_bag_factor_gradients(grad, weights, slots, offsets)
    return base_grad, weight_grads, factor_grad


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, weights, slots, offsets, factors, ctx.mean = inputs
    ctx.save_for_backward(slots, offsets, factors, *weights)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    needs = ctx.needs_input_grad
    base, weights, factors = _gradients(ctx, grad, needs[0], any(needs[1]), needs[4])
    return base, weights, None, None, factors, None


torch.library.register_autograd("recsys_opt::hot_rows_bag", _backward, setup_context=_setup_context)


class _HotRowsBag(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        base: Tensor,
        slots: Tensor,
        offsets: Tensor | None,
        per_sample_weights: Tensor | None,
        mean: list[int],
        *weights: Tensor,
    ) -> Tensor:
        ctx.mean = mean
        ctx.save_for_backward(slots, offsets, per_sample_weights, *weights)
        result: Tensor = torch.ops.recsys_opt.hot_rows_bag(
            base, list(weights), slots, offsets, per_sample_weights, mean
        )
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        needs = ctx.needs_input_grad
        base, weights, factors = _gradients(ctx, grad, needs[0], any(needs[5:]), needs[3])
        return base, None, None, factors, None, *weights
