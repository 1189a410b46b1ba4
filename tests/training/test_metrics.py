import itertools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from recsys_opt.errors import InputError, RecsysOptError
from recsys_opt.training.metrics import MetricAccumulator, Metrics, RecentMetrics, auc, compute_metrics

floats = st.floats(-50, 50, width=32).map(lambda z: np.float32(z if abs(z) > 1e-6 else 0)) | st.sampled_from(
    [0.0, -0.0, 1.0, -1.0]
)
rows = st.integers(1, 60).flatmap(
    lambda n: st.tuples(
        hnp.arrays(np.float32, n, elements=floats), hnp.arrays(np.uint8, n, elements=st.integers(0, 1))
    )
)


def auc_by_definition(logits, labels):
    pairs = [
        1.0 if a > b else 0.5 if a == b else 0.0
        for a in logits[labels == 1].tolist()
        for b in logits[labels == 0].tolist()
    ]
    return sum(pairs) / len(pairs) if pairs else None


@given(rows)
def test_auc_is_its_definition(data):
    logits, labels = data
    expected = auc_by_definition(logits, labels)
    found = auc(logits, labels)
    assert found == expected if expected is None else found == pytest.approx(expected, abs=1e-12)


def test_auc_of_many_rows_with_few_scores():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200_000).astype(np.uint8)
    logits = (rng.integers(0, 7, 200_000) + labels).astype(np.float32)
    clicked = np.bincount(logits[labels == 1].astype(int), minlength=8).astype(float)
    others = np.bincount(logits[labels == 0].astype(int), minlength=8).astype(float)
    wins = sum(clicked[i] * (others[:i].sum() + 0.5 * others[i]) for i in range(8))
    assert auc(logits, labels) == pytest.approx(wins / (clicked.sum() * others.sum()), abs=1e-14)


@given(rows)
def test_the_others_are_their_definitions(data):
    logits, labels = data
    found = compute_metrics(logits, labels)
    z, y = logits.astype(float), labels.astype(float)
    p = 1 / (1 + np.exp(-z))
    if (abs(z) < 15).all():  # beyond, this plain formula loses its digits
        loss = -np.mean([math.log(q) if t else math.log1p(-q) for q, t in zip(p, y, strict=True)])
        assert found.logloss == pytest.approx(loss, rel=1e-8)
    rate = y.mean()
    assert found.click_rate == pytest.approx(rate)
    assert found.accuracy == np.mean((p > 0.5) == (y == 1))
    if 0 < rate < 1:
        entropy = -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate))
        assert found.normalised_entropy == pytest.approx(found.logloss / entropy)
    else:
        assert found.normalised_entropy is None
        assert found.auc is None
    if rate:
        assert found.calibration == pytest.approx(p.sum() / y.sum())
    else:
        assert found.calibration is None
    bins = found.reliability
    assert sum(b.rows for b in bins) == len(y)
    assert sum(b.rows * b.mean_prediction for b in bins) == pytest.approx(p.sum(), abs=1e-9)
    assert sum(b.rows * b.click_rate for b in bins) == pytest.approx(y.sum(), abs=1e-9)
    assert all(a.mean_prediction <= b.mean_prediction + 1e-12 for a, b in itertools.pairwise(bins))


def test_extreme_logits_stay_finite():
    found = compute_metrics(np.array([1e6, -1e6], np.float32), np.array([0, 1], np.uint8))
    assert found.logloss == pytest.approx(1e6)
    assert found.auc == 0
    json.dumps(found.to_json(), allow_nan=False)


def test_a_diverged_model_is_an_error_naming_the_row():
    with pytest.raises(RecsysOptError, match="row 1 is nan"):
        auc(np.array([0, np.nan], np.float32), np.array([0, 1], np.uint8))
    with pytest.raises(InputError, match="no rows"):
        MetricAccumulator().compute()


def test_accumulator_is_the_whole_at_once():
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(1000, generator=g)
    labels = (torch.rand(1000, generator=g) < 0.3).float()
    accumulator = MetricAccumulator()
    for start in range(0, 1000, 130):
        accumulator.update(logits[start : start + 130], labels[start : start + 130])
    found = accumulator.compute()
    assert found == compute_metrics(logits.numpy(), labels.numpy().astype(np.uint8))
    assert Metrics.from_json(json.loads(json.dumps(found.to_json()))) == found


@pytest.mark.parametrize("batch", [1, 7, 10, 25])
def test_recent_rows_are_the_last_ones(batch):
    g = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(50, generator=g), torch.randint(0, 2, (50,), generator=g).float()
    recent = RecentMetrics(capacity=10)
    for start in range(0, 50, batch):
        recent.update(logits[start : start + batch], labels[start : start + batch])
    last = compute_metrics(logits[-10:].numpy(), labels[-10:].numpy().astype(np.uint8))
    assert recent.compute() == (pytest.approx(last.logloss), last.auc)
    again = RecentMetrics(capacity=10)
    again.load_state(recent.state())
    for r in (recent, again):
        r.update(logits[:4], labels[:4])
    assert recent.compute() == again.compute()
