"""Readable torch versions of the ops of `recsys_opt.ops.hot_rows`: what tests hold them to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from recsys_opt.ops.hot_rows import COLD, ID_BITS, PADDING


def _bounds(count: int, tables: int, offsets: Tensor | None) -> tuple[list[int], int]:
    """Where each bag begins and the last ends, and the bags of a table."""
    bounds = list(range(count + 1)) if offsets is None else [int(k) for k in offsets]
    return bounds, (len(bounds) - 1) // tables


def split(
    indices: Tensor,
    offsets: Tensor | None,
    keys: Sequence[Tensor],
    num_embeddings: Sequence[int],
    padding_idx: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """slots, cold_indices, cold_offsets and cold_positions; see `ops.hot_rows_split`."""
    bounds, batch = _bounds(indices.numel(), len(keys), offsets)
    slots, cold, cold_offsets = [], [], [0]
    for bag in range(len(bounds) - 1):
        t = bag // batch
        slot_of = {int(key): slot for slot, key in enumerate(keys[t]) if key >= 0}
        for k in range(bounds[bag], bounds[bag + 1]):
            id_ = int(indices[k])
            assert 0 <= id_ < num_embeddings[t]
            slots.append(PADDING if id_ == padding_idx[t] else slot_of.get(id_, COLD))
            if slots[-1] == COLD:
                cold.append(k)
        cold_offsets.append(len(cold))
    slots += [PADDING] * (indices.numel() - bounds[-1])  # of no bag
    positions = torch.zeros(indices.numel(), dtype=torch.int64)
    positions[: len(cold)] = torch.tensor(cold, dtype=torch.int64)
    cold_indices = torch.zeros_like(indices)
    cold_indices[: len(cold)] = indices[positions[: len(cold)]]
    return torch.tensor(slots, dtype=torch.int32), cold_indices, torch.tensor(cold_offsets), positions


def _logical_shift(x: Tensor, bits: int) -> Tensor:
    """x as an unsigned number, shifted right."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser (Steele, Lea, Flood 2014) of int64 numbers taken as unsigned ones."""
    x = (x ^ _logical_shift(x, 30)) * (0xBF58476D1CE4E5B9 - (1 << 64))
    x = (x ^ _logical_shift(x, 27)) * (0x94D049BB133111EB - (1 << 64))
    return x ^ _logical_shift(x, 31)


def counters(ids: Tensor, width: int) -> Tensor:
    """[2, N] the counters of ids in the two rows of a sketch (Cormode and Muthukrishnan 2005), flattened."""
    h = mix(ids)
    return torch.stack([h & (width - 1), width + (_logical_shift(h, 32) & (width - 1))])


def estimate(ids: Tensor, counts: Tensor) -> Tensor:
    """[N] the counts of ids: the smaller counter of a sketch [2, W], never too low; exact for [1, rows]."""
    if counts.shape[0] == 1:
        return counts[0][ids]
    return counts.flatten()[counters(ids, counts.shape[1])].amin(0)


def candidate_cells(ids: Tensor, cells: int) -> Tensor:
    """[2, N] the cells that an id may take among the candidates."""
    g = mix(mix(ids))
    return torch.stack([g & (cells - 1), _logical_shift(g, 32) & (cells - 1)])


def _count_up(counters: Tensor, places: Tensor) -> None:
    """Adds 1 for every place, up to the largest number that a counter holds."""
    sums = counters.long().index_add_(0, places, torch.ones_like(places))
    counters.copy_(sums.clamp_(max=torch.iinfo(counters.dtype).max))


def count_(
    hot_counts: Sequence[Tensor],
    counts: Sequence[Tensor],
    candidates: Sequence[Tensor],
    indices: Tensor,
    slots: Tensor,
    offsets: Tensor | None,
    stride: int = 1,
    phase: int = 0,
) -> None:
    """Counts hot lookups by slot and cold ones by sketch; then every cold id stands as a candidate.

    Counts of hot rows are exact and leave the sketch to the others (Roy, Khan, Alonso 2016, "Augmented
    sketch"). A cell of the candidates keeps the id with the largest estimate: a maximum of numbers, which the
    order of the lookups does not change.
    """
    bounds, batch = _bounds(indices.numel(), len(counts), offsets)
    cold = []
    for t in range(len(counts)):
        part = slice(bounds[t * batch] + phase, bounds[(t + 1) * batch], stride)
        ids, own = indices[part].long(), slots[part].long()
        hits = own[own >= 0]
        _count_up(hot_counts[t], hits)
        ids = ids[own == COLD]
        cold.append(ids)
        exact = counts[t].shape[0] == 1
        places = ids if exact else counters(ids, counts[t].shape[1]).flatten()
        _count_up(counts[t].view(-1), places)
    for t, ids in enumerate(cold):
        if not candidates[t].numel():
            continue
        values = (estimate(ids, counts[t]).long().clamp(max=(1 << (63 - ID_BITS)) - 1) << ID_BITS) | (ids + 1)
        for cell in candidate_cells(ids, candidates[t].numel()):
            candidates[t].scatter_reduce_(0, cell, values, "amax")


def bag(
    base: Tensor,
    weights: Sequence[Tensor],
    slots: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    mean: Sequence[bool],
) -> Tensor:
    """base + the sum of each bag's hot rows, over the number of its ids where a table averages."""
    bounds, batch = _bounds(slots.numel(), len(weights), offsets)
    lengths = torch.tensor(bounds).diff()
    outputs, first = [], 0
    for t, weight in enumerate(weights):
        part = slice(bounds[t * batch], bounds[(t + 1) * batch])
        own = slots[part].long()
        bags = torch.repeat_interleave(torch.arange(batch), lengths[t * batch : (t + 1) * batch])
        hit = own >= 0
        rows = weight[own[hit]]
        if per_sample_weights is not None:
            rows = rows * per_sample_weights[part][hit, None]
        pooled = base[:, first : first + weight.shape[1]].index_add(0, bags[hit], rows)
        if mean[t]:
            counted = torch.bincount(bags[own != PADDING], minlength=batch)
            pooled = pooled / counted.clamp(min=1)[:, None]
        outputs.append(pooled)
        first += weight.shape[1]
    return torch.cat(outputs, dim=1)
