"""Chosen rows of a table fitted by a tensor train: alternating least squares over all of its cores.

With A_e and B_e the products of the slices left and right of core k, row e is A_e G_i B_e, linear in its
slice G_i of that core. For rows x_e of weight w_e the slices of a core minimise, each for itself,

    sum over the rows e of slice i of w_e |A_e G_i B_e - x_e|^2  +  pull / n_k * (mean of |A G_i B|^2),

the mean over all rows of the slice, which the cores give without visiting them: tr(G^T L G M), L the mean of
A^T A and M that of B B^T. Conjugate gradients solve it from the slice as it is, so the sum never grows. They
are preconditioned by the Kronecker product of the weighted sums of A^T A and of B B^T, for the first and the
last core the whole matrix. A sweep solves the cores one after the other (Holtz, Rohwedder, Schneider 2012).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recsys_opt.embeddings.tt_interfaces import interfaces, left_gram, right_gram, row_digits
from recsys_opt.progress import Progress
from recsys_opt.reference import tt_rows

_SWEEPS = 8
"""At most."""
_LEAST_FALL = 0.01
"""Of the weighted sum in a sweep, as a share of it: less, and the fit is done."""
_STEPS = 15
"""Of conjugate gradients for a slice; more sweeps with few steps each fall faster than few exact ones."""
_RIDGE = 1e-7
"""Added to the preconditioner's factors, as a share of their mean eigenvalue, so that they have inverses."""


@dataclass(frozen=True)
class WeightedRows:
    """What is fitted."""

    ids: Tensor  # [E]
    rows: Tensor  # [E, D]
    weights: Tensor  # [E] larger than 0
    pull: float
    """Weight of all rows together, seen or not, on being 0."""


def fit_rows_(cores: list[Tensor], seen: WeightedRows, work_bytes: int, progress: Progress) -> list[float]:
    """Changes the cores in place; returns the sum that is minimised, before and after every sweep."""
    digits = row_digits(seen.ids, cores)
    orders = [torch.argsort(digit, stable=True) for digit in digits]
    chunk = _chunk(cores, work_bytes)
    sums = [_weighted_sum(cores, seen, chunk)]
    done = float(seen.weights.double() @ seen.rows.double().square().sum(1)) * _epsilon(cores[0]) ** 2
    progress.start("weighted fit of the cores", _SWEEPS, "sweeps")
    order = list(range(len(cores)))
    for _ in range(_SWEEPS):
        if sums[-1] <= done:
            break
        before = [core.clone() for core in cores]
        for k in order:
            _solve_core_(cores, k, seen, digits, orders[k], chunk)
        order = list(range(len(cores) - 1))[::-1] if order[-1] == len(cores) - 1 else [*range(1, len(cores))]
        after = _weighted_sum(cores, seen, chunk)
        if not after <= sums[-1]:  # by rounding: nothing is left to gain
            cores[:] = before
            break
        sums.append(after)
        progress.advance(1, sum=f"{after:.4g}")
        if after > (1.0 - _LEAST_FALL) * sums[-2]:
            break
    progress.finish()
    return sums


def _weighted_sum(cores: Sequence[Tensor], seen: WeightedRows, chunk: int) -> float:
    total = seen.pull * float(left_gram(cores)[0, 0])
    for part in torch.arange(len(seen.ids), device=seen.ids.device).split(chunk):
        missed = (tt_rows(seen.ids[part], cores) - seen.rows[part]).double().square().sum(1)
        total += float(seen.weights[part].double() @ missed)
    return total


def _solve_core_(
    cores: list[Tensor], k: int, seen: WeightedRows, digits: Sequence[Tensor], order: Tensor, chunk: int
) -> None:
    """Every slice of core k; `order` has the rows by their slice."""
    n, core = cores[k].shape[0], cores[k]
    left = left_gram(cores[:k]).to(core)
    right = right_gram(cores[k + 1 :]).to(core)
    ends = torch.bincount(digits[k], minlength=n).cumsum(0).tolist()
    for i in range(n):
        own = order[ends[i - 1] if i else 0 : ends[i]]
        if len(own):
            equations = _Equations(cores, k, seen, digits, own.split(chunk), left, right)
            core[i] = equations.solved(core[i])
        elif seen.pull:
            core[i] = 0.0


@dataclass(frozen=True)
class _Part:
    """Some rows of a slice."""

    left: Tensor  # [E, Ql, r]
    right: Tensor  # [E, r', Qr]
    rows: Tensor  # [E, Ql q, Qr]
    weights: Tensor  # [E]


