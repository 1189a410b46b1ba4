import numpy as np
import pytest

from recsys_opt.access import DEFAULT_HALF_KNOWN, TableAccess
from recsys_opt.errors import InputError


def test_the_histogram_keeps_every_lookup():
    access = TableAccess.from_counts("t", np.array([0, 3, 1, 0, 3, 1, 7]))
    assert list(access.counts) == [7, 3, 1]
    assert list(access.ids) == [1, 2, 2]
    assert (access.lookups, access.distinct) == (15, 5)
    assert access.half_known == DEFAULT_HALF_KNOWN


def test_a_table_that_nothing_looks_up_has_no_value():
    for clicks in (None, np.zeros(5)):
        access = TableAccess.from_counts("t", np.zeros(5, dtype=np.int64), clicks)
        assert (access.lookups, access.distinct, access.total_value, access.value_lost(1.0)) == (0, 0, 0, 0)


def test_the_effect_of_ids_on_the_label_is_found_again():
    random = np.random.default_rng(0)
    counts = random.integers(1, 400, 5000)
    for spread in (0.05, 0.15):
        rates = np.clip(random.normal(0.4, spread, 5000), 0, 1)
        access = TableAccess.from_counts("t", counts, random.binomial(counts, rates))
        assert access.effect == pytest.approx(rates.var() / (0.4 * 0.6), rel=0.1)
        assert access.half_known == pytest.approx(1 / access.effect)


def test_ids_without_effect_get_no_more_than_chance_allows():
    random = np.random.default_rng(1)
    counts = random.integers(1, 50, 2000)
    access = TableAccess.from_counts("t", counts, random.binomial(counts, 0.3))
    assert access.effect < 4 / np.sqrt(2000) / counts.mean() * 2
    assert access.half_known > 200


def test_labels_that_are_all_alike_say_nothing():
    counts = np.array([3, 4, 5])
    for clicks in (np.zeros(3), counts):
        assert TableAccess.from_counts("t", counts, clicks).total_value == 0


def test_value_lost_is_the_sum_over_ids():
    counts = np.repeat([900, 40, 40, 7, 1], [1, 2, 30, 200, 3000])
    access = TableAccess.from_counts("t", counts)
    value = counts / counts.sum() * counts / (counts + DEFAULT_HALF_KNOWN)
    assert access.total_value == pytest.approx(value.sum())
    place = np.arange(len(counts)) + 0.5  # the middle of each id's stretch of the integral
    for rows in (5.0, 80.0, 3000.0):
        assert access.value_lost(rows) == pytest.approx((value * place / (place + rows)).sum(), rel=0.02)


def test_more_rows_lose_less_and_rare_ids_have_least_to_lose():
    access = TableAccess.from_counts("t", np.repeat([100, 1], [10, 1000]))
    lost = [access.value_lost(rows) for rows in (0.1, 1.0, 10.0, 1e3, 1e6)]
    assert lost == sorted(lost, reverse=True)
    assert lost[-1] < 1e-3 * access.total_value
    # As many lookups in each half, but those of ids seen once are hardly learned.
    assert access.value()[0] * 10 > 10 * access.value()[1] * 1000


def test_impossible_labels_are_refused():
    with pytest.raises(InputError, match="table t"):
        TableAccess.from_counts("t", np.array([2, 3]), np.array([1, 4]))
