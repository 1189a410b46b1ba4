"""A profile with other table sizes: the sizes are those, and what was said of the columns goes with them."""

import numpy as np
import pytest

from recsys_opt.data.descriptor import published_cardinalities
from recsys_opt.data.statistics import read_statistics
from recsys_opt.data.synth import SyntheticCriteo, dataset_hash, write_dataset
from recsys_opt.data.synth_model import cells
from recsys_opt.data.synth_resize import resized
from recsys_opt.errors import InputError

KAGGLE = read_statistics("criteo_kaggle")


@pytest.mark.parametrize("setting", ["terabyte-10m", "terabyte-40m", "mlperf-v2", "kaggle"])
def test_columns_have_the_published_sizes_and_their_shapes(setting):
    found = resized(KAGGLE, setting)
    assert tuple(c.num_embeddings for c in found.sparse) == published_cardinalities()[setting]
    assert [c.name for c in found.sparse] == [c.name for c in KAGGLE.sparse]
    by_size = [sorted(s.sparse, key=lambda c: c.num_embeddings) for s in (KAGGLE, found)]
    for before, after in zip(*by_size, strict=True):
        assert (after.fleeting, after.trend, after.effect) == (before.fleeting, before.trend, before.effect)
        head = min(len(before.head), len(after.head))
        assert after.head[:head] == before.head[:head]
        if before.num_embeddings > 100_000:
            # The frequent ids take what they took, and so do the rarer ones, tenth by tenth.
            of_head = [cells(c).mass[: len(c.head)].sum() for c in (before, after)]
            assert of_head[1] == pytest.approx(of_head[0], rel=0.01)
            places = [np.cumsum(cells(c).width) / c.num_embeddings for c in (before, after)]
            shares = [np.cumsum(cells(c).mass) for c in (before, after)]
            grid = np.linspace(0.05, 1, 20)
            curves = [np.interp(grid, p, s) for p, s in zip(places, shares, strict=True)]
            np.testing.assert_allclose(curves[1], curves[0], atol=0.02)
        rates = [rate for _, rate in after.tail]
        assert rates == sorted(rates, reverse=True)


def test_the_profiles_own_sizes_change_nothing_but_the_name():
    found = resized(KAGGLE, "kaggle")
    assert found.patterns == KAGGLE.patterns
    assert found.dense == KAGGLE.dense
    assert [c.dependence for c in found.sparse] == [c.dependence for c in KAGGLE.sparse]


def test_patterns_and_dependences_go_with_their_columns():
    found = resized(KAGGLE, "terabyte-10m")
    sizes = [[c.num_embeddings for c in s.sparse] for s in (KAGGLE, found)]
    after, before = (np.argsort(s, kind="stable").tolist() for s in (sizes[1], sizes[0]))
    place = dict(zip(before, after, strict=True))
    names = [c.name for c in KAGGLE.sparse]
    for (mask, rows), (moved, same) in zip(KAGGLE.patterns, found.patterns, strict=True):
        assert rows == same
        assert mask & 0x1FFF == moved & 0x1FFF
        assert {place[c] for c in range(26) if mask >> (13 + c) & 1} == {
            c for c in range(26) if moved >> (13 + c) & 1
        }
    followers = 0
    for c, column in enumerate(KAGGLE.sparse):
        other = found.sparse[place[c]].dependence
        assert (column.dependence is None) == (other is None)
        if column.dependence is not None and other is not None:
            followers += 1
            assert other.parent == names[place[names.index(column.dependence.parent)]]
    assert followers > 3


def test_rows_are_drawn_and_a_dataset_knows_its_generator(tmp_path):
    source = SyntheticCriteo(3000, cardinalities="terabyte-10m", max_cardinality=20_000)
    rows = source.rows(0, 3000)
    assert (rows.sparse.max(axis=0) < [c.num_embeddings for c in source.sparse_columns]).all()
    assert len(np.unique(rows.sparse[:, 0])) > 500  # C1 is one of the largest columns here
    info = write_dataset(source, tmp_path / "d")
    again = SyntheticCriteo.of_dataset(info)
    assert again is not None
    assert dataset_hash(again, info.splits) == info.input_hash


def test_unknown_sizes_are_named():
    with pytest.raises(InputError, match=r"no table sizes 'terabyte'; choose one of .*terabyte-10m"):
        SyntheticCriteo(10, cardinalities="terabyte")
