"""Tables whose rows are in two tiers: lookups, shapes and gradients."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from recsys_opt.ops.library import eager_op, fake
from recsys_opt.ops.row_update import RowUpdate, UpdatingBag

_LOOK_UP = eager_op("tiered_bag")
_UPDATING = UpdatingBag("tiered_bag", rows=("hot", "cold"), others=("remaps",))


def tiered_bag(
    hot: Sequence[Tensor],
    cold: Sequence[Tensor],
    remaps: Sequence[Tensor],
    indices: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    mean: Sequence[bool],
) -> Tensor:
    """Lookup and pooling in many tables of two tiers; `reference_tiered.tiered_bag` says what it computes.

    The gradients of the tiers are sparse COO tensors with one entry per looked-up row of the tier, not
    coalesced, each on its tier's device.
    """
    flags = [int(m) for m in mean]
    output: Tensor
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        output = torch.ops.recsys_opt.tiered_bag(
            hot, cold, remaps, indices, offsets, per_sample_weights, flags
        )[0]
        return output
    with torch._C._AutoDispatchBelowAutograd():  # 10 us of bookkeeping less
        output = _LOOK_UP(hot, cold, remaps, indices, offsets, per_sample_weights, flags)[0]
    return output


def tiered_bag_updating(
    hot: Sequence[Tensor],
    cold: Sequence[Tensor],
    remaps: Sequence[Tensor],
    indices: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    mean: Sequence[bool],
    update: RowUpdate,
) -> Tensor:
    """`tiered_bag` whose backward pass updates the tables (`reference_tiered.tiered_bag_backward_update`)."""
    if not torch.is_grad_enabled():
        return tiered_bag(hot, cold, remaps, indices, offsets, per_sample_weights, mean)
    return _UPDATING((hot, cold), (remaps,), indices, offsets, per_sample_weights, mean, update)


def tiered_ask_ahead(
    hot: Sequence[Tensor],
    cold: Sequence[Tensor],
    remaps: Sequence[Tensor],
    cold_states: Sequence[Tensor],
    indices: Tensor,
    offsets: Tensor | None,
    mapped: Sequence[bool],
) -> None:
    """Asks the system for the pages of the cold rows that `tiered_bag` is to look up, and of their states.

    mapped  [T] whether a table's cold rows are in a memory-mapped file; others are left out

    It returns before they are there, and changes no number.
    """
    flags = [int(m) for m in mapped]
    torch.ops.recsys_opt.tiered_ask_ahead(hot, cold, remaps, cold_states, indices, offsets, flags)


@fake("recsys_opt::tiered_ask_ahead")
def _(
    hot: list[Tensor],
    cold: list[Tensor],
    remaps: list[Tensor],
    cold_states: list[Tensor],
    indices: Tensor,
    offsets: Tensor | None,
    mapped: list[int],
) -> None:
    return None


def position_dtype(rows: int) -> torch.dtype:
    """The type of a remap of so many rows, and of positions where the largest table has so many."""
    return torch.int32 if rows <= torch.iinfo(torch.int32).max else torch.int64


# The gradients as one op, so that torch.compile has nothing to look into: their sizes depend on the ids.
torch.library.define(
    "recsys_opt::tiered_bag_backward",
    "(Tensor grad, Tensor[] hot, Tensor[] cold, Tensor positions, Tensor? offsets, "
    "Tensor? per_sample_weights, int[] mean) -> Tensor[]",
)


def _tier_gradients(
    grad: Tensor,
    hot: list[Tensor],
    cold: list[Tensor],
    positions: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    mean: list[int],
) -> list[Tensor]:
    """Of the hot tiers, then of the cold ones."""
    batch = (positions.numel() if offsets is None else offsets.numel() - 1) // len(hot)
    if offsets is None:
        bounds = [t * batch for t in range(len(hot) + 1)]
    else:
        bounds = offsets[torch.arange(len(hot) + 1, device=offsets.device) * batch].tolist()
    rows = _row_gradients(grad, hot, bounds, positions, offsets, per_sample_weights, mean)
    grads: tuple[list[Tensor], list[Tensor]] = ([], [])
    for t, (start, stop) in enumerate(itertools.pairwise(bounds)):
        own, hot_rows = positions[start:stop].long(), hot[t].shape[0]
        in_hot = (own >= 0) & (own < hot_rows)  # below 0: an id out of range, on CUDA
        in_cold = own >= hot_rows
        for tier, here, base, made in ((hot[t], in_hot, 0, grads[0]), (cold[t], in_cold, hot_rows, grads[1])):
            ids = (own[here] - base).unsqueeze(0).to(tier.device)
            values = rows[t][here].to(tier.device)
            made.append(torch.sparse_coo_tensor(ids, values, tier.shape, check_invariants=False))
    return [*grads[0], *grads[1]]


def _row_gradients(
    grad: Tensor,
    hot: list[Tensor],
    bounds: list[int],
    positions: Tensor,
    offsets: Tensor | None,
    factors: Tensor | None,
    mean: list[int],
) -> list[Tensor]:
    """Of each table's lookups, [count, D]."""
    dims = [tier.shape[1] for tier in hot]
    counts = [stop - start for start, stop in itertools.pairwise(bounds)]
    if grad.device.type == "cpu":
        rows = torch.ops.recsys_opt.dense_bag_row_gradients(grad, hot, positions, offsets, factors, mean)
        parts = rows.split([count * dim for count, dim in zip(counts, dims, strict=True)])
        return [part.view(count, dim) for part, count, dim in zip(parts, counts, dims, strict=True)]
    made = []
    batch = grad.shape[0]
    for t, upstream in enumerate(grad.split(dims, dim=1)):
        if offsets is None:
            made.append(upstream if factors is None else upstream * factors[bounds[t] : bounds[t + 1], None])
            continue
        lengths = offsets[t * batch : (t + 1) * batch + 1].diff()
        if mean[t]:
            upstream = upstream / lengths.clamp(min=1).unsqueeze(1)
        rows = upstream.repeat_interleave(lengths, dim=0, output_size=counts[t])
        made.append(rows if factors is None else rows * factors[bounds[t] : bounds[t + 1], None])
    return made


