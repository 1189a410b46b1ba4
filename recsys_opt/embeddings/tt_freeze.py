"""Serving levels of a tensor-train table: which products of cores are made beforehand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from recsys_opt.embeddings.frozen import FrozenEmbeddingBag
from recsys_opt.embeddings.prefix import FrozenPrefixBag
from recsys_opt.errors import InputError

if TYPE_CHECKING:
    from recsys_opt.embeddings.tt import TTEmbeddingBag

Level = Literal["cores", "prefix", "dense"]
LEVELS: tuple[Level, ...] = ("cores", "prefix", "dense")


@torch.no_grad()
def frozen(
    bag: TTEmbeddingBag, level: Level, dtype: torch.dtype | None, max_bytes: int | None
) -> TTEmbeddingBag | FrozenPrefixBag | FrozenEmbeddingBag:
    """What `TTEmbeddingBag.freeze` returns."""
    if level not in LEVELS:
        raise InputError(f"level = {level!r}; choose 'cores', 'prefix' or 'dense'")
    cores = list(bag.cores)
    dtype = cores[0].dtype if dtype is None else dtype
    if not dtype.is_floating_point:
        raise InputError(f"dtype = {dtype}; it must be a floating-point type")
    if level == "dense":
        table = torch.empty(bag.num_embeddings, bag.embedding_dim, dtype=dtype, device=cores[0].device)
        return FrozenEmbeddingBag.of_rows(
            bag.materialize(out=table),
            mode=bag.mode,
            padding_idx=bag.padding_idx,
            include_last_offset=bag.include_last_offset,
        )
    if level == "prefix":
        cores = merged_cores(cores, max_bytes)
        if len(cores) == 2:
            return FrozenPrefixBag.of_cores(
                cores,
                dtype,
                num_embeddings=bag.num_embeddings,
                embedding_dim=bag.embedding_dim,
                mode=bag.mode,
                padding_idx=bag.padding_idx,
                include_last_offset=bag.include_last_offset,
            ).eval()
    copies = [core.detach().to(dtype, copy=True) for core in cores]
    return bag.with_cores(copies, requires_grad=False).eval()


def merged_cores(cores: Sequence[Tensor], max_bytes: int | None) -> list[Tensor]:
    """The cores with neighbours multiplied: least work per lookup within `max_bytes`, then least bytes.

    Of three cores the first two become one as a rule, of four the first three; a limit chooses less.
    """
    if len(cores) == 2:
        raise InputError("the product of a table's only two cores is the table: use 'dense' or 'cores'")
    shapes = [tuple(core.shape) for core in cores]
    size = cores[0].element_size()
    options = sorted(
        (_flops(shape), size * sum(math.prod(s) for s in shape), groups)
        for groups in _groupings(len(cores))
        for shape in [_merged_shapes(shapes, groups)]
    )
    fitting = [groups for _, total, groups in options if max_bytes is None or total <= max_bytes]
    if not fitting:
        least = min(total for _, total, _ in options)
        raise InputError(
            f"max_bytes = {max_bytes:,}; with any two cores multiplied this table takes {least:,} bytes or "
            "more: raise the limit, or use 'cores'"
        )
    merged = []
    for first, stop in fitting[0]:
        core = cores[first]
        for other in cores[first + 1 : stop]:
            both = torch.einsum("iars,jbst->ijabrt", core, other)
            core = both.flatten(2, 3).flatten(0, 1)
        merged.append(core)
    return merged


def _groupings(cores: int) -> Iterator[list[tuple[int, int]]]:
    """The ways to put neighbours together into at least two groups, with at least one group of several."""
    for cuts in range(1, 2 ** (cores - 1) - 1):
        bounds = [0, *(k + 1 for k in range(cores - 1) if cuts >> k & 1), cores]
        yield list(itertools.pairwise(bounds))


def _merged_shapes(
    shapes: Sequence[tuple[int, ...]], groups: Sequence[tuple[int, int]]
) -> list[tuple[int, int, int, int]]:
    return [
        (
            math.prod(s[0] for s in shapes[first:stop]),
            math.prod(s[1] for s in shapes[first:stop]),
            shapes[first][2],
            shapes[stop - 1][3],
        )
        for first, stop in groups
    ]


def _flops(shapes: Sequence[tuple[int, int, int, int]]) -> int:
    """Of one row's chain of products, from the left."""
    flops, columns = 0, shapes[0][1]
    for _, q, left, right in shapes[1:]:
        flops += 2 * columns * left * q * right
        columns *= q
    return flops
