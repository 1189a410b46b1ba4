"""Deep hash embeddings on a device without a kernel for the whole lookup, that is, CUDA.

The encoding is a kernel of this library, products and sums are torch's. As on the CPU each distinct id of a
batch is computed once; the host waits for how many there are.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from recsys_opt.ops.library import fake

TABLE_NUMBERS = 7
"""Numbers of a table in `tables`: layers, num_embeddings, prime, buckets, encoding, pooling, padding_idx."""
DHE_ENCODINGS = {"uniform": 0, "gaussian": 1}
"""What the ops call them."""


def dhe_encode(
    ids: Tensor, hashes: Tensor, *, num_embeddings: int, prime: int, buckets: int, encoding: int, like: Tensor
) -> Tensor:
    """The encodings of ids, made in one kernel from their hashes; `reference.dhe_encode` defines them.

    ids       [N] int64 ids below `num_embeddings`
    hashes    [2, k] int64: a and b of h(x) = ((a x + b) mod prime) mod buckets
    encoding  0 uniform in [-1, 1]; 1 standard normal, from pairs of hashes
    like      a float32 or float64 tensor: the result's type
    returns   [N, k]
    """
    result: Tensor = torch.ops.recsys_opt.dhe_encode(
        ids, hashes, num_embeddings, prime, buckets, encoding, like
    )
    return result


@fake("recsys_opt::dhe_encode")
def _(
    ids: Tensor,
    hashes: Tensor,
    num_embeddings: int,
    prime: int,
    buckets: int,
    encoding: int,
    like: Tensor,
    positions: Tensor | None = None,
    table: int = 0,
) -> Tensor:
    return like.new_empty(ids.shape[0], hashes.shape[1])


def layers_of(tensors: Sequence[Tensor], tables: Sequence[int]) -> list[Sequence[Tensor]]:
    """The layers' tensors, table by table."""
    found, first = [], 0
    for count in tables[::TABLE_NUMBERS]:
        found.append(tensors[first : first + count])
        first += count
    return found


@dataclass
class _Lookups:
    """One table of a call and its lookups."""

    number: int
    first: int
    last: int
    bag: Tensor
    """[n] the bag of each, from 0."""
    bounds: Tensor
    """[B + 1] where bags begin among them."""
    factors: Tensor
    """[n] of the rows, 0 for those that do not count."""
    keeps: Tensor
    """[n] whether the id counts: it is in range, and not the padding."""
    hashes: Tensor
    numbers: Sequence[int]
    weights: Sequence[Tensor]
    biases: Sequence[Tensor]

    def encode(self, ids: Tensor, positions: Tensor, like: Tensor) -> Tensor:
        """The encodings of ids, which stand at `positions` of the call: an error says so."""
        _, rows, prime, buckets, encoding, _, _ = self.numbers
        result: Tensor = torch.ops.recsys_opt.dhe_encode(
            ids, self.hashes, rows, prime, buckets, encoding, like, positions, self.number
        )
        return result


def _starts(indices: Tensor, offsets: Tensor | None, count: int) -> Tensor:
    """Where the tables' lookups begin, [T + 1] int64 on the device."""
    if offsets is None:
        batch = indices.shape[0] // count
        return torch.arange(count + 1, device=indices.device) * batch
    batch = (offsets.shape[0] - 1) // count
    return offsets[::batch] if batch else offsets.new_zeros(count + 1)


def _lookups(
    indices: Tensor,
    offsets: Tensor | None,
    starts: Sequence[int],
    hashes: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    tables: Sequence[int],
    factors: Tensor | None,
) -> Iterator[_Lookups]:
    count = len(hashes)
    batch = (indices.shape[0] if offsets is None else offsets.shape[0] - 1) // count
    all_weights, all_biases = layers_of(weights, tables), layers_of(biases, tables)
    one_each = torch.arange(batch + 1, device=indices.device)
    for t in range(count):
        first, last = starts[t], starts[t + 1]
        numbers = tables[TABLE_NUMBERS * t : TABLE_NUMBERS * (t + 1)]
        ids, bounds, bag = indices[first:last], one_each, one_each[:-1]
        if offsets is not None:
            bounds = offsets[t * batch : (t + 1) * batch + 1] - first
            bag = torch.repeat_interleave(bag, bounds.diff(), output_size=last - first)
        keeps = (ids != numbers[6]) & (ids >= 0) & (ids < numbers[1])
        own = keeps.to(weights[0].dtype) if factors is None else factors[first:last] * keeps
        if numbers[5] == 1:
            own = own / own.new_zeros(batch).index_add(0, bag, own).clamp(min=1)[bag]
        yield _Lookups(
            t, first, last, bag, bounds, own, keeps, hashes[t], numbers, all_weights[t], all_biases[t]
        )


