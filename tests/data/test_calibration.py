"""Calibration: each measure recovers what generated data was made with; the real sample is matched."""

import json
from pathlib import Path

import numpy as np
import pytest

from recsys_opt.cli.main import main
from recsys_opt.data.calibration import calibrate, missing_patterns
from recsys_opt.data.calibration_ids import (
    effect_variance,
    expected_unseen,
    fleeting_share,
    frequencies,
    link_strength,
    trend,
    unseen_share,
)
from recsys_opt.data.calibration_integers import effect_table, factor_loadings, normal_scores, tie
from recsys_opt.data.compare import compare, load_table
from recsys_opt.data.descriptor import load_descriptor
from recsys_opt.data.sample import Sample, rank_by_frequency, read_sample
from recsys_opt.data.statistics import read_statistics, write_statistics
from recsys_opt.data.synth import SyntheticCriteo, write_dataset
from recsys_opt.errors import InputError

KAGGLE = load_descriptor("criteo_kaggle").cardinalities["kaggle"]


def test_frequencies_predict_distinct_ids_and_singletons() -> None:
    # A Zipf column of 50,000 ids, 40,000 draws: what is drawn from the fit has the same distinct ids (their
    # standard deviation is below 100 of 12,000).
    random = np.random.default_rng(0)
    weights = 1 / np.arange(1, 50_001) ** 1.05
    ids = random.choice(50_000, 40_000, p=weights / weights.sum()) + 1
    ranks = rank_by_frequency(ids, ids == 0)
    head, tail = frequencies(ranks, 50_000)
    assert len(head) + sum(n for n, _ in tail) == 50_000
    rates = np.repeat([*map(float, head), *(r for _, r in tail)], [1] * len(head) + [n for n, _ in tail])
    again = random.choice(50_000, 40_000, p=rates / rates.sum())
    counts, expected = np.bincount(again), np.bincount(ranks)[1:]
    assert (counts > 0).sum() == pytest.approx((expected > 0).sum(), rel=0.02)
    assert (counts == 1).sum() == pytest.approx((expected == 1).sum(), rel=0.03)


def test_link_strength_recovers_the_share_that_follows() -> None:
    random = np.random.default_rng(1)
    parent = random.integers(1, 300, 60_000)
    own = random.integers(1, 40, 60_000)
    child = np.where(random.random(60_000) < 0.6, parent % 37 + 1, own)
    assert link_strength(parent, child) == pytest.approx(0.6, abs=0.03)
    assert link_strength(parent, parent % 37 + 1) == 1.0
    assert link_strength(parent, own) < 0.1


def test_effect_variance_recovers_it() -> None:
    random = np.random.default_rng(2)
    rates = random.uniform(0.05, 0.45, 2000)
    ids = random.integers(0, 2000, 100_000)
    labels = (random.random(100_000) < rates[ids]).astype(np.int32)
    assert effect_variance(ids, labels) == pytest.approx(rates.var(), rel=0.1)
    assert effect_variance(ids, random.permutation(labels)) < 0.05 * rates.var()


def test_trend_is_zero_without_one() -> None:
    random = np.random.default_rng(3)
    still = random.integers(1, 51, 50_000)
    time = np.arange(50_000) / 50_000
    moving = np.where((random.random(50_000) < 2 * time - 1) & (still % 2 == 1), still + 1, still)
    assert trend(still, 50) < 0.05
    assert trend(moving, 50) > 0.2
    assert trend(still, 1) == 0.0


def test_fleeting_share_gives_the_unseen_share_wanted() -> None:
    random = np.random.default_rng(4)
    ids = random.integers(1, 20_001, 20_000)
    ids[15_000:] += 20_000  # nothing of the last quarter has been seen before
    head, tail = frequencies(rank_by_frequency(ids, ids == 0), 40_000)
    share = fleeting_share(ids, head, tail)
    heads, tails = np.array(head, dtype=float), np.array(tail)
    assert expected_unseen(heads, tails, 0.0, 0.0) < expected_unseen(heads, tails, 0.0, 0.9)
    wanted = min(unseen_share(ids), expected_unseen(heads, tails, 0.0, 1.0))
    assert expected_unseen(heads, tails, 0.0, share) == pytest.approx(wanted, abs=0.01)


def test_integer_measures() -> None:
    random = np.random.default_rng(5)
    factor = random.normal(size=20_000)
    values = np.exp(0.8 * factor[:, None] + 0.6 * random.normal(size=(20_000, 5)))
    values[random.random(20_000) < 0.2, 0] = np.nan
    scores = np.stack([normal_scores(values[:, j]) for j in range(5)], axis=1)
    loadings = factor_loadings(scores, 2)
    found = loadings @ loadings.T
    np.testing.assert_allclose(found[~np.eye(5, dtype=bool)], 0.64, atol=0.03)
    ids = np.stack(
        [random.integers(1, 1000, 20_000), np.digitize(factor, np.linspace(-2, 2, 50)) + 1], axis=1
    )
    column, share = tie(scores[:, 1], ids)
    assert column == 1
    assert share == pytest.approx(0.64, abs=0.05)


