"""What generated rows are made of: frequencies, missing groups, dependences, drift, interactions.

One fixed seed; each tolerance is at least four standard deviations of the figure, or says what it is.
"""

import hashlib

import numpy as np
import pytest

import recsys_opt._synth as _synth
from recsys_opt.data.calibration_ids import unseen_share
from recsys_opt.data.criteo import SPARSE_COLUMNS
from recsys_opt.data.statistics import Statistics, read_statistics
from recsys_opt.data.synth import Rows, SyntheticCriteo
from recsys_opt.data.synth_model import cells, deal, dependence_tables, partner_odds

N = 200_000
EXACT = [
    ("C3", "C12"), ("C12", "C21"), ("C21", "C16"), ("C16", "C4"), ("C4", "C24"), ("C3", "C24"),
    ("C7", "C9"), ("C11", "C13"), ("C15", "C14"), ("C15", "C18"), ("C18", "C2"), ("C15", "C2"),
]  # fmt: skip


@pytest.fixture(scope="module")
def statistics() -> Statistics:
    return read_statistics("criteo_kaggle")


@pytest.fixture(scope="module")
def rows() -> Rows:
    return SyntheticCriteo(N, seed=8).rows(0, N)


@pytest.fixture(scope="module")
def ids(rows: Rows, statistics: Statistics) -> np.ndarray:
    """Ids with 0 for "missing" in every column."""
    return rows.sparse + np.array([c.never_missing for c in statistics.sparse])


@pytest.mark.parametrize(("fine", "coarse"), EXACT)
def test_functional_dependences_are_exact(ids: np.ndarray, fine: str, coarse: str) -> None:
    a, b = ids[:, SPARSE_COLUMNS.index(fine)], ids[:, SPARSE_COLUMNS.index(coarse)]
    present = (a > 0) & (b > 0)
    pairs = np.unique(np.stack([a[present], b[present]], axis=1), axis=0)
    assert len(pairs) == len(np.unique(pairs[:, 0]))
    assert len(np.unique(pairs[:, 1])) > 1  # the coarse column says something


def test_missing_columns_come_in_groups(rows: Rows, ids: np.ndarray, statistics: Statistics) -> None:
    missing = np.concatenate([rows.integers == _synth.MISSING, ids == 0], axis=1)
    total = sum(n for _, n in statistics.patterns)
    for column in range(39):
        share = sum(n for mask, n in statistics.patterns if mask >> column & 1) / total
        assert abs(missing[:, column].mean() - share) < 4 * np.sqrt(share * (1 - share) / N) + 1e-9
    c3, c19 = 13 + 2, 13 + 18
    for other in (3, 11, 15, 20, 23):
        np.testing.assert_array_equal(missing[:, c3], missing[:, 13 + other])
    for other in (19, 24, 25):
        np.testing.assert_array_equal(missing[:, c19], missing[:, 13 + other])