def _distinct(indices: Tensor, starts: Tensor, rows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Each table's distinct ids.

    indices  [N], those of table t from starts[t] on
    returns  [U] where in `indices` they stand, table after table; [N] the number of each id's in that order;
             [T] int64 how many there are of each table

    Ids out of range count as at most two different ones of their table.
    """
    device, count = indices.device, len(rows)
    table = torch.repeat_interleave(
        torch.arange(count, device=device), starts.diff(), output_size=indices.shape[0]
    )
    # A table's ids, and before and behind them one place for those out of range.
    begin = torch.tensor([0, *itertools.accumulate(n + 2 for n in rows)], device=device)
    last = begin.diff()[table] - 2
    places = 1 + torch.minimum(indices.long().clamp(min=-1), last)
    keys, inverse = torch.unique(begin[table] + places, return_inverse=True)
    positions = torch.zeros_like(keys).scatter_(0, inverse, torch.arange(indices.shape[0], device=device))
    bounds = torch.searchsorted(keys, begin)
    return positions, inverse, bounds.diff()


def forward_by_torch(
    indices: Tensor,
    offsets: Tensor | None,
    hashes: list[Tensor],
    weights: list[Tensor],
    biases: list[Tensor],
    tables: list[int],
    per_sample_weights: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`recsys_opt::dhe_embedding_bag`."""
    begin = _starts(indices, offsets, len(hashes))
    positions, slots, counts = _distinct(indices, begin, tables[1::TABLE_NUMBERS])
    starts, sizes = torch.stack([begin, F.pad(counts, (0, 1))]).tolist()
    hidden: list[Tensor] = []
    pooled = []
    done = 0
    for own in _lookups(indices, offsets, starts, hashes, weights, biases, tables, per_sample_weights):
        mine = positions[done : done + sizes[own.number]]
        x, outputs = own.encode(indices[mine].long(), mine, weights[0]), []
        for layer, (weight, bias) in enumerate(zip(own.weights, own.biases, strict=True)):
            x = torch.addmm(bias, x.relu() if layer else x, weight)
            outputs.append(x)
        hidden.append(torch.cat(outputs, dim=1))
        of_table = slots[own.first : own.last] - done
        pooled.append(_pool(x, of_table, own.bounds, own.factors))
        done += sizes[own.number]
    out = torch.cat(pooled, dim=1)
    widest = max(part.shape[1] for part in hidden)
    if not keep:
        nothing = [indices.new_empty(0, dtype=dtype) for dtype in (torch.int64, torch.int32, torch.int64)]
        return out, nothing[0], nothing[1], nothing[2], out.new_empty(0, widest)
    kept = out.new_zeros(indices.shape[0], widest)
    at = indices.new_zeros(indices.shape[0], dtype=torch.int64)
    at[:done] = positions
    first = 0
    for part in hidden:
        kept[first : first + part.shape[0], : part.shape[1]] = part
        first += part.shape[0]
    return out, at, slots.to(torch.int32), counts, kept


def _pool(rows: Tensor, numbers: Tensor, bounds: Tensor, factors: Tensor) -> Tensor:
    """Sums of rows[numbers] * factors, from bound to bound: without atomics, the same in every run."""
    return F.embedding_bag(
        numbers, rows, bounds, mode="sum", per_sample_weights=factors, include_last_offset=True
    )


def backward_by_torch(
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
    """`recsys_opt::dhe_embedding_bag_backward`, of what `forward_by_torch` has kept."""
    begin = _starts(indices, offsets, len(hashes))
    starts, sizes = torch.stack([begin, F.pad(counts, (0, 1))]).tolist()
    weight_grads: list[Tensor] = []
    bias_grads: list[Tensor] = []
    factor_grads = grad.new_zeros(indices.shape[0] if factors_grad else 0)
    column = done = 0
    for own in _lookups(indices, offsets, starts, hashes, weights, biases, tables, per_sample_weights):
        size, widths = sizes[own.number], [bias.shape[0] for bias in own.biases]
        outputs = hidden[done : done + size, : sum(widths)].split(widths, dim=1)
        upstream = grad[:, column : column + widths[-1]].contiguous()
        of_table = slots[own.first : own.last].long() - done
        if factors_grad:
            products = (upstream[own.bag] * outputs[-1][of_table]).sum(1)
            factor_grads[own.first : own.last] = products * own.keeps
        # A distinct id's gradient is the sum of those of the bags that it is in.
        numbers, order = of_table.sort(stable=True)
        bounds = torch.searchsorted(numbers, torch.arange(size + 1, device=grad.device))
        g = _pool(upstream, own.bag[order], bounds, own.factors[order])
        mine = distinct[done : done + size]
        done, column = done + size, column + widths[-1]
        grads: list[tuple[Tensor, Tensor]] = []
        for layer in range(len(widths) - 1, -1, -1):
            x = outputs[layer - 1].relu() if layer else own.encode(indices[mine].long(), mine, grad)
            grads.insert(0, (x.t() @ g, g.sum(0)))
            if layer:
                g = (g @ own.weights[layer].t()) * (outputs[layer - 1] > 0)
        weight_grads += [weight for weight, _ in grads]
        bias_grads += [bias for _, bias in grads]
    return [*weight_grads, *bias_grads, *([factor_grads] if factors_grad else [])]