def test_effect_table_treats_missing_as_zero() -> None:
    values = np.array([np.nan, -3.0, 0.0, 100.0] * 5000)
    labels = np.array([0, 0, 0, 1] * 5000)
    edges, effects = effect_table(values, labels)
    assert edges == (0, 100)
    assert effects[0] < -1 < 1 < effects[1]


def test_patterns_of_single_rows_are_left_out() -> None:
    integers = np.zeros((100, 13))
    integers[:5, 0] = np.nan
    integers[7, 3] = np.nan  # one row's own pattern
    sample = Sample(np.zeros(100, dtype=np.int32), integers, np.ones((100, 26), dtype=np.int64), "")
    assert missing_patterns(sample) == ((0, 94), (1, 5))


def test_statistics_hold_no_rows(tmp_path: Path) -> None:
    # Ranks and counts only: a permutation of the ids' names changes nothing.
    statistics = read_statistics("criteo_kaggle")
    assert sum(c.num_embeddings for c in statistics.sparse) == sum(KAGGLE)
    assert all(n >= 4 for _, n in statistics.patterns)
    write_statistics(tmp_path / "s.json", statistics)
    assert read_statistics(tmp_path / "s.json") == statistics
    assert (tmp_path / "s.json").stat().st_size < 1_000_000


@pytest.mark.parametrize(
    ("cardinalities", "bayes_auc", "message"),
    [
        (KAGGLE[:25], 0.8, "25 cardinalities; there are 26"),
        ((1,) * 26, 0.8, "column C1 has .* a cardinality of 1 cannot hold"),
        (KAGGLE, 0.99, "Bayes AUC of 0.99"),
    ],
)
def test_bad_arguments(cardinalities: tuple[int, ...], bayes_auc: float, message: str) -> None:
    made = SyntheticCriteo(2000).rows(0, 2000)
    sample = Sample(made.labels.ravel(), made.integers.astype(float), made.sparse.astype(np.int64), "")
    with pytest.raises(InputError, match=message):
        calibrate(sample, cardinalities, name="x", bayes_auc=bayes_auc, source={})


@pytest.mark.slow
def test_calibrating_on_generated_rows_generates_alike(tmp_path: Path) -> None:
    # 60,000 generated rows as the sample; the tolerances are twice what one seed against another differs by.
    write_dataset(SyntheticCriteo(60_000, seed=11), tmp_path / "a")
    first = load_table(tmp_path / "a")
    assert first.integers is not None
    ids = np.stack([rank_by_frequency(c, c == 0) for c in first.ids.T], axis=1)
    sample = Sample(first.labels, first.integers, ids, "")
    statistics = calibrate(sample, KAGGLE, name="again", bayes_auc=0.8, source={})
    made = SyntheticCriteo(60_000, seed=12, profile=statistics)
    write_dataset(made, tmp_path / "b")
    second = load_table(tmp_path / "b")
    worst = compare(first, second)["worst"]
    assert worst["missing"]["difference"] < 0.01
    assert worst["top_1"]["difference"] < 0.03
    assert worst["unseen"]["difference"] < 0.03


@pytest.mark.slow
def test_the_real_sample_is_matched(criteo_sample: Path, tmp_path: Path) -> None:
    """The committed statistics are those of the sample, and rows generated from them are like it."""
    sample = read_sample(criteo_sample)
    statistics = read_statistics("criteo_kaggle")
    assert statistics.source["sha256_of_text"] == sample.sha256
    write_dataset(SyntheticCriteo(len(sample.labels), seed=21), tmp_path / "b")
    worst = compare(load_table(criteo_sample), load_table(tmp_path / "b"))["worst"]
    limits = {"missing": 0.005, "missing_integer": 0.005, "top_1": 0.03, "top_1_percent": 0.04,
              "top_10_percent": 0.04, "unseen": 0.03, "distinct": 0.2}  # fmt: skip
    for key, limit in limits.items():
        assert worst[key]["difference"] < limit, (key, worst[key])


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "d"
    assert main(["data", "synth", "--rows", "2000", "--out", str(out), "--seed", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 0.6 < found["bayes"]["test"]["auc"] < 0.95
    assert main(["data", "synth", "--rows", "2000", "--out", str(out), "--threads", "0"]) == 2
    assert main(["data", "synth", "--rows", "0", "--out", str(out)]) == 2
    assert main(["data", "calibrate", "x.tsv", "--out", "y.txt"]) == 2
    assert main(["data", "calibrate", "x.tsv", "--out", "y.json", "--cardinalities", "a,b"]) == 2
    assert main(["data", "tables", "--tables", "2", "--batch", "64", "--out", str(tmp_path / "t")]) == 0
    assert main(["data", "tables", "--tables", "2", "--batch", "64", "--batches", "3"]) == 2
    assert "published" in capsys.readouterr().out
