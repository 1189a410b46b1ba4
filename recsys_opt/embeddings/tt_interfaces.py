"""The products left and right of a core of a tensor train: of single rows, and on average over all rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def row_digits(ids: Tensor, cores: Sequence[Tensor]) -> list[Tensor]:
    """The slice of each core that makes up a row: its number in the radix of the cores' sizes."""
    digits: list[Tensor] = []
    for core in reversed(cores):
        digits.insert(0, ids % core.shape[0])
        ids = ids // core.shape[0]
    return digits


def interfaces(cores: Sequence[Tensor], digits: Sequence[Tensor], k: int) -> tuple[Tensor, Tensor]:
    """[E, Ql, r_k] and [E, r_{k+1}, Qr]: the products left and right of core k for rows of these digits."""
    count = len(digits[0])
    a = cores[0].new_ones(count, 1, 1)
    for core, digit in zip(cores[:k], digits[:k], strict=True):
        a = torch.einsum("njr,nqrs->njqs", a, core[digit]).flatten(1, 2)
    b = cores[0].new_ones(count, 1, 1)
    for core, digit in zip(reversed(cores[k + 1 :]), reversed(digits[k + 1 :]), strict=True):
        b = torch.einsum("nqrs,nsj->nrqj", core[digit], b).flatten(2, 3)
    return a, b


def left_gram(cores: Sequence[Tensor]) -> Tensor:
    """The mean of A^T A over all products A of slices, one of each core; [1, 1] ones without cores."""
    gram = torch.ones(1, 1, dtype=torch.float64, device=cores[0].device if cores else None)
    for core in cores:
        gram = torch.einsum("nqrs,rt,nqtu->su", core.double(), gram, core.double()) / core.shape[0]
    return gram


def right_gram(cores: Sequence[Tensor]) -> Tensor:
    """The mean of B B^T over all products B of slices, one of each core; [1, 1] ones without cores."""
    gram = torch.ones(1, 1, dtype=torch.float64, device=cores[0].device if cores else None)
    for core in reversed(cores):
        gram = torch.einsum("nqrs,su,nqtu->rt", core.double(), gram, core.double()) / core.shape[0]
    return gram
