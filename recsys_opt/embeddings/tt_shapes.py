"""Factors of a table's rows and columns for its tensor-train cores."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from recsys_opt.errors import InputError

MIN_CORES, MAX_CORES = 2, 4

# How far a row factor may lie from the d-th root of the number of rows. Wider: less waste, less balance.
_SPREAD = 0.1


def row_factors(num_embeddings: int, cores: int) -> tuple[int, ...]:
    """Near-balanced factors whose product is at least `num_embeddings`, with few rows to spare.

    Among factors within 10 % of the root, those with the least product; among these, the closest together.
    The smallest stands in the middle, where a core is a factor of the rank larger than the outer ones, and
    the largest last, so that a batch has few distinct prefixes (TT-Rec's published shapes do the same).
    """
    best: tuple[tuple[int, int], tuple[int, ...]] | None = None
    for factors in _near_root(num_embeddings, cores):
        key = (math.prod(factors), factors[-1] - factors[0])
        if best is None or key < best[0]:
            best = (key, factors)
    assert best is not None
    ordered = best[1]
    if cores == 2:
        return ordered
    inner = ordered[: cores - 2]
    return (ordered[-2], *inner, ordered[-1])


def _near_root(rows: int, cores: int, least: int = 1) -> Iterator[tuple[int, ...]]:
    """Ascending tuples near rows^(1/cores); the last factor is as small as it can be."""
    if cores == 1:
        yield (max(rows, least),)
        return
    root = rows ** (1.0 / cores)
    low = max(least, math.floor(root * (1.0 - _SPREAD)), 1)
    for first in range(low, max(low, math.ceil(root)) + 1):
        for rest in _near_root(-(-rows // first), cores - 1, first):
            yield (first, *rest)


def column_factors(embedding_dim: int, cores: int) -> tuple[int, ...]:
    """The first and the last core share the columns, the cores between have one each: 16 is 2, 1, 8.

    A core between has the rank squared in it, an outer one the rank: columns cost least outside, in bytes and
    in work for a prefix. The first has the largest divisor a with 4 a^2 <= embedding_dim, since a prefix
    costs in proportion to a. On Criteo rows such trains learn as well as those with balanced factors of the
    same rank, at 0.6 times the parameters: `recsys-opt bench quality --variants tt32@2x1x8,tt32@2x2x4`.
    """
    first = max(
        a
        for a in range(1, embedding_dim + 1)
        if embedding_dim % a == 0 and 4 * a * a <= max(embedding_dim, 4)
    )
    return (first, *(1 for _ in range(cores - 2)), embedding_dim // first)


def resolve_shapes(
    num_embeddings: int,
    embedding_dim: int,
    tt_ranks: int | Sequence[int],
    tt_p_shapes: Sequence[int] | None,
    tt_q_shapes: Sequence[int] | None,
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Checked row factors, column factors and ranks (with the outer ones, which are 1).

    `tt_ranks` is one rank for every bond, or one per bond: d - 1 numbers for d cores. d is 3 unless the
    arguments say otherwise.
    """
    if num_embeddings < 1 or embedding_dim < 1:
        raise InputError(
            f"num_embeddings = {num_embeddings}, embedding_dim = {embedding_dim}; both must be at least 1"
        )
    counts = {
        "tt_p_shapes": None if tt_p_shapes is None else len(tt_p_shapes),
        "tt_q_shapes": None if tt_q_shapes is None else len(tt_q_shapes),
        "tt_ranks": None if isinstance(tt_ranks, int) else len(tt_ranks) + 1,
    }
    told = {name: count for name, count in counts.items() if count is not None}
    if len(set(told.values())) > 1:
        says = ", ".join(f"{name} {count}" for name, count in told.items())
        raise InputError(f"the arguments disagree on the number of cores: {says} (ranks are one fewer)")
    cores = next(iter(told.values()), 3)
    if not MIN_CORES <= cores <= MAX_CORES:
        raise InputError(f"{cores} cores; a table has {MIN_CORES} to {MAX_CORES}")
    p = row_factors(num_embeddings, cores) if tt_p_shapes is None else tuple(tt_p_shapes)
    q = column_factors(embedding_dim, cores) if tt_q_shapes is None else tuple(tt_q_shapes)
    ranks = (tt_ranks,) * (cores - 1) if isinstance(tt_ranks, int) else tuple(tt_ranks)
    for name, values in (("tt_p_shapes", p), ("tt_q_shapes", q), ("tt_ranks", ranks)):
        if min(values) < 1:
            raise InputError(f"{name} = {list(values)}; every number must be at least 1")
    if math.prod(p) < num_embeddings:
        raise InputError(
            f"tt_p_shapes = {list(p)} make {math.prod(p)} rows; the table needs {num_embeddings}"
        )
    if math.prod(q) != embedding_dim:
        raise InputError(
            f"tt_q_shapes = {list(q)} make {math.prod(q)} columns; embedding_dim is {embedding_dim}"
        )
    return p, q, (1, *ranks, 1)
