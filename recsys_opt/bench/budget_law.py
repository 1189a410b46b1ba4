"""How many rows of weight a tensor train holds: the law behind `recsys_opt.embeddings.tt_budget`.

Rows of a table get independent normal targets and weights that fall as a power of their rank; a tensor train
is fitted to them by gradient descent on the weighted squares. What is left of the weight, divided by all of
it, is the measured error; the law says: the weight of all rows beyond the first `TTOption.rows_kept`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from recsys_opt.embeddings.tt import TTEmbeddingBag
from recsys_opt.embeddings.tt_budget import TTOption
from recsys_opt.embeddings.tt_shapes import column_factors, row_factors
from recsys_opt.errors import InputError
from recsys_opt.progress import Progress


@dataclass(frozen=True)
class Settings:
    """What is fitted."""

    num_embeddings: int = 50_000
    seen: int = 3_000
    """Rows with a target."""
    embedding_dim: int = 16
    exponents: tuple[float, ...] = (0.0, 0.7, 1.1)
    """Weights fall as rank^-exponent."""
    ranks: tuple[tuple[int, ...], ...] = ((4, 4), (8, 8), (16, 16), (2,), (5,))
    """Of the inner bonds; one more core than ranks."""
    steps: int = 800
    learning_rate: float = 0.03

    def __post_init__(self) -> None:
        if not 1 <= self.seen <= self.num_embeddings:
            raise InputError(f"seen = {self.seen}; it must be 1 to the table's {self.num_embeddings} rows")
        if min(self.steps, self.embedding_dim) < 1:
            raise InputError("steps and columns must be at least 1")


def run(settings: Settings, progress: Progress) -> list[dict[str, Any]]:
    """Fits every case, ids at random places and in order of weight; one row each."""
    cases = [
        (exponent, ranks, order)
        for exponent in settings.exponents
        for ranks in settings.ranks
        for order in ("scattered", "by weight")
    ]
    progress.start("fits", len(cases), "fits")
    rows = []
    for exponent, ranks, order in cases:
        rows.append(_fit(settings, exponent, ranks, order))
        progress.advance(1)
    progress.finish()
    return rows


def _fit(settings: Settings, exponent: float, ranks: Sequence[int], order: str) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    rows, dim = settings.num_embeddings, settings.embedding_dim
    option = TTOption(row_factors(rows, len(ranks) + 1), column_factors(dim, len(ranks) + 1), tuple(ranks))
    weights = torch.arange(1, settings.seen + 1, dtype=torch.float64) ** -exponent
    weights /= weights.sum()
    ids = torch.randperm(rows, generator=generator)[: settings.seen]
    if order == "by weight":
        ids = torch.arange(settings.seen)
    target = torch.randn(settings.seen, dim, generator=generator)
    bag = TTEmbeddingBag(rows, dim, ranks, tt_p_shapes=option.p, tt_q_shapes=option.q)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        bag.reset_parameters(0.3)
    optimizer = torch.optim.Adam(bag.parameters(), lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    offsets, factors = torch.arange(settings.seen), weights.float()
    for _ in range(settings.steps):
        optimizer.zero_grad()
        loss = (factors * (bag(ids, offsets) - target).square().mean(1)).sum()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        left = (factors * (bag(ids, offsets) - target).square().mean(1)).sum()
    none = (factors * target.square().mean(1)).sum()
    return {
        "exponent": exponent,
        "ranks": list(ranks),
        "ids": order,
        "parameters": option.parameters,
        "freedom": option.freedom,
        "rows_kept": round(option.rows_kept, 1),
        "error": float(left / none),
        "error_by_the_law": float(weights[round(option.rows_kept) :].sum()),
    }
