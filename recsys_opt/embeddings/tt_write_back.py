"""Moves given rows of a tensor-train table by changing one core as little as the other rows can bear."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recsys_opt.embeddings.tt_interfaces import interfaces, left_gram, right_gram, row_digits
from recsys_opt.reference import tt_rows

_ROWS_AT_ONCE = 32
"""Rows of one slice that are fitted together; more follow in further rounds."""


@dataclass(frozen=True)
class WriteBack:
    """What a write-back came to; all relative, 0 where there was nothing to write."""

    error_before: float
    """Norm of (wanted - table) over the norm of the wanted rows, before."""
    error_after: float
    """The same afterwards: what the table could not take up."""
    others_moved: float
    """Root mean square change of a row of the table over the root mean square row: over all rows, exact."""


def table_mean_square(cores: Sequence[Tensor]) -> float:
    """The mean squared norm of the table's rows, from the cores."""
    return float(left_gram(cores)[0, 0])


@torch.no_grad()
def write_back_(
    cores: Sequence[Tensor],
    ids: Tensor,
    rows: Tensor,
    counts: Tensor,
    other_count: float,
    limit: float,
) -> WriteBack:
    """Brings the table's rows `ids` closer to `rows`, weighing them against all rows that share a slice.

    With A(i) and B(i) the products of the slices left and right of core k, row i is A(i) G(i_k) B(i). For
    each slice G of that core the change X solves, with N rows sharing the slice,

        min  sum over ids of count * |A X B - (wanted - row)|^2  +  other_count * N * (mean of |A X B|^2)

    that is, the expected squared error over lookups. The mean is over all rows of the slice: it is
    tr(X^T L X M) with L = mean of A^T A and M = mean of B B^T, which the cores give without visiting rows. In
    coordinates in which L and M are identities this is a ridge regression, solved in its dual form.
    Core k is the one whose slices have the most numbers for the rows that share them.

    cores        of the table, changed in place
    ids          [E] different ids
    rows         [E, D] what their rows should be
    counts       [E] how often each is looked up
    other_count  how often any other row is looked up, on average
    limit        largest `others_moved`; a larger change is scaled down to it
    """
    wanted = rows.double()
    size = float(wanted.norm())
    if not len(ids) or size == 0:
        return WriteBack(0.0, 0.0, 0.0)
    exact = [core.detach().double() for core in cores]
    before = float((wanted - tt_rows(ids, exact)).norm()) / size
    if not math.isfinite(before) or not math.isfinite(table_mean_square(exact)):
        return WriteBack(math.nan, math.nan, 0.0)  # a diverged table: there is nothing to save
    k = _most_local_core(exact)
    old, exact[k] = exact[k], exact[k].clone()
    left = _factor(left_gram(exact[:k]).to(exact[k].device))
    right = _factor(right_gram(exact[k + 1 :]).to(exact[k].device))
    sharing = math.prod(core.shape[0] for core in exact) / exact[k].shape[0]
    weights = counts.double().clamp(min=1.0)
    penalty = max(other_count * sharing, 1e-9 * float(weights.max()))
    for chosen in _rounds(row_digits(ids, exact)[k]):
        _fit(exact, k, ids[chosen], wanted[chosen], penalty / weights[chosen], left, right)
    change = exact[k] - old
    exact[k] = old
    moved = math.sqrt(_mean_square(change, left, right) / max(table_mean_square(exact), 1e-300))
    scale = min(1.0, limit / moved) if moved > 0 else 1.0
    cores[k].add_((scale * change).to(cores[k].dtype))
    after = [core.detach().double() for core in cores]
    return WriteBack(before, float((wanted - tt_rows(ids, after)).norm()) / size, scale * moved)


def _fit(
    cores: list[Tensor],
    k: int,
    ids: Tensor,
    wanted: Tensor,
    noise: Tensor,
    left: Tensor,
    right: Tensor,
) -> None:
    """One round: changes core k in place. Padded to the slice with the most rows, all slices at once."""
    digits = row_digits(ids, cores)
    slices, group = digits[k].unique(return_inverse=True)
    place = _place_in_group(group)
    s, m = len(slices), int(place.max()) + 1
    a, b = interfaces(cores, digits, k)  # [E, Ql, r], [E, r', Qr]
    a = torch.linalg.solve_triangular(left, a.mT, upper=False).mT  # A C^-T with L = C C^T
    b = torch.linalg.solve_triangular(right, b, upper=False)
    q, columns = cores[k].shape[1], a.shape[1] * b.shape[2]
    missing = (wanted - tt_rows(ids, cores)).view(len(ids), a.shape[1], q, b.shape[2])
    missing = missing.transpose(1, 2).reshape(len(ids), q, columns)

    padded_a = a.new_zeros(s, m, *a.shape[1:])
    padded_b = b.new_zeros(s, m, *b.shape[1:])
    padded_a[group, place], padded_b[group, place] = a, b
    diagonal = a.new_ones(s, m)
    diagonal[group, place] = noise
    target = a.new_zeros(s, m, columns, q)
    target[group, place] = missing.mT
    kernel_a = torch.einsum("smir,snjr->smnij", padded_a, padded_a)
    kernel_b = torch.einsum("smrk,snrl->smnkl", padded_b, padded_b)
    kernel = torch.einsum("smnij,smnkl->smiknjl", kernel_a, kernel_b).reshape(s, m * columns, m * columns)
    kernel.diagonal(dim1=1, dim2=2).add_(diagonal.repeat_interleave(columns, dim=1))
    dual = torch.cholesky_solve(target.view(s, m * columns, q), torch.linalg.cholesky(kernel))
    dual = dual.view(s, m, a.shape[1], b.shape[2], q)
    change = torch.einsum("smir,smtk,smikq->sqrt", padded_a, padded_b, dual)
    change = torch.linalg.solve_triangular(left.mT, change, upper=True)  # C^-T X
    change = torch.linalg.solve_triangular(right, change, upper=False, left=False)  # X C^-1
    cores[k][slices] += change


def _place_in_group(group: Tensor) -> Tensor:
    """How many of the same group come before each."""
    order = torch.argsort(group, stable=True)
    first = torch.searchsorted(group[order], group[order])
    place = torch.empty_like(group)
    place[order] = torch.arange(len(group), device=group.device) - first
    return place


def _rounds(slice_of: Tensor) -> list[Tensor]:
    place = _place_in_group(slice_of) // _ROWS_AT_ONCE
    return [(place == r).nonzero()[:, 0] for r in range(int(place.max()) + 1)]


def _factor(gram: Tensor) -> Tensor:
    """C with C C^T = gram, made safely positive definite."""
    floor = 1e-6 * float(gram.diagonal().mean()) + 1e-30
    factor: Tensor = torch.linalg.cholesky(
        gram + floor * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    )
    return factor


def _mean_square(change: Tensor, left: Tensor, right: Tensor) -> float:
    """The mean squared norm of A X B over all rows, X the slices of `change`."""
    return float((left.mT @ change @ right).square().sum()) / change.shape[0]


def _most_local_core(cores: Sequence[Tensor]) -> int:
    """The core whose change reaches the fewest rows for each of its numbers that a row can use."""
    dim = math.prod(core.shape[1] for core in cores)

    def freedom(k: int) -> float:
        n, q, r, s = cores[k].shape
        return n * r * s / (dim / q)

    return max(range(len(cores)), key=freedom)
