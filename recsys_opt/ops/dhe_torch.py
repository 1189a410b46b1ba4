"""Deep hash embeddings on a device without a kernel for the whole lookup, that is, CUDA.

The encoding is a kernel of this library, products and sums are torch's. Every id is computed: how many are
distinct would have to be waited for.
"""

from __future__ import annotations

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
    ids: Tensor, hashes: Tensor, num_embeddings: int, prime: int, buckets: int, encoding: int, like: Tensor
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

    first: int
    last: int
    ids: Tensor
    """[n] int64."""
    bag: Tensor
    """[n] the bag of each, from 0."""
    bounds: Tensor | None
    """[B + 1] where bags begin among them; None: one id per bag."""
    factors: Tensor
    """[n] of the rows, 0 for the padding id."""
    keeps: Tensor
    """[n] whether the id counts."""
    hashes: Tensor
    numbers: Sequence[int]
    weights: Sequence[Tensor]
    biases: Sequence[Tensor]

    def encode(self, like: Tensor) -> Tensor:
        _, rows, prime, buckets, encoding, _, _ = self.numbers
        return dhe_encode(
            self.ids,
            self.hashes,
            num_embeddings=rows,
            prime=prime,
            buckets=buckets,
            encoding=encoding,
            like=like,
        )


def _lookups(
    indices: Tensor,
    offsets: Tensor | None,
    hashes: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    tables: Sequence[int],
    factors: Tensor | None,
) -> Iterator[_Lookups]:
    count = len(hashes)
    batch = (indices.shape[0] if offsets is None else offsets.shape[0] - 1) // count
    starts = [t * batch for t in range(count + 1)]
    if offsets is not None:
        starts = offsets[:: max(batch, 1)].tolist() if batch else [0] * (count + 1)
    all_weights, all_biases = layers_of(weights, tables), layers_of(biases, tables)
    for t in range(count):
        first, last = starts[t], starts[t + 1]
        numbers = tables[TABLE_NUMBERS * t : TABLE_NUMBERS * (t + 1)]
        ids, bounds = indices[first:last].long(), None
        bag = torch.arange(batch, device=ids.device)
        if offsets is not None:
            bounds = offsets[t * batch : (t + 1) * batch + 1] - first
            bag = torch.repeat_interleave(bag, bounds.diff(), output_size=last - first)
        keeps = ids != numbers[6]
        own = keeps.to(weights[0].dtype) if factors is None else factors[first:last] * keeps
        if numbers[5] == 1:
            own = own / own.new_zeros(batch).index_add(0, bag, own).clamp(min=1)[bag]
        yield _Lookups(
            first, last, ids, bag, bounds, own, keeps, hashes[t], numbers, all_weights[t], all_biases[t]
        )


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
    kept: list[Tensor] = []
    pooled = []
    for own in _lookups(indices, offsets, hashes, weights, biases, tables, per_sample_weights):
        x, outputs = own.encode(weights[0]), []
        for layer, (weight, bias) in enumerate(zip(own.weights, own.biases, strict=True)):
            x = torch.addmm(bias, x.relu() if layer else x, weight)
            outputs.append(x)
        kept.append(torch.cat(outputs, dim=1))
        if own.bounds is None:
            pooled.append(x * own.factors[:, None])
        else:
            order = torch.arange(x.shape[0], device=x.device)
            pooled.append(
                F.embedding_bag(
                    order,
                    x,
                    own.bounds,
                    mode="sum",
                    per_sample_weights=own.factors,
                    include_last_offset=True,
                )
            )
    out = torch.cat(pooled, dim=1)
    widest = max(hidden.shape[1] for hidden in kept)
    nothing = [indices.new_empty(0, dtype=dtype) for dtype in (torch.int64, torch.int32, torch.int64)]
    if not keep:
        return out, nothing[0], nothing[1], nothing[2], out.new_empty(0, widest)
    hidden = out.new_zeros(indices.shape[0], widest)
    first = 0
    for part in kept:
        hidden[first : first + part.shape[0], : part.shape[1]] = part
        first += part.shape[0]
    size = indices.shape[0]
    distinct = indices.to(torch.int64, copy=True)
    slots = torch.zeros(size, dtype=torch.int32, device=indices.device)
    counts = torch.tensor([part.shape[0] for part in kept], device=indices.device)
    return out, distinct, slots, counts, hidden


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
    weight_grads: list[Tensor] = []
    bias_grads: list[Tensor] = []
    factor_grads = grad.new_zeros(indices.shape[0] if factors_grad else 0)
    column = 0
    for own in _lookups(indices, offsets, hashes, weights, biases, tables, per_sample_weights):
        widths = [bias.shape[0] for bias in own.biases]
        outputs = hidden[own.first : own.last, : sum(widths)].split(widths, dim=1)
        of_bag = grad[own.bag, column : column + widths[-1]]
        column += widths[-1]
        if factors_grad:
            factor_grads[own.first : own.last] = (of_bag * outputs[-1]).sum(1) * own.keeps
        g = of_bag * own.factors[:, None]
        grads: list[tuple[Tensor, Tensor]] = []
        for layer in range(len(widths) - 1, -1, -1):
            x = outputs[layer - 1].relu() if layer else own.encode(grad)
            grads.insert(0, (x.t() @ g, g.sum(0)))
            if layer:
                g = (g @ own.weights[layer].t()) * (outputs[layer - 1] > 0)
        weight_grads += [weight for weight, _ in grads]
        bias_grads += [bias for _, bias in grads]
    return [*weight_grads, *bias_grads, *([factor_grads] if factors_grad else [])]
