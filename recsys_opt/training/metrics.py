"""How good predictions of a click are: AUC, logloss, normalised entropy, accuracy, calibration.

A model's output is a logit z; its probability is p = 1 / (1 + exp(-z)). All sums are in float64.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys_opt.errors import InputError, RecsysOptError

RELIABILITY_BINS = 20


@dataclass(frozen=True)
class ReliabilityBin:
    """Rows of similar predictions: are they right on average?"""

    rows: int
    mean_prediction: float
    click_rate: float


@dataclass(frozen=True)
class Metrics:
    """The quality of predictions over a set of rows."""

    rows: int
    auc: float | None
    """Chance that a clicked row scores above one not clicked, ties counting half; None with one class."""
    logloss: float
    """Mean of -y log p - (1 - y) log(1 - p), in nats."""
    normalised_entropy: float | None
    """logloss over that of always predicting the click rate (He et al. 2014); None with one class."""
    accuracy: float
    """Share of rows where (p > 1/2) = label."""
    calibration: float | None
    """Sum of predictions over sum of labels; 1 is right on average. None without a click."""
    click_rate: float
    """Mean label."""
    reliability: tuple[ReliabilityBin, ...] = field(default=(), repr=False)
    """Equally many rows a bin, by rising prediction."""

    def to_json(self) -> dict[str, Any]:
        """JSON values only."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Metrics:
        """The inverse of `to_json`."""
        bins = tuple(ReliabilityBin(**b) for b in document.get("reliability", ()))
        return cls(**{**document, "reliability": bins})


class MetricAccumulator:
    """Collects logits and labels batch by batch, 5 bytes a row; `compute` is exact."""

    def __init__(self) -> None:
        self._logits: list[NDArray[np.float32]] = []
        self._labels: list[NDArray[np.uint8]] = []

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Adds a batch: logits [B] of any float type, labels [B] of 0 and 1."""
        self._logits.append(logits.detach().float().cpu().numpy().copy())
        self._labels.append(labels.detach().cpu().numpy().astype(np.uint8))

    def compute(self) -> Metrics:
        """The metrics of all rows added."""
        if not self._logits:
            raise InputError("no rows to evaluate; choose a split that has rows")
        return compute_metrics(np.concatenate(self._logits), np.concatenate(self._labels))


def compute_metrics(logits: NDArray[np.float32], labels: NDArray[np.uint8]) -> Metrics:
    """The metrics of logits [N] against labels [N] of 0 and 1."""
    if len(logits) == 0:
        raise InputError("no rows to evaluate; choose a split that has rows")
    order = sorted_scores(logits, labels)
    rows, clicks = len(labels), int(labels.sum(dtype=np.int64))
    rate = clicks / rows
    z = logits.astype(np.float64)
    probability = 1.0 / (1.0 + np.exp(-np.clip(z, -700, 700)))
    loss = float((np.logaddexp(0.0, z) - z * labels).mean())
    entropy = -rate * math.log(rate) - (1 - rate) * math.log(1 - rate) if 0 < clicks < rows else None
    return Metrics(
        rows=rows,
        auc=auc_of_sorted(order),
        logloss=loss,
        normalised_entropy=loss / entropy if entropy else None,
        accuracy=float(((logits > 0) == (labels == 1)).mean()),
        calibration=float(probability.sum()) / clicks if clicks else None,
        click_rate=rate,
        reliability=_reliability(order),
    )


def auc(logits: NDArray[np.float32], labels: NDArray[np.uint8]) -> float | None:
    """The exact AUC; None when the labels are all equal."""
    return auc_of_sorted(sorted_scores(logits, labels))


def sorted_scores(logits: NDArray[np.float32], labels: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Sorted keys [N]: the logit's rank-preserving 32-bit code above, the label in the last bit.

    One array of integers sorts several times faster than an argsort of floats, and needs no gather.
    """
    if not np.isfinite(logits).all():
        bad = int(np.flatnonzero(~np.isfinite(logits))[0])
        raise RecsysOptError(
            f"the model's output for evaluated row {bad} is {logits[bad]}: training diverged"
        )
    # IEEE floats order as integers once negative ones are flipped; + 0.0 makes -0.0 equal to 0.0.
    bits = (logits.astype(np.float32) + np.float32(0.0)).view(np.uint32).astype(np.uint64)
    sign = bits >> np.uint64(31)
    code = np.where(sign == 1, ~bits & np.uint64(0xFFFFFFFF), bits | np.uint64(0x80000000))
    keys: NDArray[np.uint64] = (code << np.uint64(1)) | labels.astype(np.uint64)
    keys.sort()
    return keys