@pytest.mark.parametrize("column", ["C1", "C3", "C5", "C8", "C10", "C22"])
def test_columns_drawn_by_themselves_have_their_frequencies(
    ids: np.ndarray, statistics: Statistics, column: str
) -> None:
    c = SPARSE_COLUMNS.index(column)
    of = cells(statistics.sparse[c])
    present = ids[ids[:, c] > 0, c]
    cell = np.searchsorted(of.first, present, side="right") - 1
    seen = np.bincount(cell, minlength=len(of.mass)) / len(present)
    # All cells in twenty groups; trends move frequent ids to neighbours, within a group but for its borders.
    for group in np.array_split(np.arange(len(of.mass)), min(20, len(of.mass) // 2)):
        expected = float(of.mass[group].sum())
        deviation = 4 * np.sqrt(expected * (1 - expected) / len(present))
        assert abs(float(seen[group].sum()) - expected) < deviation + 0.01 * expected + 1e-9


def test_integers_have_their_quantiles(rows: Rows, statistics: Statistics) -> None:
    for j, column in enumerate(statistics.dense):
        present = rows.integers[rows.integers[:, j] != _synth.MISSING, j]
        if len(present) < 10_000:
            continue
        for q in (0.25, 0.5, 0.9):
            value = column.quantiles[int(q * (len(column.quantiles) - 1))]
            # The frequent ids of the column it is tied to move the whole distribution, by up to 5 points.
            assert (present < value).mean() <= q + 0.05
            assert (present <= value).mean() >= q - 0.05


def test_integers_are_correlated_as_their_loadings_say(rows: Rows, statistics: Statistics) -> None:
    i7, i11 = rows.integers[:, 6], rows.integers[:, 10]
    both = (i7 != _synth.MISSING) & (i11 != _synth.MISSING)
    ranks = [np.argsort(np.argsort(x[both], kind="stable"), kind="stable") for x in (i7, i11)]
    expected = np.dot(statistics.dense[6].loadings, statistics.dense[10].loadings)
    # Ties weaken the correlation of few distinct values.
    assert 0.6 * expected < np.corrcoef(*ranks)[0, 1] < 1.1 * expected
    assert expected > 0.5


def test_ids_drift(ids: np.ndarray) -> None:
    random = np.random.default_rng(0)
    for column in ("C3", "C12", "C21", "C16"):
        c = SPARSE_COLUMNS.index(column)
        # .5 point is four standard deviations of the difference of two shares of 20,000 rows near .35
        assert unseen_share(ids[:, c]) > unseen_share(random.permutation(ids[:, c])) + 0.002
    c23 = ids[:, SPARSE_COLUMNS.index("C23")]

    def change(column: np.ndarray) -> float:
        tenth = N // 10
        ends = [np.bincount(part, minlength=16) / tenth for part in (column[:tenth], column[-tenth:])]
        return float(0.5 * np.abs(ends[0] - ends[1]).sum())

    assert change(c23) > 2 * np.mean([change(random.permutation(c23)) for _ in range(10)])


def test_click_rate_depends_on_ids_and_on_their_pairs(rows: Rows, ids: np.ndarray) -> None:
    logit = np.log(rows.probabilities / (1 - rows.probabilities)).ravel()
    c17, c14 = ids[:, SPARSE_COLUMNS.index("C17")], ids[:, SPARSE_COLUMNS.index("C14")]

    def explained(groups: np.ndarray) -> float:
        counts = np.bincount(groups)
        means = np.bincount(groups, weights=logit) / np.maximum(counts, 1)
        return float((counts * (means - logit.mean()) ** 2).sum() / len(logit) / logit.var())

    alone = explained(c17) + explained(c14)
    assert alone > 0.02
    # 260 groups explain .0013 of a variance by chance, with a standard deviation of .0001.
    assert explained(c17 * 100 + c14) > alone + 0.002


def test_rows_are_independent_of_their_neighbours(rows: Rows) -> None:
    # Correlations of 200,000 independent pairs have a standard deviation of .0022.
    y, x = rows.labels.ravel().astype(float), np.log1p(rows.sparse[:, 9].astype(float))
    for lag in (1, 2, 3, 64, 512, 4096):
        for a, b in ((y, y), (x, x), (y, x)):
            assert abs(np.corrcoef(a[:-lag], b[lag:])[0, 1]) < 0.011
    unrelated = np.log1p(rows.sparse[:, 0].astype(float)), np.log1p(rows.sparse[:, 7].astype(float))
    assert abs(np.corrcoef(*unrelated)[0, 1]) < 0.011


def test_deal_gives_each_child_its_frequency(statistics: Statistics) -> None:
    by_name = {c.name: c for c in statistics.sparse}
    for fine, coarse in (("C3", "C12"), ("C15", "C14"), ("C7", "C9")):
        parent, child = cells(by_name[fine]), cells(by_name[coarse])
        assigned, left = deal(parent, child, exact=True)
        dealt = assigned >= 0
        taken = np.bincount(assigned[dealt], weights=parent.mass[dealt], minlength=len(child.mass))
        assert (left >= 0).all()
        assert np.abs(taken + left - child.mass).sum() < 0.02
        assert taken.sum() > 0.05


def test_a_parent_too_frequent_for_any_child_is_left_out(statistics: Statistics) -> None:
    by_name = {c.name: c for c in statistics.sparse}
    tables = dependence_tables(cells(by_name["C10"]), cells(by_name["C7"]), 0.5)
    assert tables["assigned"][0] == _synth.UNLINKED  # 22 % of the rows against 2 %
    assert tables["strength"] > 0.5


def test_partners_give_back_what_they_take() -> None:
    mass = np.array([0.3, 0.2, 0.1, 0.1, 0.05])
    odds = partner_odds(mass, 0.8, np.random.default_rng(0)).astype(np.float64)
    assert len(odds) == 4
    np.testing.assert_allclose(odds[0::2] * mass[0:4:2], -odds[1::2] * mass[1:4:2], rtol=1e-6)
    assert np.abs(odds).max() <= 0.8 + 1e-6


def test_the_same_settings_give_the_rows_they_always_gave() -> None:
    """Fails where ids or labels change: raise GENERATOR_VERSION then, and this sum with it."""
    made = SyntheticCriteo(5000, seed=42, profile=_plain_profile()).rows(1000, 3000)
    digest = hashlib.sha256(made.sparse.tobytes() + made.labels.tobytes()).hexdigest()
    assert digest == "ecbdc8f2424246de89befe0a6495c1d1e29e9345c41d0e511578b7817eebf2e3"


def _plain_profile() -> Statistics:
    """The shipped profile's structure with figures of its own, so that a new calibration changes nothing."""
    document = read_statistics("criteo_kaggle").to_json()
    for column in document["sparse"]:
        ids = min(column["num_embeddings"], 1000) - (not column["never_missing"])
        column["num_embeddings"] = ids + (not column["never_missing"])
        column["head"], column["tail"] = [100] * min(ids, 8), [[ids - 8, 0.5]] if ids > 8 else []
        column |= {"trend": 0.5, "fleeting": 0.3, "effect": 0.3}
        if column["dependence"]:
            column["dependence"]["strength"] = 1.0 if column["name"] in ("C12", "C9") else 0.5
    for column in document["dense"]:
        column["quantiles"] = list(range(0, 100, 5))
        column |= {"loadings": [0.5, 0.25, 0, 0], "tied_to": "C3", "tie": 0.25}
        column |= {"effect_edges": [0, 50], "effects": [-0.25, 0.25]}
    document["patterns"] = [[0, 3], [1, 1], [(1 << 15) | (1 << 24), 1]]
    return Statistics.from_json(document | {"effect_scale": 1.0, "interaction_scale": 0.25, "bias": -1.0})
