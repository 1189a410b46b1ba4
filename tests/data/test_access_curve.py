import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_opt.data.access_curve import (
    AccessCurve,
    curve_rows,
    in_sample,
    leave_one_out,
    random_halves,
    time_halves,
)
from recsys_opt.data.access_table import (
    TableStatistics,
    expected_dead_rows,
    values_before_hashing,
)
from recsys_opt.errors import InputError


def classes(counts):
    """(Numbers of lookups descending, rows of each) of counts by row."""
    values, rows = np.unique(counts[counts > 0], return_counts=True)
    return values[::-1].astype(np.int64), rows[::-1].astype(np.int64)


@pytest.mark.parametrize("num_embeddings", [1, 2, 63, 64, 65, 66, 1000, 40_000_000])
def test_points_are_every_rank_first_then_sixteen_an_octave(num_embeddings):
    rows = curve_rows(num_embeddings)
    assert rows[0] == 0
    assert rows[-1] == num_embeddings
    exact = min(64, num_embeddings)
    np.testing.assert_array_equal(rows[: exact + 1], np.arange(exact + 1))
    assert (np.diff(rows) > 0).all()
    assert (rows[65:] / rows[64:-1] <= 2 ** (1 / 16) * (1 + 1 / 64)).all()


@settings(max_examples=60)
@given(st.lists(st.integers(0, 2000), min_size=1, max_size=300), st.integers(0, 500))
def test_every_curve_is_concave_from_0_to_1(counts, more):
    counts = np.array(counts)
    num_embeddings = len(counts) + more
    for curve in (
        in_sample(*classes(counts), num_embeddings),
        leave_one_out(*classes(counts), num_embeddings),
        random_halves(*classes(counts), num_embeddings, 0.3),
    ):
        assert curve.num_embeddings == num_embeddings
        assert curve.share[-1] == 1
        assert (np.diff(curve.share) >= 0).all()
        assert (np.diff(curve.density()) <= 1e-10).all()


@settings(max_examples=60)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=12), st.integers(0, 5))
def test_leave_one_out_is_what_its_name_says(counts, more):
    """Against the definition: take each lookup away, rank by the others, ties evenly; then the hull."""
    counts = np.array([*counts, *[0] * more])
    total = counts.sum()
    if not total:
        return
    met = np.zeros(len(counts) + 1)
    for row in range(len(counts)):
        others = counts.copy()
        others[row] -= 1
        if counts[row] == 0:
            continue
        above, level = int((others > others[row]).sum()), int((others == others[row]).sum())
        for rank in range(above, above + level):
            met[rank + 1] += counts[row] / total / level
    share = np.cumsum(met)
    hull = share.copy()
    for a in range(len(share)):
        for b in range(a + 1, len(share)):
            line = np.arange(a, b + 1)
            hull[a : b + 1] = np.maximum(hull[a : b + 1], np.interp(line, [a, b], [share[a], share[b]]))
    found = leave_one_out(*classes(counts), len(counts))
    np.testing.assert_allclose(found.share, hull, atol=1e-12)


def test_leave_one_out_meets_the_truth_and_the_others_miss_it():
    rng = np.random.default_rng(3)
    rows, lookups = 200_000, 100_000
    rate = np.arange(1, rows + 1) ** -1.05
    rate /= rate.sum()
    counts = rng.multinomial(lookups, rate)
    order = np.lexsort((rng.permutation(rows), -counts))
    truth = np.append(0, np.cumsum(rate[order]))
    loo, seen, halves = (
        estimate(*classes(counts), rows) for estimate in (leave_one_out, in_sample, random_halves)
    )
    at = loo.rows.astype(int)
    assert np.abs(loo.share - truth[at]).max() < 0.01
    assert (seen.share - truth[at]).max() > 0.1
    assert (truth[at] - halves.share).max() > 0.03


def test_random_halves_are_what_splitting_at_random_gives():
    rng = np.random.default_rng(4)
    counts = rng.poisson(rng.pareto(1.1, 3000) * 2)
    later = rng.binomial(counts[None, :], 0.4, (400, len(counts)))
    rows = curve_rows(len(counts)).astype(int)
    share = np.zeros(len(rows))
    for late in later:
        order = np.lexsort((rng.permutation(len(counts)), late - counts))
        share += np.append(0, np.cumsum(late[order]))[rows] / late.sum() / len(later)
    found = random_halves(*classes(counts), len(counts), 0.4)
    np.testing.assert_allclose(found.share, share, atol=0.004)


def test_time_halves_by_definition():
    early = np.array([5, 5, 2, 1])  # and a row that is new in the later half
    curve = time_halves(np.array([2, 1, 1]), np.array([6, 2, 1]), 10, 8)
    assert len(early) == 4
    np.testing.assert_allclose(curve.share_of([1, 2, 3, 4, 8]), [0.3, 0.6, 0.8, 0.9, 1.0])


def test_drift_is_what_the_later_half_misses_and_the_forecast_is_less_by_it():
    rng = np.random.default_rng(6)
    first, second = (1000 * rng.random((2, 20_000)) ** 3).astype(np.int64)
    still = TableStatistics.from_ids("t", 4000, np.concatenate([first, second]))
    moved = TableStatistics.from_ids("t", 4000, np.concatenate([first, first + 1000]))
    assert still.drift < 0.02
    assert moved.drift > 0.5
    left_out = leave_one_out(moved.counts, moved.rows, 4000)
    assert moved.curve.share_of(400) < left_out.share_of(400) - 0.3
    assert abs(still.curve.share_of(400) - leave_one_out(still.counts, still.rows, 4000).share_of(400)) < 0.02


def test_the_birthday_paradox_tells_values_from_rows():
    rng = np.random.default_rng(7)
    for values in (200, 1000, 3000):
        seen = np.mean([len(np.unique(rng.integers(0, 1000, values))) for _ in range(50)])
        assert expected_dead_rows(values, 1000) == pytest.approx(1000 - seen, abs=3)
        assert values_before_hashing(round(seen), 1000) == pytest.approx(values, rel=0.05)
    assert expected_dead_rows(10**6, 10**6) == pytest.approx(10**6 / np.e, rel=1e-5)
    assert values_before_hashing(10, 10) == np.inf


def test_share_and_rows_are_inverses():
    curve = in_sample(np.array([50, 10, 1]), np.array([1, 3, 20]), 1000)
    for share in (0.1, 0.5, 0.77, 0.99):
        assert curve.share_of(curve.rows_for(share)) == pytest.approx(share)
    assert curve.rows_for(0) == 0
    assert curve.rows_for(1) <= 1000


def test_nothing_seen_means_every_row_alike():
    none = np.zeros(0, np.int64)
    for estimate in (in_sample, leave_one_out, random_halves):
        assert estimate(none, none, 300).share_of(75) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("rows", "share"),
    [([0, 1, 2], [0, 0.2, 1]), ([0, 2, 1], [0, 0.5, 1]), ([0, 1], [0, 0.5]), ([0, 1, 2], [0, 1.2, 1])],
)
def test_what_is_no_curve_is_refused(rows, share):
    with pytest.raises(InputError, match="curve must"):
        AccessCurve(np.array(rows, dtype=float), np.array(share, dtype=float))
