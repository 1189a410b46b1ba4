import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from recsys_opt.data.access_count import CountOptions, count_statistics, table_sizes
from recsys_opt.data.access_journal import AccessJournal
from recsys_opt.data.access_statistics import AccessStatistics, TableStatistics
from recsys_opt.data.dataset import Dataset, array_path
from recsys_opt.data.lookup_sources import ArraySource, DatasetSource
from recsys_opt.data.table_traces import TableTraces, write_traces
from recsys_opt.data.trace_source import TraceSource
from recsys_opt.errors import InputError
from tests.generated import COLUMNS, make_dataset


def run(source, out: Path, options: CountOptions | None = None, **given: int) -> AccessStatistics:
    sizes, derived = table_sizes(source, given)
    return count_statistics(source, sizes, out, options, derived=derived)[0]


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TableTraces]:
    folder = tmp_path_factory.mktemp("trace") / "trace"
    traces = TableTraces(tables=7, batch_size=64, seed=3)
    write_traces(traces, folder, batches=3)
    return folder, traces


@pytest.mark.parametrize(("memory", "threads"), [(1 << 20, 1), (8 * 5000, 2)])
def test_a_dataset_by_definition(tmp_path, memory, threads):
    data = make_dataset(tmp_path / "data")
    found = run(DatasetSource(data), tmp_path / "s.npz", CountOptions(memory_bytes=memory, threads=threads))
    sparse = np.concatenate([p.sparse for p in data.labelled_arrays()])[:4800]
    assert list(found.tables) == ["C1", "C2", "C3", "C4"]
    assert (found.samples, found.late_from) == (4800, 2400)
    for c, table in enumerate(found.tables.values()):
        alone = TableStatistics.from_ids(table.name, COLUMNS[c], sparse[:, c])
        assert table.to_json() == alone.to_json()
        np.testing.assert_array_equal(table.late_counts(), alone.late_counts())
    assert not list(tmp_path.glob(".s.npz.counting"))


def test_ranges_of_a_dataset_merge_to_the_whole(tmp_path):
    data = make_dataset(tmp_path / "data")
    whole = run(DatasetSource(data, None), tmp_path / "whole.npz")
    parts = [
        run(DatasetSource(data, rows=(a, a + 2000)), tmp_path / f"{a}.npz") for a in range(0, 6000, 2000)
    ]
    assert AccessStatistics.merge(parts).sha256 == whole.sha256


def test_a_trace_by_definition(tmp_path, trace, monkeypatch):
    folder, traces = trace
    monkeypatch.setattr("recsys_opt.data.trace_source.BLOCK_LOOKUPS", 700)
    largest = max(8 * s.config.num_embeddings for s in traces.specs)
    found = run(TraceSource(folder), tmp_path / "s.npz", CountOptions(memory_bytes=largest))
    assert found.samples == 192
    for t, spec in enumerate(traces.specs):
        table = found.table(spec.config.name)
        batches = [traces.lookups(t, b) for b in range(3)]
        ids = np.concatenate([values for _, values in batches])
        counts = np.bincount(ids, minlength=spec.config.num_embeddings)
        np.testing.assert_array_equal(table.row_counts(), counts[table.ranking()])
        assert table.lookups == len(ids)
        assert table.bags == sum(int((lengths > 0).sum()) for lengths, _ in batches)
        half = batches[1][1][batches[1][0][:32].sum() :]
        late = np.bincount(np.concatenate([half, batches[2][1]]), minlength=spec.config.num_embeddings)
        np.testing.assert_array_equal(table.late_counts(), late[table.ranking()])
    some = run(TraceSource(folder, (1, 2)), tmp_path / "one.npz")
    assert sum(t.lookups for t in some.tables.values()) == len(np.load(folder / "batch_1_values.npy"))


