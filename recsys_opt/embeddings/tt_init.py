"""Initial values of tensor-train cores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from recsys_opt.errors import InputError

Init = Literal["sampled_gaussian", "gaussian"]
INITS: tuple[Init, ...] = ("sampled_gaussian", "gaussian")

# TT-Rec draws cores from a standard normal without the values below 2 in magnitude ("sampled Gaussian"): a
# product of normal variables has most of its mass near 0, a product of these has not.
_CUT = 2.0


def default_table_std(num_embeddings: int) -> float:
    """The standard deviation of the DLRM repository's tables: uniform in +-1/sqrt(num_embeddings)."""
    return 1.0 / math.sqrt(3.0 * num_embeddings)


def core_std(table_std: float, ranks: Sequence[int]) -> float:
    """The standard deviation of core entries that gives table entries `table_std`.

    A table entry is a sum over prod(ranks) paths of products of d = len(ranks) - 1 independent entries with
    mean 0, so its variance is prod(ranks) * core_std^(2 d).
    """
    return float((table_std / math.sqrt(math.prod(ranks))) ** (1.0 / (len(ranks) - 1)))


@torch.no_grad()
def init_cores_(cores: Sequence[Tensor], init: Init, table_std: float) -> None:
    """Draws the cores from torch's global generator; table entries get standard deviation `table_std`."""
    if init not in INITS:
        raise InputError(f"init = {init!r}; choose one of {', '.join(INITS)}")
    ranks = [core.shape[2] for core in cores] + [1]
    std = core_std(table_std, ranks)
    for core in cores:
        if init == "gaussian":
            core.normal_(0.0, std)
        else:
            core.copy_(_sampled_gaussian(core) * std)


def _sampled_gaussian(like: Tensor) -> Tensor:
    """Normal variables conditioned on magnitudes of at least _CUT, scaled to variance 1."""
    upper_tail = 0.5 * math.erfc(_CUT / math.sqrt(2.0))
    density = math.exp(-0.5 * _CUT**2) / math.sqrt(2.0 * math.pi)
    variance = 1.0 + _CUT * density / upper_tail
    uniform = torch.rand(like.shape, dtype=torch.float64, device=like.device)
    # One uniform number is a sign and a place in the tail; 1 - |2 u - 1| lies in (0, 1].
    place = 1.0 - (2.0 * uniform - 1.0).abs()
    magnitude = -torch.special.ndtri(place.clamp(min=1e-15) * upper_tail)
    sample: Tensor = magnitude * torch.where(uniform < 0.5, -1.0, 1.0) / math.sqrt(variance)
    return sample