class _Equations:
    """The normal equations of a slice, as products with their matrix; a slice is [r, q r'] here."""

    def __init__(
        self,
        cores: Sequence[Tensor],
        k: int,
        seen: WeightedRows,
        digits: Sequence[Tensor],
        chosen: Sequence[Tensor],
        left_mean: Tensor,
        right_mean: Tensor,
    ) -> None:
        self._cores, self._k, self._seen, self._digits, self._chosen = cores, k, seen, digits, chosen
        self._n, self._q, self._r, self._s = cores[k].shape
        self._pull, self._left_mean, self._right_mean = seen.pull / self._n, left_mean, right_mean
        self._kept = self._part(chosen[0]) if len(chosen) == 1 else None

    def solved(self, core: Tensor) -> Tensor:
        """The slice [q, r, r'] after `_STEPS` steps from `core`."""
        found = core.permute(1, 0, 2).reshape(self._r, -1)
        residual = self._towards_rows(found)
        factors = self._factors()
        direction = self._preconditioned(residual, factors)
        size = first = float((residual * direction).sum())
        for _ in range(_STEPS):
            if size <= first * _epsilon(core) ** 1.5:
                break
            image = self._times(direction)
            curvature = float((direction * image).sum())
            if not curvature > 0:
                break
            found = found + (size / curvature) * direction
            residual = residual - (size / curvature) * image
            better = self._preconditioned(residual, factors)
            previous, size = size, float((residual * better).sum())
            direction = better + (size / previous) * direction
        return found.view(self._r, self._q, self._s).permute(1, 0, 2)

    def _part(self, chosen: Tensor) -> _Part:
        left, right = interfaces(self._cores, [digit[chosen] for digit in self._digits], self._k)
        rows = self._seen.rows[chosen].view(len(chosen), left.shape[1] * self._q, right.shape[2])
        return _Part(left.contiguous(), right.contiguous(), rows, self._seen.weights[chosen])

    def _parts(self) -> Iterator[_Part]:
        """Kept where they are one; otherwise made again each time, to bound the memory."""
        if self._kept is not None:
            yield self._kept
        else:
            yield from map(self._part, self._chosen)

    def _made(self, part: _Part, g: Tensor) -> Tensor:
        """A_e G B_e, [E, Ql q, Qr]."""
        return torch.bmm((part.left.flatten(0, 1) @ g).view(len(part.left), -1, self._s), part.right)

    def _back(self, part: _Part, rows: Tensor) -> Tensor:
        """sum of w_e A_e^T rows_e B_e^T."""
        inner = torch.bmm(rows * part.weights[:, None, None], part.right.mT)
        return part.left.flatten(0, 1).T @ inner.view(-1, self._q * self._s)

    def _pulled(self, g: Tensor) -> Tensor:
        return self._pull * ((self._left_mean @ g).view(-1, self._s) @ self._right_mean).view_as(g)

    def _times(self, g: Tensor) -> Tensor:
        total = self._pulled(g)
        for part in self._parts():
            total += self._back(part, self._made(part, g))
        return total

    def _towards_rows(self, g: Tensor) -> Tensor:
        """Minus half of the gradient."""
        total = -self._pulled(g)
        for part in self._parts():
            total += self._back(part, part.rows - self._made(part, g))
        return total

    def _factors(self) -> tuple[Tensor, Tensor]:
        """Cholesky factors of two matrices whose Kronecker product is about the matrix of the equations."""
        left, right, weight = self._pull * self._left_mean, self._pull * self._right_mean, self._pull
        for part in self._parts():
            scaled = part.left * part.weights[:, None, None]
            left = left + scaled.flatten(0, 1).T @ part.left.flatten(0, 1)
            wide = part.right.transpose(0, 1)  # [r', E, Qr]
            right = right + (wide * part.weights[:, None]).flatten(1) @ wide.flatten(1).T
            weight += float(part.weights.sum())
        return _factor(left / weight), _factor(right)

    def _preconditioned(self, g: Tensor, factors: tuple[Tensor, Tensor]) -> Tensor:
        half = torch.cholesky_solve(g, factors[0]).reshape(-1, self._s)
        return torch.cholesky_solve(half.T, factors[1]).T.reshape(self._r, -1)


def _factor(matrix: Tensor) -> Tensor:
    wide = matrix.double()
    ridge = _RIDGE * wide.diagonal().mean() + 1e-30
    factor, _ = torch.linalg.cholesky_ex(
        wide + ridge * torch.eye(len(wide), dtype=wide.dtype).to(wide.device)
    )
    found: Tensor = factor.to(matrix.dtype)
    return found


def _chunk(cores: Sequence[Tensor], work_bytes: int) -> int:
    """Rows of a slice that are worked on together, so that they take a quarter of the memory."""
    dim = math.prod(core.shape[1] for core in cores)
    numbers, columns = 0, 1
    for core in cores:
        _, q, r, s = core.shape
        outer = dim // (columns * q)
        numbers = max(numbers, 2 * q * r * s + columns * r + 2 * s * outer + 3 * columns * q * s + 4 * dim)
        columns *= q
    return max(work_bytes // 4 // (numbers * cores[0].element_size()), 64)


def _epsilon(core: Tensor) -> float:
    return torch.finfo(core.dtype).eps
