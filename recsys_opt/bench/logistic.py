"""Logistic regression on the same inputs as the DLRM: the baseline that any model must beat.

    logit = b + w . dense + sum over columns f of v_f[id_f]        (dense columns standardised)

The loss, mean logloss + l2 / (2 N) |v|^2, is convex and is minimised over all training rows at once (L-BFGS),
so that the baseline depends on nothing but l2, which the validation rows choose.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from recsys_opt.data.batches import BatchStream
from recsys_opt.data.dataset import Dataset
from recsys_opt.training.metrics import Metrics, compute_metrics

L2_GRID = (8.0, 16.0, 32.0, 64.0)
MAX_ITERATIONS = 200


@dataclass(frozen=True)
class LogisticResult:
    """The regression that the validation rows chose."""

    l2: float
    validation: Metrics
    test: Metrics
    searched: tuple[tuple[float, float], ...]
    """(l2, validation AUC) of all that were tried."""


@dataclass(frozen=True)
class _Rows:
    dense: Tensor  # [N, 13]
    ids: Tensor  # [N, 26] places in the weights; the last place stands for every id unseen in training
    labels: Tensor  # [N]


def fit_logistic(dataset: Dataset, grid: tuple[float, ...] = L2_GRID) -> LogisticResult:
    """Fits one regression per l2; returns the one with the best validation AUC."""
    train, validation, test = (_read(dataset, split) for split in ("train", "validation", "test"))
    seen = torch.unique(train.ids)  # sorted; ids that never occur have weight 0 and need no place
    mean, deviation = train.dense.mean(0), train.dense.std(0).clamp_min(1e-6)
    train, validation, test = (
        _Rows((rows.dense - mean) / deviation, _places(rows.ids, seen), rows.labels)
        for rows in (train, validation, test)
    )
    fits = []
    start = torch.zeros(1 + train.dense.shape[1] + len(seen) + 1)
    for l2 in sorted(grid, reverse=True):
        start = _minimise(train, l2, start)  # a good start for the next
        fits.append((l2, start, _metrics(validation, start)))
    l2, weights, best = max(fits, key=lambda fit: fit[2].auc or 0.0)
    searched = tuple((tried, metrics.auc or 0.0) for tried, _, metrics in fits)
    return LogisticResult(l2, best, _metrics(test, weights), searched)


def _read(dataset: Dataset, split: str) -> _Rows:
    sizes = [column.num_embeddings for column in dataset.info.sparse_columns]
    first = torch.tensor([0, *np.cumsum(sizes)[:-1].tolist()])
    batches = list(BatchStream(dataset, *dataset.split(split), 8192))
    return _Rows(
        torch.cat([b.dense for b in batches]),
        torch.cat([b.values.view(-1, b.rows).T.long() + first for b in batches]),
        torch.cat([b.labels for b in batches]),
    )


def _places(ids: Tensor, seen: Tensor) -> Tensor:
    places = torch.searchsorted(seen, ids).clamp_max(len(seen) - 1)
    return torch.where(seen[places] == ids, places, len(seen))


def _logits(rows: _Rows, weights: Tensor) -> Tensor:
    columns = rows.dense.shape[1]
    by_id = torch.cat([weights[1 + columns : -1], weights.new_zeros(1)])
    one_hot = F.embedding_bag(rows.ids, by_id[:, None], mode="sum").squeeze(1)
    return weights[0] + rows.dense @ weights[1 : 1 + columns] + one_hot


def _minimise(rows: _Rows, l2: float, start: Tensor) -> Tensor:
    weights = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weights],
        max_iter=MAX_ITERATIONS,
        history_size=20,
        line_search_fn="strong_wolfe",
    )
    columns = rows.dense.shape[1]

    def closure() -> float:
        optimizer.zero_grad()
        penalty = l2 / (2 * len(rows.labels)) * weights[1 + columns :].square().sum()
        loss = F.binary_cross_entropy_with_logits(_logits(rows, weights), rows.labels) + penalty
        loss.backward()
        return float(loss.detach())

    optimizer.step(closure)
    return weights.detach()


def _metrics(rows: _Rows, weights: Tensor) -> Metrics:
    labels: NDArray[np.uint8] = rows.labels.numpy().astype(np.uint8)
    return compute_metrics(_logits(rows, weights).numpy(), labels)
