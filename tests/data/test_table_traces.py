"""Traces of many tables: reuse as published, any table and batch alone, folders that are whole or refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import recsys_opt._synth as _synth
from recsys_opt.data.table_traces import (
    PUBLISHED_BATCH,
    PUBLISHED_MEAN_REUSE,
    PUBLISHED_REUSE,
    TableTraces,
    measure_reuse,
    write_traces,
)
from recsys_opt.errors import InputError


def test_reuse_is_as_published() -> None:
    # 12 tables hold 1.8 M distinct rows: counts are exact to .1 %; the fit itself is good to .2 points.
    reuse = measure_reuse(TableTraces(tables=12, seed=4))
    np.testing.assert_allclose(reuse.shares, PUBLISHED_REUSE, atol=0.005)
    assert reuse.mean == pytest.approx(PUBLISHED_MEAN_REUSE, rel=0.03)
    # 887 M lookups in 856 tables
    assert reuse.lookups / 12 == pytest.approx(887e6 / 856, rel=0.03)


def test_fewer_rows_have_the_reuse_in_a_smaller_batch() -> None:
    traces = TableTraces(tables=12, batch_size=PUBLISHED_BATCH // 16, seed=4, shrink=16)
    reuse = measure_reuse(traces)
    np.testing.assert_allclose(reuse.shares, PUBLISHED_REUSE, atol=0.01)
    rows = [sum(s.config.num_embeddings for s in t.specs) for t in (traces, TableTraces(tables=12, seed=4))]
    assert rows[0] == pytest.approx(rows[1] / 16, rel=0.01)


@settings(max_examples=20)
@given(seed=st.integers(0, (1 << 63) - 1), tables=st.integers(1, 30), batch=st.integers(0, 1 << 40))
def test_any_table_and_batch_alone(seed: int, tables: int, batch: int) -> None:
    traces = TableTraces(tables=tables, batch_size=64, seed=seed)
    table = seed % tables
    lengths, values = traces.lookups(table, batch)
    assert lengths.shape == (64,)
    assert (lengths >= 0).all()
    assert len(values) == lengths.sum()
    rows = traces.specs[table].config.num_embeddings
    assert ((values >= 0) & (values < rows)).all()
    again = TableTraces(tables=tables, batch_size=64, seed=seed).lookups(table, batch)
    np.testing.assert_array_equal(values, again[1])


def test_coverage_and_pooling_factor_are_those_promised() -> None:
    traces = TableTraces(tables=6, batch_size=40_000, seed=1)
    for table, spec in enumerate(traces.specs):
        lengths = traces.lengths(table, 3)
        looked_up = lengths > 0
        spread = np.sqrt(spec.coverage * (1 - spec.coverage) / len(lengths))
        assert abs(looked_up.mean() - spec.coverage) < 5 * spread + 1e-9
        n, mean = looked_up.sum(), spec.pooling_factor
        spread = np.sqrt(mean * (mean - 1) / n)  # of a geometric distribution
        assert abs(lengths[looked_up].mean() - mean) < 5 * spread + 1e-9


def test_batches_and_tables_differ() -> None:
    traces = TableTraces(tables=3, batch_size=500)
    first, second = traces.lookups(0, 0)[1], traces.lookups(0, 1)[1]
    n = min(len(first), len(second))
    assert (first[:n] != second[:n]).mean() > 0.5


def test_folder(tmp_path: Path) -> None:
    traces = TableTraces(tables=5, batch_size=200, seed=2, embedding_dim=32)
    reuse = write_traces(traces, tmp_path, batches=2)
    document = json.loads((tmp_path / "tables.json").read_text())
    assert (document["format"], document["version"]) == ("recsys_opt.tables", 1)
    assert document["tables"][3]["num_embeddings"] == traces.specs[3].config.num_embeddings
    assert document["tables"][3]["embedding_dim"] == 32
    total = 0
    for batch in range(2):
        lengths = np.load(tmp_path / f"batch_{batch}_lengths.npy")
        values = np.load(tmp_path / f"batch_{batch}_values.npy", mmap_mode="r")
        assert (lengths.dtype, lengths.shape, values.dtype) == (np.int32, (5, 200), np.int64)
        assert len(values) == lengths.sum() == document["lookups"][batch]
        ends = np.cumsum(lengths.sum(axis=1))
        for table in range(5):
            expected = traces.lookups(table, batch)
            np.testing.assert_array_equal(lengths[table], expected[0])
            start = 0 if table == 0 else ends[table - 1]
            np.testing.assert_array_equal(values[start : ends[table]], expected[1])
        total += len(values)
    assert reuse.lookups == total
    with pytest.raises(InputError, match="holds a trace already"):
        write_traces(traces, tmp_path)


def test_reuse_histogram_against_counting() -> None:
    values = np.repeat(np.arange(10), [1, 2, 3, 4, 5, 8, 9, 16, 17, 33]).astype(np.int64)
    assert _synth.reuse_histogram(values, 12) == [1, 1, 2, 2, 2, 1, 1]
    assert _synth.reuse_histogram(values[:0], 0) == [0] * 7
    with pytest.raises(ValueError, match=r"values\[0\] = 12 is outside the table's 12 rows"):
        _synth.reuse_histogram(np.array([12]), 12)


@pytest.mark.parametrize(
    "arguments", [{"tables": 0}, {"batch_size": 0}, {"seed": -1}, {"embedding_dim": 0}, {"tables": 10**6}]
)
def test_bad_arguments(arguments: dict[str, int]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(arguments))} = "):
        TableTraces(**arguments)


def test_bad_number_of_batches(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="batches = 0"):
        write_traces(TableTraces(tables=1, batch_size=4), tmp_path, batches=0)
