import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_opt import _access
from recsys_opt.bench.access_counting import zipf_ids
from recsys_opt.data.access_count import CountOptions, count_statistics
from recsys_opt.data.access_file import _members
from recsys_opt.data.access_groups import plan_groups
from recsys_opt.data.access_journal import AccessJournal
from recsys_opt.data.access_sampled import slots_for
from recsys_opt.data.access_statistics import AccessStatistics, TableStatistics
from recsys_opt.data.lookup_sources import ArraySource

ROWS, LOOKUPS = 300_007, 300_000  # a prime number of rows: any multiple of the ids is another order
SLOTS = (1 << 13, 1 << 11)


def sampled(ids, num_embeddings=ROWS, slots=SLOTS) -> TableStatistics:
    counters = _access.SampledCounters(num_embeddings, *slots)
    middle = len(ids) // 2
    assert counters.add(ids[:middle], False) is None
    assert counters.add(ids[middle:], True) is None
    return TableStatistics.from_sampled("t", len(ids), len(ids), counters, slots)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 40), max_size=200))
def test_while_all_rows_have_room_the_counts_are_exact(ids):
    ids = np.array(ids, dtype=np.int64)
    exact, found = TableStatistics.from_ids("t", 41, ids), sampled(ids, 41, (64, 16))
    assert found.sampling is None
    for (name, a), (_, b) in zip(_members([found]).items(), _members([exact]).items(), strict=True):
        assert a.tobytes() == b.tobytes(), name
    np.testing.assert_array_equal(found.ranking(), exact.ranking())
    np.testing.assert_array_equal(found.late_counts(), exact.late_counts())


def test_estimates_have_no_bias_and_the_error_that_is_told():
    """The same skewed ids, every time with other rows in the sample."""
    base = zipf_ids(ROWS, LOOKUPS, 1.05)
    exact = TableStatistics.from_ids("t", ROWS, base)
    at = np.array([0.001, 0.01, 0.05, 0.2]) * ROWS
    shares, errors, distinct, ones = [], [], [], []
    for trial in range(24):
        found = sampled(base * (2 * trial + 1) % ROWS)
        assert found.sampling is not None
        shares.append(found.curve_in_sample.share_of(at))
        errors.append([found.sampling.share_error_of(r, ROWS) for r in at])
        distinct.append(found.distinct)
        ones.append(dict(zip(found.counts, found.rows, strict=True))[1])
    trials = len(shares)
    true, told = exact.curve_in_sample.share_of(at), np.mean(errors, axis=0)
    spread = np.std(shares, axis=0)
    assert (np.abs(np.mean(shares, axis=0) - true) < 4 * told / np.sqrt(trials) + 0.002).all()
    assert ((0.5 * told < spread) & (spread < 2 * told)).all()
    assert np.mean(distinct) == pytest.approx(exact.distinct, rel=4 * np.std(distinct) / exact.distinct)
    assert np.mean(distinct) == pytest.approx(exact.distinct, rel=0.02)
    assert np.mean(ones) == pytest.approx(exact.rows[-1], rel=0.03)


def test_the_head_of_the_ranking_is_the_hottest_rows():
    ids = zipf_ids(ROWS, LOOKUPS, 1.05)
    found = sampled(ids)
    sampling = found.sampling
    counts = np.bincount(ids, minlength=ROWS)
    ranking, told = found.ranking(), found.row_counts()
    early, least, _ = found.packed.sampled(sampling.known)
    assert len(np.unique(ranking)) == len(ranking)
    head = ranking[: sampling.head_rows]
    # Every row with more than twice the error is in the head, and the head's counts keep their promise.
    assert set(np.flatnonzero(counts > 2 * sampling.head_error)) <= set(head)
    assert (counts[ranking] >= least).all()
    assert (told[: len(head)] >= counts[head]).all()
    assert (told[: len(head)] - counts[head] <= sampling.head_error).all()
    # Behind the head nothing is known of the order: the curve is straight.
    rest = found.curve.rows > sampling.head_rows
    slopes = found.curve.density()[np.flatnonzero(rest)[1:-1]]
    np.testing.assert_allclose(slopes, slopes[0], rtol=1e-6)
    assert (early <= counts[ranking]).all()


