"""Orthogonal splits of a tensor's unfoldings: the steps of TT-SVD (Oseledets 2011, algorithm 1).

The steps run from the last mode to the first, because a table's rows lie in memory (and in a file) by their
first digit: the last mode is whole in every block of rows.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from recsys_opt.errors import InputError


class RankRule:
    """The rank of each bond: given, or the least that keeps the whole error within a tolerance.

    The squared errors of the d - 1 truncations add up to at most the square of the whole one. A bond may use
    an equal share of what the bonds before it left.
    """

    def __init__(
        self, bonds: int, ranks: Sequence[int] | None, tolerance: float | None, multiple: int = 1
    ) -> None:
        if (ranks is None) == (tolerance is None):
            raise InputError("give either tt_ranks or tolerance: one of them decides the ranks")
        if tolerance is not None and not 0 < tolerance < 1:
            raise InputError(
                f"tolerance = {tolerance}; it must lie between 0 and 1, a share of the table's norm"
            )
        if multiple < 1:
            raise InputError(f"rank_multiple = {multiple}; it must be at least 1")
        self.ranks = None if ranks is None else list(ranks)
        self.multiple = multiple
        self.tolerance = tolerance
        self._left, self._bonds = 0.0, bonds

    def set_norm(self, squared: float) -> None:
        """The table's squared norm, of which the tolerance is a share."""
        if self.tolerance is not None:
            self._left = self.tolerance**2 * squared

    def allowed(self) -> float:
        """The squared error that the next bond may make; for a tolerance."""
        return self._left / self._bonds

    def take(self, bond: int, energies: Tensor, outside: float = 0.0) -> int:
        """The rank of a bond, and the squared error that comes with it is used up.

        energies  squared singular values, largest first
        outside   squared norm of what these do not cover
        """
        if self.ranks is not None:
            return min(self.ranks[bond], energies.numel())
        tails = energies.flip(0).cumsum(0).flip(0)  # tails[r]: what rank r leaves out
        tails = torch.cat([tails, tails.new_zeros(1)]) + outside
        fitting = (tails <= self.allowed()).nonzero()
        rank = max(int(fitting[0]) if fitting.numel() else energies.numel(), 1)
        rank = min(-(-rank // self.multiple) * self.multiple, energies.numel())
        self._left = max(self._left - float(tails[rank]), 0.0)
        self._bonds -= 1
        return rank


def next_aim(tolerance: float, aim: float, error: float, rounding: float, dtype: torch.dtype) -> float:
    """What to truncate to where cores truncated to `aim` came out farther off than `tolerance`.

    error      of the cores as they are stored
    rounding   the part of it that storing them in `dtype` makes: no rank helps against that
    """
    if rounding >= tolerance or aim < 1e-9:
        raise InputError(
            f"tolerance = {tolerance} is out of reach: cores of {dtype} are {error:.2g} off, "
            f"{rounding:.2g} by rounding them alone; give a larger tolerance, or cores of a wider type"
        )
    return min(0.9 * aim * tolerance / error, 0.99 * math.sqrt(tolerance**2 - rounding**2))


def split(matrix: Tensor, bond: int, rule: RankRule) -> tuple[Tensor, Tensor]:
    """matrix [m, n] -> left [m, r] and right [r, n] with orthonormal rows: left right is the best of rank r.

    float64 matrices are decomposed as they are. Others by the Gram matrix of their smaller side, summed in
    float64: singular values below 1e-8 of the largest are lost, which such a matrix does not have anyway.
    """
    m, n = matrix.shape
    if matrix.dtype == torch.float64:
        u, values, v = torch.linalg.svd(matrix, full_matrices=False)
        rank = rule.take(bond, values.square())
        return u[:, :rank] * values[:rank], v[:rank]
    if n <= m:
        energies, vectors = descending_eigh(gram(matrix))
        right = vectors[:, : rule.take(bond, energies)].to(matrix.dtype)
        return matrix @ right, right.T
    energies, vectors = descending_eigh(gram(matrix.T))
    basis = vectors[:, : rule.take(bond, energies)]
    rows, mixed = torch.linalg.qr((basis.to(matrix.dtype).T @ matrix).double().T)
    return (basis @ mixed.T).to(matrix.dtype), rows.T.to(matrix.dtype)


def gram(matrix: Tensor, chunk: int = 1 << 20) -> Tensor:
    """matrix^T matrix in float64, with a float64 copy of some `chunk` entries at a time."""
    m, n = matrix.shape
    total = torch.zeros(n, n, dtype=torch.float64, device=matrix.device)
    step = max(chunk // n, 1)
    for start in range(0, m, step):
        part = matrix[start : start + step].double()
        total.addmm_(part.T, part)
    return total


def descending_eigh(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues of a positive semidefinite matrix, largest first and none below 0, and their vectors."""
    values, vectors = torch.linalg.eigh(symmetric)
    return values.flip(0).clamp(min=0.0), vectors.flip(1)


def leading_cores(
    rest: Tensor, p: Sequence[int], q: Sequence[int], rule: RankRule, used: int | None = None
) -> list[Tensor]:
    """Cores of all modes but the last, from what the last left over.

    rest     [p_0 .. p_{k} rows, q_0 .. q_{k} columns, r_{k+1}], the table without its last mode
    used     only so many of its rows mean something; default: all
    returns  [p_j, q_j, r_j, r_{j+1}] for j = 0 .. k
    """
    cores: list[Tensor] = []
    used = rest.shape[0] if used is None else used
    for k in range(len(p) - 1, 0, -1):
        right = rest.shape[2]
        m, c = math.prod(p[:k]), math.prod(q[:k])
        matrix = rest.view(m, p[k], c, q[k], right).transpose(1, 2).reshape(m * c, p[k] * q[k] * right)
        complete, known = divmod(used, p[k])
        if known and complete:
            _impute(matrix, complete * c, c, known * q[k] * right, k - 1, rule)
        used = complete + bool(known)
        left, rows = split(matrix, k - 1, rule)
        rank = left.shape[1]
        cores.insert(0, rows.view(rank, p[k], q[k], right).permute(1, 2, 0, 3))
        rest = left.view(m, c, rank)
    cores.insert(0, rest.unsqueeze(2))
    return cores


def _impute(matrix: Tensor, complete: int, count: int, known: int, bond: int, rule: RankRule) -> None:
    """Fills in what is free to choose, so that it adds no rank.

    The rows complete .. complete + count - 1 have a meaning in their first `known` columns only. Beyond, they
    become what fits the right vectors of the complete rows.
    """
    left, right = split(matrix[:complete], bond, copy.copy(rule))
    right = right[present(left)]
    rows = matrix[complete : complete + count]
    rows[:, known:] = coefficients(rows[:, :known], right[:, :known]) @ right[:, known:]


def coefficients(rows: Tensor, right: Tensor) -> Tensor:
    """C with C right close to `rows`, [c, n] each; directions that these columns hardly show are left out."""
    inverse = torch.linalg.pinv(right.double(), rtol=0.1)
    found: Tensor = rows.double() @ inverse
    return found.to(rows.dtype)


def present(left: Tensor) -> Tensor:
    """Which columns of [m, r] are more than rounding errors."""
    sizes: Tensor = torch.linalg.vector_norm(left, dim=0)
    return sizes > 1e-6 * sizes.max()


def padded(cores: Sequence[Tensor], ranks: Sequence[int] | None) -> list[Tensor]:
    """The cores with zeros up to the given inner ranks, where a bond cannot have so many directions."""
    if ranks is None:
        return list(cores)
    full = [1, *ranks, 1]
    found = []
    for k, core in enumerate(cores):
        wide = core.new_zeros(*core.shape[:2], full[k], full[k + 1])
        wide[:, :, : core.shape[2], : core.shape[3]] = core
        found.append(wide)
    return found


def balance(cores: Sequence[Tensor], sweeps: int = 3) -> list[Tensor]:
    """The same table from cores whose entries are of one size: better steps in training, fewer underflows.

    At each bond, index a of the left core is scaled by s_a and of the right one by 1 / s_a, so that the root
    mean squares of both are equal. TT-SVD itself leaves all of the table's norm in one core.
    """
    found = list(cores)
    for _ in range(sweeps):
        for k in range(len(found) - 1):
            left = found[k].double().square().mean((0, 1, 2))
            right = found[k + 1].double().square().mean((0, 1, 3))
            scale = torch.where((left > 0) & (right > 0), (right / left).pow(0.25), 1.0)
            found[k] = found[k] * scale.to(found[k].dtype)
            found[k + 1] = found[k + 1] / scale.to(found[k].dtype)[:, None]
    return found