for _device in ("CPU", "CUDA"):
    torch.library.impl("recsys_opt::tiered_bag_backward", _device, _tier_gradients)


@fake("recsys_opt::tiered_bag")
def _(
    hot: list[Tensor],
    cold: list[Tensor],
    remaps: list[Tensor],
    indices: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    mean: list[int],
) -> tuple[Tensor, Tensor]:
    bags = indices.shape[0] if offsets is None else offsets.shape[0] - 1
    rows = max(h.shape[0] + c.shape[0] for h, c in zip(hot, cold, strict=True))
    remapped = any(remap.numel() for remap in remaps)
    return (
        hot[0].new_empty(bags // len(hot), sum(h.shape[1] for h in hot)),
        indices.new_empty(indices.shape[0] if remapped else 0, dtype=position_dtype(rows)),
    )


@fake("recsys_opt::tiered_bag_backward")
def _(
    grad: Tensor,
    hot: list[Tensor],
    cold: list[Tensor],
    positions: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    mean: list[int],
) -> list[Tensor]:
    return [
        torch.sparse_coo_tensor(
            torch.empty(1, 0, dtype=torch.int64, device=tier.device),
            tier.new_empty(0, tier.shape[1]),
            tier.shape,
            check_invariants=False,
        )
        for tier in (*hot, *cold)
    ]


@fake("recsys_opt::tiered_bag_factor_gradients")
def _(
    grad: Tensor,
    hot: list[Tensor],
    cold: list[Tensor],
    positions: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor,
) -> Tensor:
    return grad.new_empty(positions.shape[0])


def _context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    hot, cold, remaps, indices, offsets, factors, ctx.mean = inputs
    ctx.tables, ctx.has_offsets, ctx.has_factors = len(hot), offsets is not None, factors is not None
    positions = output[1] if any(remap.numel() for remap in remaps) else indices
    ctx.save_for_backward(*hot, *cold, positions, *(t for t in (offsets, factors) if t is not None))


def _backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
    tables, saved = ctx.tables, ctx.saved_tensors
    hot, cold, (positions, *rest) = saved[:tables], saved[tables : 2 * tables], saved[2 * tables :]
    offsets = rest.pop(0) if ctx.has_offsets else None
    factors = rest.pop(0) if ctx.has_factors else None
    grads: Any = [None] * (2 * tables)
    factor_grad = None
    if any(ctx.needs_input_grad[0]) or any(ctx.needs_input_grad[1]):
        grads = torch.ops.recsys_opt.tiered_bag_backward(
            grad, hot, cold, positions, offsets, factors, ctx.mean
        )
    if ctx.needs_input_grad[5]:
        factor_grad = torch.ops.recsys_opt.tiered_bag_factor_gradients(
            grad, hot, cold, positions, offsets, factors
        )
    return grads[:tables], grads[tables:], [None] * tables, None, None, factor_grad, None


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


torch.library.register_autograd("recsys_opt::tiered_bag", _backward, setup_context=_context)