def test_merged_samples_are_those_of_one_pass(tmp_path):
    ids = zipf_ids(ROWS, LOOKUPS, 1.05)
    third = LOOKUPS // 3
    parts = [AccessStatistics.of([sampled(ids[i * third : (i + 1) * third])]) for i in range(3)]
    parts[0].save(tmp_path / "0.npz")
    parts[0] = AccessStatistics.load(tmp_path / "0.npz")
    merged, whole = AccessStatistics.merge(parts).tables["t"], sampled(ids)
    assert merged.sampling.level == whole.sampling.level
    assert (merged.lookups, merged.late_lookups) == (whole.lookups, whole.late_lookups)
    of_merged, of_whole = (
        {
            int(i): (int(e), int(late))
            for i, e, late in zip(t.ranking(), early, t.late_counts(), strict=True)
            if e + late
        }
        for t, early in ((t, t.packed.sampled(t.sampling.known)[0]) for t in (merged, whole))
    )
    assert of_merged == of_whole
    counts = np.bincount(ids, minlength=ROWS)
    head = merged.ranking()[: merged.sampling.head_rows]
    assert set(np.flatnonzero(counts > 2 * merged.sampling.head_error)) <= set(head)
    # An exact shard beside a sampled one.
    mixed = AccessStatistics.merge(
        [AccessStatistics.of([TableStatistics.from_ids("t", ROWS, ids)]), parts[1]]
    )
    assert mixed.tables["t"].sampling.level == whole.sampling.level
    assert mixed.tables["t"].lookups == LOOKUPS + third


def test_tables_beyond_the_memory_are_sampled_and_gone_on_with(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    large, small = zipf_ids(ROWS, 60_000, 1.05), rng.integers(0, 50, 60_000)
    np.save(tmp_path / "large.npy", large)
    np.save(tmp_path / "small.npy", small)
    source = ArraySource([tmp_path / "large.npy", tmp_path / "small.npy"])
    options = CountOptions(memory_bytes=120_000, passes=2)
    whole, _ = count_statistics(source, [ROWS, 50], tmp_path / "whole.npz", options)
    table = whole.table("large")
    assert table.sampling is not None
    assert whole.table("small").sampling is None
    assert AccessStatistics.load(tmp_path / "whole.npz").table("large").to_json() == table.to_json()
    # Interrupted after every block.
    monkeypatch.setattr("recsys_opt.data.lookup_sources.BLOCK_ROWS", 9000)
    options = CountOptions(memory_bytes=120_000, passes=2, state_every_s=0.0)
    monkeypatch.setattr("recsys_opt.data.access_count.STATE_SHARE", 1e9)
    saved = AccessJournal.save_state

    def save_and_stop(self, position, arrays):
        saved(self, position, arrays)
        raise KeyboardInterrupt

    out, runs = tmp_path / "s.npz", 0
    with monkeypatch.context() as patched:
        patched.setattr(AccessJournal, "save_state", save_and_stop)
        while not out.exists():
            runs += 1
            try:
                count_statistics(source, [ROWS, 50], out, options)
            except KeyboardInterrupt:
                assert runs < 40
    assert runs > 10
    again = AccessStatistics.load(out)
    assert again.sha256 == whole.sha256
    np.testing.assert_array_equal(again.table("large").ranking(), table.ranking())


SAMPLED = "sampled"


@pytest.mark.parametrize(
    ("sizes", "lookups", "memory", "passes", "expected"),
    [
        ([100, 50, 10], [None] * 3, 8 * 160, 1, [{0: None, 1: None, 2: None}]),
        ([100, 50, 10], [None] * 3, 8 * 100, 2, [{0: None}, {1: None, 2: None}]),
        ([100, 95, 10], [None] * 3, 8 * 100, 2, [{2: None}, {0: SAMPLED, 1: SAMPLED}]),
        ([101, 50, 10], [None] * 3, 8 * 100, 9, [{1: None, 2: None}, {0: SAMPLED}]),
        ([100, 90, 80], [999] * 3, 8 * 100, 1, [{0: SAMPLED, 1: SAMPLED, 2: SAMPLED}]),
        ([1 << 40, 90], [20, 20], 24 * 46 + 8 * 90, 1, [{0: (46, 16), 1: None}]),
    ],
)
def test_passes(sizes, lookups, memory, passes, expected):
    found = plan_groups(sizes, lookups, memory, passes)
    assert [list(dict(group)) for group in found] == [list(group) for group in expected]
    for group, wanted in zip(found, expected, strict=True):
        for table, slots in group:
            assert slots == (slots_for(memory // len(group)) if wanted[table] == SAMPLED else wanted[table])