def auc_of_sorted(keys: NDArray[np.uint64]) -> float | None:
    """AUC from `sorted_scores`, in integers: half credits doubled, so that nothing is rounded."""
    clicked = (keys & np.uint64(1)).astype(np.int64)
    scores = keys >> np.uint64(1)
    starts = np.flatnonzero(np.concatenate([[True], scores[1:] != scores[:-1]]))
    clicks = np.add.reduceat(clicked, starts)
    sizes = np.diff(np.concatenate([starts, [len(keys)]]))
    others = sizes - clicks
    below = np.cumsum(others) - others
    total_clicks, total_others = int(clicks.sum()), int(others.sum())
    if total_clicks == 0 or total_others == 0:
        return None
    doubled = int((clicks * (2 * below + others)).sum())
    return doubled / (2 * total_clicks * total_others)


def _reliability(keys: NDArray[np.uint64]) -> tuple[ReliabilityBin, ...]:
    code = (keys >> np.uint64(1)).astype(np.uint32)
    bits = np.where(code >> np.uint32(31) == 1, code & np.uint32(0x7FFFFFFF), ~code)
    probability = 1.0 / (1.0 + np.exp(-np.clip(bits.view(np.float32).astype(np.float64), -700, 700)))
    labels = (keys & np.uint64(1)).astype(np.float64)
    bins = min(RELIABILITY_BINS, len(keys))
    edges = np.linspace(0, len(keys), bins + 1).astype(np.int64)
    return tuple(
        ReliabilityBin(int(b - a), float(probability[a:b].mean()), float(labels[a:b].mean()))
        for a, b in itertools.pairwise(edges)
    )


class RecentMetrics:
    """Loss and exact AUC over the last rows trained on, each scored before the model learnt from it."""

    def __init__(self, capacity: int = 65_536) -> None:
        self._logits = np.zeros(capacity, np.float32)
        self._labels = np.zeros(capacity, np.uint8)
        self._seen = 0

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Adds a batch; forgets the oldest rows beyond the capacity."""
        z, y = logits.detach().float().cpu().numpy(), labels.detach().cpu().numpy()
        capacity = len(self._logits)
        self._seen += max(len(z) - capacity, 0)  # as if the rows that do not fit had come and gone
        z, y = z[-capacity:], y[-capacity:]
        at = (self._seen + np.arange(len(z))) % capacity
        self._logits[at], self._labels[at] = z, y
        self._seen += len(z)

    def compute(self) -> tuple[float, float | None]:
        """(logloss, AUC) of the rows held; there must be some."""
        n = min(self._seen, len(self._logits))
        z, y = self._logits[:n], self._labels[:n]
        loss = np.logaddexp(0.0, z.astype(np.float64)) - z.astype(np.float64) * y
        return float(loss.mean()), auc(z, y)

    def state(self) -> dict[str, Tensor]:
        """Tensors for a checkpoint."""
        return {
            "recent_logits": torch.from_numpy(self._logits),
            "recent_labels": torch.from_numpy(self._labels),
            "recent_seen": torch.tensor([self._seen]),
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restores `state`."""
        self._logits = state["recent_logits"].numpy().copy()
        self._labels = state["recent_labels"].numpy().copy()
        self._seen = int(state["recent_seen"])
