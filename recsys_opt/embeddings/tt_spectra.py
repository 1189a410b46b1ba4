"""What tensor trains of a trained table would lose, from the spectra of its unfoldings.

TT-SVD with ranks r_k has an error of at most sqrt(sum over bonds of the squared singular values beyond r_k)
(Oseledets 2011, theorem 2.2). One spectrum per bond and shape so tells the error of every rank without a fit.
Squared singular values come from the Gram matrix of the unfolding's smaller side, summed in blocks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from recsys_opt.access import TableAccess
from recsys_opt.embeddings.tt_budget import Losses, TTOption

MOST_SIDE = 2048
"""Unfoldings whose smaller side is longer are not decomposed: two cores of a large table."""
_BLOCK_ENTRIES = 1 << 23
_ROUNDING = 1e-12
"""Squared errors that are no more than the rounding of fp32 entries."""


class Spectra:
    """The spectra of one table, computed as options ask for them."""

    def __init__(self, weight: Tensor) -> None:
        """weight  [num_embeddings, embedding_dim]"""
        self._weight = weight.detach()
        self._total = float(torch.linalg.vector_norm(self._weight, dtype=torch.float64)) ** 2
        self._tails: dict[tuple[tuple[int, ...], tuple[int, ...], int], Tensor] = {}

    @staticmethod
    def possible(option: TTOption) -> bool:
        """Whether all the option's unfoldings have a small enough side."""
        sides = [p * q for p, q in zip(option.p, option.q, strict=True)]
        bonds = range(1, len(sides))
        return all(min(math.prod(sides[:k]), math.prod(sides[k:])) <= MOST_SIDE for k in bonds)

    def squared_error(self, option: TTOption) -> float:
        """At most this share of the table's squared norm is lost by TT-SVD."""
        if not self._total:
            return 0.0
        lost = 0.0
        for k, rank in enumerate(option.ranks, 1):
            key = (option.p, option.q, k)
            if key not in self._tails:
                self._tails[key] = _tails(self._weight, option.p, option.q, k)
            tails = self._tails[key]
            lost += float(tails[rank]) if rank < len(tails) else 0.0
        share = lost / self._total
        return 0.0 if share < _ROUNDING else min(share, 1.0)


def losses_by_spectra(weight: Tensor, access: TableAccess) -> Losses:
    """Judges a trained table that is to be fitted: of its column's value, the share of the norm is lost.

    weight  [num_embeddings, embedding_dim]
    """
    spectra = Spectra(weight)

    def judge(options: Sequence[TTOption]) -> tuple[list[TTOption], list[float]]:
        possible = [option for option in options if Spectra.possible(option)]
        return possible, [0.5 * access.total_value * spectra.squared_error(o) for o in possible]

    return judge


def _tails(weight: Tensor, p: Sequence[int], q: Sequence[int], bond: int) -> Tensor:
    """[side + 1] the sum of the squared singular values from the r-th on, of the unfolding at a bond."""
    left = math.prod(p[:bond]) * math.prod(q[:bond])
    right = math.prod(p[bond:]) * math.prod(q[bond:])
    gram = _gram_of_left(weight, p, q, bond) if left <= right else _gram_of_right(weight, p, q, bond)
    energies = torch.linalg.eigvalsh(gram).clamp(min=0.0)  # ascending
    return torch.cat([energies.new_zeros(1), energies.cumsum(0)]).flip(0)


def _gram_of_right(weight: Tensor, p: Sequence[int], q: Sequence[int], bond: int) -> Tensor:
    """M^T M of M [left, right]: a block is some prefixes, whose rows lie side by side."""
    rows, columns, first = math.prod(p[bond:]), math.prod(q[bond:]), math.prod(q[:bond])
    gram = weight.new_zeros(rows * columns, rows * columns, dtype=torch.float64)
    step = max(1, _BLOCK_ENTRIES // (rows * columns * first)) * rows
    for start in range(0, weight.shape[0], step):
        block = weight[start : start + step].double()
        if short := -block.shape[0] % rows:
            block = torch.cat([block, block.new_zeros(short, block.shape[1])])
        unfolded = block.view(-1, rows, first, columns).transpose(1, 2).reshape(-1, rows * columns)
        gram += unfolded.T @ unfolded
    return gram


def _gram_of_left(weight: Tensor, p: Sequence[int], q: Sequence[int], bond: int) -> Tensor:
    """M M^T of M [left, right]: a block is some suffixes, whose rows are strides apart."""
    prefixes, suffixes = math.prod(p[:bond]), math.prod(p[bond:])
    first, columns = math.prod(q[:bond]), math.prod(q[bond:])
    gram = weight.new_zeros(prefixes * first, prefixes * first, dtype=torch.float64)
    whole = weight.shape[0] // suffixes
    full = weight[: whole * suffixes].view(whole, suffixes, first * columns)
    rest = weight[whole * suffixes :]
    step = max(1, _BLOCK_ENTRIES // (prefixes * first * columns))
    for start in range(0, suffixes, step):
        stop = min(start + step, suffixes)
        block = weight.new_zeros(prefixes, stop - start, first * columns, dtype=torch.float64)
        block[:whole] = full[:, start:stop]
        known = rest[start:stop]
        if known.shape[0]:
            block[whole, : known.shape[0]] = known
        unfolded = block.view(prefixes, -1, first, columns).transpose(1, 2).reshape(prefixes * first, -1)
        gram += unfolded @ unfolded.T
    return gram