def test_bad_ids_of_a_trace_are_named_with_sample_and_table(tmp_path, trace):
    folder, traces = trace
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.glob("*"):
        (copy / file.name).write_bytes(file.read_bytes())
    lengths, values = np.load(copy / "batch_2_lengths.npy"), np.load(copy / "batch_2_values.npy")
    at = int(lengths[:3].sum() + lengths[3, :40].sum())
    sample = 40 + int((lengths[3, 40:] > 0).argmax())
    values[at] = 1 << 40
    np.save(copy / "batch_2_values.npy", values)
    name = traces.specs[3].config.name
    with pytest.raises(
        InputError, match=rf"values\[{at}\], sample {sample}, table {name}: id {1 << 40} is outside"
    ):
        run(TraceSource(copy), tmp_path / "s.npz")
    assert not list(tmp_path.glob(".s.npz.counting"))  # there is nothing to go on from
    np.save(copy / "batch_2_values.npy", values[:-1])
    with pytest.raises(InputError, match=rf"says {len(values)} ids, but batch_2_values.npy has"):
        run(TraceSource(copy), tmp_path / "s.npz")
    lengths[3, 5] = -2
    np.save(copy / "batch_2_lengths.npy", lengths)
    with pytest.raises(InputError, match=rf"table {name}, sample 5 has the length -2"):
        run(TraceSource(copy), tmp_path / "s.npz")
    with pytest.raises(InputError, match=r"has the batches 0 to 2; batches 2:4 asked for"):
        TraceSource(copy, (2, 4))


def test_arrays_of_ids(tmp_path):
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 90, (1000, 3))
    np.save(tmp_path / "a.npy", ids[:600])
    np.save(tmp_path / "b.npy", ids[600:].astype(np.uint8))
    source = ArraySource([tmp_path / "a.npy", tmp_path / "b.npy"])
    found = run(source, tmp_path / "s.npz", column_1=200)
    assert [t.num_embeddings for t in found.tables.values()] == [
        ids[:, 0].max() + 1,
        200,
        ids[:, 2].max() + 1,
    ]
    assert found.source["derived_sizes"] == ["column_0", "column_2"]
    for c, table in enumerate(found.tables.values()):
        assert (
            table.to_json() == TableStatistics.from_ids(table.name, table.num_embeddings, ids[:, c]).to_json()
        )
    np.save(tmp_path / "user.npy", ids[:, 0])
    np.save(tmp_path / "item.npy", ids[:, 1].astype(np.int32))
    one = run(ArraySource([tmp_path / "user.npy", tmp_path / "item.npy"]), tmp_path / "t.npz", item=200)
    assert one.table("item").to_json() == {**found.table("column_1").to_json(), "name": "item"}


def test_arrays_that_are_no_trace_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(5))
    np.save(tmp_path / "b.npy", np.arange(6))
    np.save(tmp_path / "c.npy", np.array([1.0, 2.0, np.nan, 4.0, 5.0]))
    np.save(tmp_path / "d.npy", np.array([1, 2, -3, 4, 5]))
    np.save(tmp_path / "e.npy", np.zeros((2, 2, 2), np.int64))
    (tmp_path / "f.npy").write_bytes(b"no array")
    with pytest.raises(InputError, match=r"b.npy has 6 ids, .*a.npy has 5"):
        ArraySource([tmp_path / "a.npy", tmp_path / "b.npy"])
    with pytest.raises(
        InputError, match=r"c.npy: row 2, table c: the ids have the type float64 .*not a number"
    ):
        run(ArraySource([tmp_path / "c.npy"]), tmp_path / "s.npz")
    with pytest.raises(InputError, match=r"d.npy: row 2, table d: id -3 is negative"):
        run(ArraySource([tmp_path / "d.npy"]), tmp_path / "s.npz")
    with pytest.raises(
        InputError, match=r"a.npy: row 4, table a: id 4 is outside the table's 4 rows \(0 to 3"
    ):
        run(ArraySource([tmp_path / "a.npy"]), tmp_path / "s.npz", a=4)
    with pytest.raises(InputError, match="'x', which is no table of the input; they are a"):
        run(ArraySource([tmp_path / "a.npy"]), tmp_path / "s.npz", x=4)
    with pytest.raises(InputError, match=r"must be all of shape \[N\]"):
        ArraySource([tmp_path / "a.npy", tmp_path / "e.npy"])
    with pytest.raises(InputError, match=r"f.npy cannot be read as a .npy array"):
        ArraySource([tmp_path / "f.npy"])


