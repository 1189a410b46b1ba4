"""The replay against its definition in plain numpy, and against plans small enough to follow by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_opt.data.access_statistics import AccessStatistics
from recsys_opt.data.access_table import TableStatistics
from recsys_opt.data.table_traces import TableTraces, write_traces
from recsys_opt.errors import InputError
from recsys_opt.plan import DeviceLoad, Plan, TablePlan
from recsys_opt.planner.lookup_trace import LookupTrace, open_trace
from recsys_opt.planner.replay import Replay, lfu_ranking, replay, statistics_ranking
from tests.generated import make_dataset


def trace_of(
    tables: dict[str, tuple[int, list[tuple[list[int], list[int]]]]], batch_size: int
) -> LookupTrace:
    """tables  name -> (rows, per batch: (lengths, ids))"""
    names = tuple(tables)
    arrays = [
        [(np.array(n, dtype=np.int32), np.array(i, dtype=np.int64)) for n, i in b] for _, b in tables.values()
    ]
    return LookupTrace(
        "the trace",
        names,
        tuple(rows for rows, _ in tables.values()),
        len(arrays[0]),
        batch_size,
        lambda feature, batch: arrays[feature][batch],
    )


def ranks(ranking: list[int], rows: int) -> dict[int, int]:
    order = [*ranking, *(r for r in range(rows) if r not in ranking)]
    return {row: rank for rank, row in enumerate(order)}


def twin(plan: Plan, trace: LookupTrace, rankings: dict[str, list[int]]) -> dict[str, Any]:
    """The definition, one lookup after the other."""
    pieces = [(table, piece) for table in plan.tables for piece in table.pieces()]
    lookups = np.zeros((trace.batches, len(pieces), 2), dtype=np.int64)
    touched: list[list[tuple[set[int], set[int]]]] = [
        [(set(), set()) for _ in pieces] for _ in range(trace.batches)
    ]
    remote = np.zeros((trace.batches, len(pieces)), dtype=np.int64)
    for batch in range(trace.batches):
        for feature, name in enumerate(trace.features):
            lengths, ids = trace.read(feature, batch)
            assert lengths is not None
            samples = np.repeat(np.arange(len(lengths)), lengths)
            # The last device whose first sample is at most this one.
            firsts = [d * trace.batch_size // plan.num_devices for d in range(plan.num_devices)]
            homes = [max(d for d, first in enumerate(firsts) if first <= sample) for sample in samples]
            for at, (table, piece) in enumerate(pieces):
                if name not in (table.feature_names or (table.name,)):
                    continue
                rank = ranks(rankings[table.name], table.num_embeddings)
                for row, home in zip(ids.tolist(), homes, strict=True):
                    s, k = piece.stripe
                    if rank[row] % k != s or (table.replicated and home != piece.device):
                        continue
                    tier = 0 if rank[row] // k < piece.hot_rows else 1
                    lookups[batch, at, tier] += 1
                    touched[batch][at][tier].add(row)
                    remote[batch, at] += home != piece.device
    rows = np.array([[[len(t) for t in tiers] for tiers in batch] for batch in touched], dtype=np.int64)
    return {"lookups": lookups, "rows": rows.reshape(lookups.shape), "remote": remote}


@st.composite
def cases(draw: st.DrawFn) -> tuple[Plan, LookupTrace, dict[str, list[int]]]:
    devices = draw(st.integers(1, 5))
    batch_size = draw(st.integers(1, 7))
    batches = draw(st.integers(1, 3))
    plans, features, rankings = [], {}, {}
    for t in range(draw(st.integers(1, 3))):
        rows = draw(st.integers(1, 12))
        kind = draw(st.sampled_from(["cut", "replicated"]))
        columns = draw(st.integers(1, devices)) if kind == "cut" else 1
        stripes = draw(st.integers(1, min(devices // columns, rows))) if kind == "cut" else 1
        pieces = devices if kind == "replicated" else columns * stripes
        where = draw(st.permutations(range(devices)))[:pieces]
        names = (f"t{t}",) if draw(st.booleans()) else (f"t{t}a", f"t{t}b")
        sizes = [(rows - s + stripes - 1) // stripes for s in range(stripes)] * (pieces // stripes)
        hot = [draw(st.integers(0, size)) for size in sizes]
        plans.append(
            TablePlan(
                f"t{t}", rows, 2 * columns, tuple(where), tuple(hot), columns, stripes, kind != "cut", names
            )
        )
        rankings[f"t{t}"] = draw(st.lists(st.integers(0, rows - 1), unique=True))
        for name in names:
            lengths = st.lists(st.integers(0, 4), min_size=batch_size, max_size=batch_size)
            some = [draw(lengths) for _ in range(batches)]
            ids = [draw(st.lists(st.integers(0, rows - 1), min_size=sum(n), max_size=sum(n))) for n in some]
            features[name] = (rows, list(zip(some, ids, strict=True)))
    return Plan(tuple(plans), devices, batch_size), trace_of(features, batch_size), rankings


@settings(max_examples=150)
@given(cases(), st.integers(1, 3))
def test_every_lookup_goes_where_the_plan_has_its_row(
    case: tuple[Plan, LookupTrace, dict[str, list[int]]], threads: int
) -> None:
    plan, trace, rankings = case
    found = replay(plan, trace, lambda name: np.array(rankings[name], dtype=np.int64), threads=threads)
    wanted = twin(plan, trace, rankings)
    for name, value in wanted.items():
        np.testing.assert_array_equal(getattr(found, name), value, err_msg=name)


def by_hand(table: TablePlan, devices: int = 2) -> Replay:
    """Four samples, the first two of device 0: rows 3 3 1 | 0 | 3 2 | -; 3 is the hottest row, then 1."""
    trace = trace_of({"t": (5, [([3, 1, 2, 0], [3, 3, 1, 0, 3, 2])])}, 4)
    return replay(Plan((table,), devices, 4), trace, lambda _: np.array([3, 1]))


def test_a_whole_table_by_hand() -> None:
    # ranks: 3 1 0 2 4; rows 3 and 1 are hot
    found = by_hand(TablePlan("t", 5, 8, (1,), (2,)))
    assert found.lookups.tolist() == [[[4, 2]]]
    assert found.rows.tolist() == [[[2, 2]]]
    assert found.remote.tolist() == [[4]]  # those of device 0's samples
    assert found.bytes_read().tolist() == [[[0, 0], [4 * 32, 2 * 32]]]
    # two samples' pooled rows out and their gradients back, 4 ids
    assert found.bytes_sent().tolist() == [[0, 2 * 2 * 32 + 4 * 8]]
    assert found.slow_share == pytest.approx(1 / 3)


def test_a_table_cut_by_columns_and_rows_by_hand() -> None:
    # stripe 0 has the rows of ranks 0, 2, 4: 3, 0, 4; stripe 1 those of ranks 1, 3: 1, 2
    found = by_hand(TablePlan("t", 5, 8, (0, 1, 2, 3), (1, 0, 3, 1), column_shards=2, row_shards=2), 4)
    assert found.lookups.tolist() == [[[3, 1], [0, 2], [4, 0], [1, 1]]]
    assert found.rows.tolist() == [[[1, 1], [0, 2], [2, 0], [1, 1]]]
    # each sample on a device of its own; 3 3 1 | 0 | 3 2 | -
    assert found.remote.tolist() == [[2, 2, 3, 2]]
    assert found.bytes_read().tolist() == [[[48, 16], [0, 32], [64, 0], [16, 16]]]


def test_a_replicated_table_by_hand() -> None:
    found = by_hand(TablePlan("t", 5, 8, (1, 0), (5, 5), replicated=True))
    assert found.lookups.tolist() == [[[2, 0], [4, 0]]]  # device 1 is the first piece
    assert found.rows.tolist() == [[[2, 0], [3, 0]]]  # row 3 is touched on both
    assert found.remote.tolist() == [[0, 0]]
    assert found.bytes_sent().tolist() == [[5 * 32, 5 * 32]]  # 2 (n - 1) / n of the table


def test_an_ideal_cache_holds_what_the_trace_looks_up_most() -> None:
    trace = trace_of({"t": (9, [([3], [7, 7, 2]), ([3], [2, 7, 5]), ([2], [4, 4])])}, 1)
    plan = Plan((TablePlan("t", 9, 4, (0,), (2,)),), 1, 1)
    found = replay(plan, trace, lfu_ranking(plan, trace))
    # 7: 3 times; 2 and 4: twice, the lower row first
    assert found.lookups.tolist() == [[[3, 0]], [[2, 1]], [[0, 2]]]
    with pytest.raises(InputError, match=r"batch 0 of t, lookup 1: id 9 is outside the table's 9 rows"):
        bad = trace_of({"t": (9, [([2], [1, 9])])}, 1)
        replay(plan, bad, lfu_ranking(plan, bad))


def test_the_cache_of_a_larger_table_holds_its_most_frequent_rows() -> None:
    ids = np.random.default_rng(0).zipf(1.3, (3, 4000)) % 70_000
    trace = LookupTrace("the trace", ("t",), (70_000,), 3, 4000, lambda feature, batch: (None, ids[batch]))
    plan = Plan((TablePlan("t", 70_000, 4, (0,), (100,)),), 1, 1)
    ranking = lfu_ranking(plan, trace)("t")
    rows, counts = np.unique(ids, return_counts=True)
    assert ranking.tolist() == rows[np.lexsort((rows, -counts))].tolist()
    hits = replay(plan, trace, lambda _: ranking).lookups[..., 0].sum()
    assert hits == np.sort(counts)[-100:].sum()


def test_statistics_and_their_hash() -> None:
    statistics = AccessStatistics.of([TableStatistics.from_ids("t", 5, np.array([3, 3, 1, 3]))])
    table = TablePlan("t", 5, 8, (0,), (2,))
    plan = Plan((table,), 1, 4, inputs={"statistics": {"path": "s.npz", "sha256": statistics.sha256}})
    assert statistics_ranking(plan, statistics)("t").tolist() == [3, 1]
    other = AccessStatistics.of([TableStatistics.from_ids("t", 5, np.array([1, 1, 3, 1]))])
    with pytest.raises(InputError, match="its ranks would name other rows"):
        statistics_ranking(plan, other)
    with pytest.raises(InputError, match="5 rows in the plan and 6 in the statistics"):
        more = AccessStatistics.of([TableStatistics.from_ids("t", 6, np.array([1]))])
        statistics_ranking(Plan((table,), 1, 4), more)
    with pytest.raises(InputError, match="the statistics have no table 't'"):
        statistics_ranking(Plan((table,), 1, 4), AccessStatistics.of([]))


@pytest.mark.parametrize(
    ("features", "said"),
    [
        ({"t": (5, [([2], [0, 5])])}, "batch 0 looks up id 5 of t (lookup 1 of 2); the table has 5 rows"),
        ({"t": (5, [([2], [0, -1])])}, "id -1 of t"),
        ({"t": (5, [([2], [0, 1 << 40])])}, "id 1099511627776 of t"),
        ({"t": (5, [([3], [0, 1])])}, "t of batch 0 has 2 ids; its lengths add up to 3"),
        ({"t": (6, [([1], [0])])}, "t has ids of 6 rows; the plan's table t has 5"),
        ({"t": (5, [([1], [0])]), "u": (5, [([1], [0])])}, "looks up 'u', of which the plan knows nothing"),
        ({}, "no lookups of the plan's table t"),
    ],
)
def test_traces_that_do_not_fit_the_plan(features: dict[str, Any], said: str) -> None:
    plan = Plan((TablePlan("t", 5, 4, (0,), (2,)),), 1, 1)
    trace = (
        trace_of(features, 1) if features else LookupTrace("the trace", (), (), 1, 1, lambda f, b: (None, f))
    )  # type: ignore[arg-type, return-value]
    with pytest.raises(InputError) as error:
        replay(plan, trace, lambda _: np.array([], dtype=np.int64))
    assert said in str(error.value)
    assert "the trace" in str(error.value)


def test_a_trace_folder_and_what_the_plan_predicts(tmp_path: Path) -> None:
    traces = TableTraces(tables=3, batch_size=64, seed=1, embedding_dim=8)
    write_traces(traces, tmp_path / "trace", batches=2)
    trace = open_trace(tmp_path / "trace", batch_size=1)
    assert (trace.batches, trace.batch_size) == (2, 64)
    load = DeviceLoad(0.0, 0.0, 0.0, 0, 0, 300.0, 100.0)
    plan = Plan(
        tuple(
            TablePlan(s.config.name, s.config.num_embeddings, 8, (t % 2,), (s.config.num_embeddings // 2,))
            for t, s in enumerate(traces.specs)
        ),
        2,
        64,
        devices=(load, load),
    )
    found = replay(plan, trace, lambda _: np.array([], dtype=np.int64))
    assert found.predicted_slow_share == 0.25
    for t, spec in enumerate(traces.specs):
        for batch in range(2):
            _, ids = traces.lookups(t, batch)
            slow = ids >= spec.config.num_embeddings // 2
            assert found.lookups[batch, t].tolist() == [int((~slow).sum()), int(slow.sum())]
            assert found.rows[batch, t, 1] == len(np.unique(ids[slow]))


def test_folders_that_are_no_trace(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither a dataset"):
        open_trace(tmp_path, batch_size=1)
    traces = TableTraces(tables=2, batch_size=16, embedding_dim=4)
    write_traces(traces, tmp_path / "trace")
    lengths = np.load(tmp_path / "trace" / "batch_0_lengths.npy")
    lengths[1, 3] = -1
    np.save(tmp_path / "trace" / "batch_0_lengths.npy", lengths)
    with pytest.raises(InputError, match="table table_1, sample 3 has the length -1"):
        open_trace(tmp_path / "trace", batch_size=1).lookups(0, 0, 1)
    (tmp_path / "trace" / "batch_0_lengths.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(InputError, match="cannot be read as a"):
        open_trace(tmp_path / "trace", batch_size=1).lookups(1, 0, 1)


def test_a_datasets_split_across_its_parts(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, 1000)
    sparse = np.concatenate([np.array(part.sparse) for part in dataset.labelled_arrays()])
    trace = open_trace(tmp_path, batch_size=300, split="train")  # rows 0 to 800; the first part has 625
    assert (trace.batches, trace.features) == (2, ("C1", "C2", "C3", "C4"))
    for batch in range(2):
        for feature in range(4):
            ids, bounds = trace.lookups(feature, batch, 7)
            assert ids.tolist() == sparse[batch * 300 : (batch + 1) * 300, feature].tolist()
            assert bounds.tolist() == [d * 300 // 7 for d in range(8)]
    later = trace.between(1)
    assert later.batches == 1
    assert later.lookups(2, 0, 1)[0].tolist() == sparse[300:600, 2].tolist()
    # Batches across the border of the parts.
    across = open_trace(tmp_path, batch_size=700, split="train").lookups(3, 0, 1)[0]
    assert across.tolist() == sparse[:700, 3].tolist()
    with pytest.raises(InputError, match=r"batches 1 to 3 .left out. of 2"):
        trace.between(1, 3)
    with pytest.raises(InputError, match="has 100 rows, not one batch of 101"):
        open_trace(tmp_path, batch_size=101)
    with pytest.raises(InputError, match="has no split 'later'"):
        open_trace(tmp_path, batch_size=1, split="later")
