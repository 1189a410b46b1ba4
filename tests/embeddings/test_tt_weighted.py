import math

import numpy as np
import pytest
import torch

from recsys_opt import TTEmbeddingBag
from recsys_opt.embeddings import tt_weighted
from recsys_opt.embeddings.tt_weighted import pull_to_zero
from recsys_opt.errors import InputError

SHAPE = dict(tt_p_shapes=[12, 15, 16], tt_q_shapes=[2, 2, 4])
ROWS = 2875  # the last prefix is not whole


def table(noise=0.3) -> torch.Tensor:
    torch.manual_seed(0)
    bag = TTEmbeddingBag(ROWS, 16, 5, dtype=torch.float64, **SHAPE)
    bag.reset_parameters(1.0)
    made = bag.materialize().detach()
    return made + noise * torch.randn_like(made)


def zipf() -> torch.Tensor:
    return 1.0 / (1 + torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))).double() ** 1.05


def weighted_error(bag, rows, weights) -> float:
    missed = (bag.materialize().detach() - rows).square().sum(1)
    weights = weights.to(missed.dtype)
    return math.sqrt(float(weights @ missed) / float(weights @ rows.square().sum(1)))


@pytest.mark.parametrize("method", ["exact", "streaming", "randomised"])
def test_heavy_rows_come_out_closer(method):
    rows, weights = table(), zipf()
    plain = TTEmbeddingBag.from_pretrained(rows, 6, method=method, **SHAPE)
    bag = TTEmbeddingBag.from_pretrained(
        rows, 6, method=method, row_weights=weights, work_bytes=2 << 20, **SHAPE
    )
    assert bag.fit_report.weighted_error == pytest.approx(weighted_error(bag, rows, weights), rel=1e-6)
    assert bag.fit_report.weighted_error < 0.93 * weighted_error(plain, rows, weights)
    assert plain.fit_error < bag.fit_error < 1.2 * plain.fit_error
    hot = weights.argsort(descending=True)[:50]
    errors = [float((b.materialize().detach()[hot] - rows[hot]).norm()) for b in (plain, bag)]
    assert errors[1] < 0.9 * errors[0]


@pytest.mark.parametrize("rank", [2, 5])
def test_a_train_is_found_again_from_the_rows_that_were_looked_up(rank):
    """Half of the rows are noise, of weight 0."""
    torch.manual_seed(0)
    bag = TTEmbeddingBag(ROWS, 16, rank, dtype=torch.float64, **SHAPE)
    bag.reset_parameters(1.0)
    rows = bag.materialize().detach().clone()
    seen = torch.rand(ROWS) < 0.5
    rows[~seen] = torch.randn(int((~seen).sum()), 16, dtype=torch.float64)
    weights = torch.where(seen, 0.5 + torch.rand(ROWS), 0.0)
    found = TTEmbeddingBag.from_pretrained(rows, rank, row_weights=weights, **SHAPE)
    assert found.fit_report.weighted_error < 1e-4
    assert found.fit_report.rows_fitted == int(seen.sum())
    assert weighted_error(TTEmbeddingBag.from_pretrained(rows, rank, **SHAPE), rows, weights) > 0.3


def test_equal_weights_come_to_the_plain_error():
    """TT-SVD is not the best of its ranks, though nearly."""
    rows = table()
    plain = TTEmbeddingBag.from_pretrained(rows, 6, **SHAPE)
    equal = TTEmbeddingBag.from_pretrained(rows, 6, row_weights=torch.full((ROWS,), 7.0), **SHAPE)
    assert equal.fit_error <= plain.fit_error
    assert equal.fit_error == pytest.approx(plain.fit_error, rel=0.01)
    assert equal.fit_report.weighted_error == pytest.approx(equal.fit_error, rel=1e-6)


def test_rows_never_looked_up_come_out_small_where_many_were_once():
    """As counts of lookups have it: then lookups to come meet many new rows."""
    rows = table()
    counts = (torch.arange(ROWS) % 4 == 0).float() * (1 + (torch.arange(ROWS) % 8 == 0).float())
    never = counts == 0
    sizes = []
    for weights in (counts, 3 * counts):  # no row has been seen once: no pull
        bag = TTEmbeddingBag.from_pretrained(rows, 6, row_weights=weights, **SHAPE)
        sizes.append(float(bag.materialize().detach()[never].square().mean().sqrt()))
    assert sizes[0] < 0.5 * sizes[1]
    assert pull_to_zero(counts) == pytest.approx(int((counts == 1).sum()) * 0.75, rel=0.01)
    assert pull_to_zero(3 * counts) == 0


def test_a_sample_of_the_rows_stands_for_all(monkeypatch):
    rows, weights = table(0.1), zipf()
    every = TTEmbeddingBag.from_pretrained(rows, 4, row_weights=weights, **SHAPE)
    assert every.fit_report.rows_fitted == ROWS
    monkeypatch.setattr(tt_weighted, "MOST_ROWS", 1000)
    some = TTEmbeddingBag.from_pretrained(rows, 4, row_weights=weights, seed=3, **SHAPE)
    assert 900 < some.fit_report.rows_fitted < 1100
    assert some.fit_report.weighted_error < 1.5 * every.fit_report.weighted_error


def test_the_sample_s_weights_come_to_the_table_s():
    weights = torch.rand(5000, generator=torch.Generator().manual_seed(0)) ** 40
    weights[::7] = 0
    totals = []
    for seed in range(40):
        ids, counted = tt_weighted._sample(weights, 300, seed)
        assert 220 < len(ids) < 380
        assert torch.equal(ids, ids.unique())
        assert set(weights.topk(20).indices.tolist()) <= set(ids.tolist())
        totals.append(float(counted.sum()))
    assert sum(totals) / 40 == pytest.approx(float(weights.sum()), rel=0.02)


def test_files_too(tmp_path):
    rows, weights = table().float(), zipf()
    np.save(tmp_path / "t.npy", rows.numpy())
    bags = [
        TTEmbeddingBag.from_pretrained(
            w, 6, method="streaming", row_weights=weights, work_bytes=2 << 20, **SHAPE
        )
        for w in (rows, tmp_path / "t.npy")
    ]
    torch.testing.assert_close(bags[0].materialize(), bags[1].materialize())


def test_refusals():
    rows = table()
    for weights, more, message in [
        (torch.ones(3), {}, r"row_weights has shape \[3\]; the table has 2875 rows"),
        (-torch.ones(ROWS), {}, r"row_weights\[0\] = -1.0"),
        (torch.full((ROWS,), math.nan), {}, r"row_weights\[0\] = nan"),
        (torch.zeros(ROWS), {}, "all 0"),
    ]:
        with pytest.raises(InputError, match=message):
            TTEmbeddingBag.from_pretrained(rows, 6, row_weights=weights, **more)
    with pytest.raises(InputError, match="a tolerance is about the plain error"):
        TTEmbeddingBag.from_pretrained(rows, tolerance=0.5, row_weights=torch.ones(ROWS))
    with pytest.raises(InputError, match="row_weights need a further pass"):
        TTEmbeddingBag.from_pretrained(
            iter([rows]), 6, num_embeddings=ROWS, row_weights=torch.ones(ROWS), method="randomised"
        )