def test_what_is_there_is_not_replaced_unasked(tmp_path):
    data = make_dataset(tmp_path / "data", rows=100)
    run(DatasetSource(data), tmp_path / "s.npz")
    with pytest.raises(InputError, match=r"s.npz exists already; .*--overwrite"):
        run(DatasetSource(data), tmp_path / "s.npz")
    with pytest.raises(InputError, match=r"1 pass, and 4,096 bytes for each of the 4 tables: .*--memory"):
        run(DatasetSource(data), tmp_path / "t.npz", CountOptions(memory_bytes=10_000))


def test_an_unfinished_run_of_other_settings_is_refused(tmp_path):
    with AccessJournal(tmp_path / "s.npz", {"inputs": [1]}) as journal:
        journal.save_state(10, {"x": np.zeros(3)})
        with (
            pytest.raises(InputError, match="is being written by another process"),
            AccessJournal(tmp_path / "s.npz", {"inputs": [1]}),
        ):
            pass
    with (
        pytest.raises(InputError, match=r"unfinished run with other inputs; .*--overwrite"),
        AccessJournal(tmp_path / "s.npz", {"inputs": [2]}),
    ):
        pass
    with AccessJournal(tmp_path / "s.npz", {"inputs": [2]}, overwrite=True) as journal:
        assert not journal.resumed


class Slow(DatasetSource):
    """Gives a test the time to kill the process that counts."""

    def blocks(self, tables, start, stop):
        for block in super().blocks(tables, start, stop):
            time.sleep(0.01)
            yield block


def test_killed_and_gone_on(tmp_path, monkeypatch):
    """kill -9 at several moments, some of them while states are written; the result is the same file."""
    monkeypatch.setattr("recsys_opt.data.lookup_sources.BLOCK_ROWS", 100)
    monkeypatch.setattr("recsys_opt.data.access_count.STATE_SHARE", 1e9)
    data = make_dataset(tmp_path / "data")
    options = CountOptions(memory_bytes=8 * 5000, state_every_s=0.03)  # two groups
    source = Slow(Dataset(data.path))
    whole = run(source, tmp_path / "whole.npz", options)
    out = tmp_path / "s.npz"

    def start() -> int:
        pid = os.fork()
        if pid == 0:
            try:
                done = count_statistics(source, list(COLUMNS), out, options)
                os._exit(10 if done[1] else 11)
            finally:
                os._exit(1)
        return pid

    def states() -> set[Path]:
        return set((tmp_path / ".s.npz.counting").glob("state_*.npz"))

    for attempt in range(4):
        before, pid = states(), start()
        while not states() - before:  # each gets somewhere
            assert os.waitpid(pid, os.WNOHANG) == (0, 0)
            time.sleep(0.001)
        time.sleep(0.02 * attempt)
        os.kill(pid, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        assert not out.exists()
    assert os.waitstatus_to_exitcode(os.waitpid(start(), 0)[1]) == 10  # it has gone on
    assert out.read_bytes() == (tmp_path / "whole.npz").read_bytes()
    assert AccessStatistics.load(out).sha256 == whole.sha256


def test_changed_arrays_are_noticed(tmp_path):
    data = make_dataset(tmp_path / "data", rows=100)
    path = array_path(data.path, "a", "sparse")
    sparse = np.load(path)
    sparse[7, 3] = -1
    np.save(path, sparse)
    with pytest.raises(InputError, match=r"a_sparse.npy: row 7, table C4: id -1 is outside"):
        run(DatasetSource(Dataset(data.path)), tmp_path / "s.npz")
