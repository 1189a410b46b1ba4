"""What true probabilities achieve: the best AUC and logloss that any model can reach on generated rows.

Rows are counted by their true logit in 65,536 bins of width w = 32 / 65,536 = 0.00049. Within a bin rows tie
and have the bin's middle logit, so a row's logit is off by at most w / 2. The error of the logloss is at most
w / 2 = 0.00025 and, as errors cancel within a bin, about w^2 / 100 = 2e-9; that of the AUC is at most w / 4
times the chance that two rows share a bin, below 1e-7 on Criteo-like rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import recsys_opt._synth as _synth

Array = NDArray[Any]
BINS = 1 << 16


@dataclass(frozen=True)
class Scores:
    """Labels by bin of the true logit."""

    positives: NDArray[np.int64]  # [BINS]
    negatives: NDArray[np.int64]  # [BINS]

    def __add__(self, other: Scores) -> Scores:
        return Scores(self.positives + other.positives, self.negatives + other.negatives)

    @classmethod
    def empty(cls) -> Scores:
        """No rows."""
        return cls(np.zeros(BINS, dtype=np.int64), np.zeros(BINS, dtype=np.int64))

    @classmethod
    def of_probabilities(cls, p: Array, labels: Array) -> Scores:
        """Counts rows in memory: `p` [N] in (0, 1), `labels` [N]."""
        limit = float(_synth.LOGIT_LIMIT)
        logit = np.clip(np.log(p / (1 - p)), -limit, limit)
        bins = np.minimum(((logit + limit) * (BINS / (2 * limit))).astype(np.int64), BINS - 1)
        positive = np.bincount(bins[labels == 1], minlength=BINS)
        return cls(positive, np.bincount(bins[labels != 1], minlength=BINS))


def _auc(positive: Array, negative: Array) -> float:
    below = np.cumsum(negative) - negative
    pairs = float(positive.sum()) * float(negative.sum())
    return float((positive * (below + 0.5 * negative)).sum() / pairs) if pairs else 0.5


def bayes(scores: Scores) -> dict[str, float]:
    """The best possible figures on the rows counted.

    `auc` and `logloss` are those of the true probabilities against the labels drawn, which a trained model's
    are to be compared with; `expected_*` are free of the luck of the draw.
    """
    limit = float(_synth.LOGIT_LIMIT)
    logit = (np.arange(BINS) + 0.5) * (2 * limit / BINS) - limit
    p = 1 / (1 + np.exp(-logit))
    rows = scores.positives + scores.negatives
    total = max(int(rows.sum()), 1)
    log_p, log_q = -np.logaddexp(0, -logit), -np.logaddexp(0, logit)
    return {
        "auc": _auc(scores.positives.astype(np.float64), scores.negatives.astype(np.float64)),
        "logloss": float(-(scores.positives * log_p + scores.negatives * log_q).sum() / total),
        "expected_auc": _auc(rows * p, rows * (1 - p)),
        "expected_logloss": float(-(rows * (p * log_p + (1 - p) * log_q)).sum() / total),
        "click_rate": float(scores.positives.sum() / total),
        "expected_click_rate": float((rows * p).sum() / total),
    }
