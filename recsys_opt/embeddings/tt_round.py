"""Norms, products and distances of tensor-train tables from their cores alone, and rounding to less rank.

Everything is computed in float64 and over the rows that exist: the first N of prod(p) are at most d boxes of
digits (all rows with a smaller first digit; those with the same first and a smaller second digit; ...), and
on a box a table is a tensor train with slices of the same cores.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recsys_opt.embeddings.tt_svd import RankRule, balance, next_aim
from recsys_opt.errors import InputError


@dataclass(frozen=True)
class RoundReport:
    """What rounding a table cost."""

    tt_ranks: tuple[int, ...]
    """Of the inner bonds, now."""
    error: float
    """Frobenius distance to the table before over that table's norm: the rows that exist, cores as stored."""
    bound: float
    """What the singular values left out bound the error by."""

    def to_json(self) -> dict[str, Any]:
        """JSON values only."""
        return dataclasses.asdict(self)


def table_norm(cores: Sequence[Tensor], rows: int) -> float:
    """The Frobenius norm of the first `rows` rows, by orthogonalisation from the left: exact to 1e-15."""
    return math.sqrt(sum(_box_norm(box) ** 2 for box in _boxes(cores, rows)))


def table_inner(a: Sequence[Tensor], b: Sequence[Tensor], rows: int) -> float:
    """The sum of the products of equal entries of two tables' first `rows` rows."""
    _check_same_factors(a, b)
    total = 0.0
    for x, y in zip(_boxes(a, rows), _boxes(b, rows), strict=True):
        product = x[0].new_ones(1, 1)
        for left, right in zip(x, y, strict=True):
            moved = torch.einsum("ab,nqbs->anqs", product, right).flatten(1, 2)  # [a, n q, s]
            product = torch.einsum("nqar,anqs->rs", left, moved.unflatten(1, right.shape[:2]))
        total += float(product)
    return total


def table_distance(a: Sequence[Tensor], b: Sequence[Tensor], rows: int) -> float:
    """The Frobenius distance of two tables' first `rows` rows.

    The norm of the difference, whose cores are those of both side by side. Exact to 1e-15 of the larger norm;
    from inner products it would be to 1e-8.
    """
    _check_same_factors(a, b)
    return table_norm(_difference(a, b), rows)


@torch.no_grad()
def round_cores(
    cores: Sequence[Tensor],
    rows: int,
    *,
    ranks: int | Sequence[int] | None = None,
    tolerance: float | None = None,
    rank_multiple: int = 1,
) -> tuple[list[Tensor], RoundReport]:
    """Cores of less rank for nearly the same table (Oseledets 2011, algorithm 2).

    rows           of the table that exist
    ranks          of the inner bonds, or one for all; a bond that has less keeps what it has
    tolerance      instead: the least ranks whose relative error, of cores as stored, is within it
    rank_multiple  ranks chosen by tolerance go up to the next multiple, where the table has as many
    """
    bonds = len(cores) - 1
    wanted = [ranks] * bonds if isinstance(ranks, int) else ranks
    if wanted is not None and (len(wanted) != bonds or min(wanted) < 1):
        raise InputError(f"tt_ranks = {ranks}; it must be {bonds} numbers of at least 1, or one for all")
    norm = table_norm(cores, rows)
    aim = tolerance
    while True:
        rule = RankRule(bonds, wanted, aim, rank_multiple)
        rule.set_norm(norm**2)
        wide, lost = _truncated(cores, rule)
        rounded = [core.to(cores[0].dtype).contiguous() for core in wide]
        error = table_distance(cores, rounded, rows) / norm if norm else 0.0
        if tolerance is None or aim is None or error <= tolerance:
            break
        aim = next_aim(tolerance, aim, error, table_distance(wide, rounded, rows) / norm, cores[0].dtype)
    return rounded, RoundReport(
        tt_ranks=tuple(core.shape[3] for core in rounded[:-1]),
        error=error,
        bound=math.sqrt(lost) / norm if norm else 0.0,
    )


def _truncated(cores: Sequence[Tensor], rule: RankRule) -> tuple[list[Tensor], float]:
    """Cores in float64 of the ranks that `rule` gives, and the squared singular values left out."""
    found = [core.double() for core in cores]
    for k in range(len(found) - 1, 0, -1):  # orthonormal rows, from the right
        n, q, left, right = found[k].shape
        rows_of, mixed = torch.linalg.qr(found[k].permute(0, 1, 3, 2).reshape(-1, left))
        found[k] = rows_of.view(n, q, right, -1).transpose(2, 3)
        found[k - 1] = found[k - 1] @ mixed.T
    lost = 0.0
    for k in range(len(found) - 1):  # truncation, from the left
        n, q, left, right = found[k].shape
        u, values, v = torch.linalg.svd(found[k].reshape(-1, right), full_matrices=False)
        rank = rule.take(k, values.square())
        lost += float(values[rank:].square().sum())
        found[k] = u[:, :rank].view(n, q, left, rank)
        found[k + 1] = (values[:rank, None] * v[:rank]) @ found[k + 1]
    return balance(found), lost


def _boxes(cores: Sequence[Tensor], rows: int) -> Iterator[list[Tensor]]:
    """Cores of the boxes of digits that the first `rows` rows are made of, in float64."""
    wide = [core.detach().double() for core in cores]
    sizes = [core.shape[0] for core in wide]
    if not 0 <= rows <= math.prod(sizes):
        raise InputError(f"rows = {rows}; the cores have {math.prod(sizes)}")
    rest = rows
    fixed: list[Tensor] = []
    for k, core in enumerate(wide):
        digit, rest = divmod(rest, math.prod(sizes[k + 1 :]))
        if digit:
            yield [*fixed, core[:digit], *wide[k + 1 :]]
        fixed.append(core[digit : digit + 1])


def _box_norm(cores: Sequence[Tensor]) -> float:
    triangle = cores[0].new_ones(1, 1)
    for core in cores:
        moved = torch.einsum("ab,nqbr->nqar", triangle, core)
        triangle = torch.linalg.qr(moved.reshape(-1, core.shape[3]), mode="r").R
    return float(torch.linalg.vector_norm(triangle))


def _difference(a: Sequence[Tensor], b: Sequence[Tensor]) -> list[Tensor]:
    """Cores of the table of a minus that of b."""
    found = []
    for k, (x, y) in enumerate(zip(a, b, strict=True)):
        x, y = x.detach().double(), y.detach().double()
        if k == 0:
            found.append(torch.cat([x, -y], 3))
            continue
        if k == len(a) - 1:
            found.append(torch.cat([x, y], 2))
            continue
        n, q = x.shape[:2]
        both = x.new_zeros(n, q, x.shape[2] + y.shape[2], x.shape[3] + y.shape[3])
        both[:, :, : x.shape[2], : x.shape[3]] = x
        both[:, :, x.shape[2] :, x.shape[3] :] = y
        found.append(both)
    return found


def _check_same_factors(a: Sequence[Tensor], b: Sequence[Tensor]) -> None:
    factors = [[tuple(core.shape[:2]) for core in cores] for cores in (a, b)]
    if factors[0] != factors[1]:
        raise InputError(
            f"the tables have different factors (n, q) of their cores: {factors[0]}, {factors[1]}"
        )
