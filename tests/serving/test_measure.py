import multiprocessing
import os
import threading

import numpy as np
import pytest

from recsys_opt.data.synth import SyntheticCriteo
from recsys_opt.errors import InputError, RecsysOptError
from recsys_opt.progress import SilentProgress
from recsys_opt.serving.measure import MeasureSettings, PathSource, half_width, interval, measure_paths
from recsys_opt.serving.models import ServingOptions, load_frozen
from recsys_opt.serving.profile import ServedModel
from recsys_opt.serving.samples import dataset_samples, generated_samples


@pytest.mark.parametrize("q", [0.5, 0.99])
def test_intervals_hold_what_they_say(q):
    """Of many samples of a known distribution, 95 % of the intervals hold its quantile."""
    rng, truth = np.random.default_rng(0), -np.log(1 - q)
    held = 0
    for _ in range(1000):
        low, high = interval(np.sort(rng.exponential(1.0, 1500)), q)
        held += low <= truth <= high
    assert 925 <= held <= 985


def test_an_interval_needs_enough_runs():
    values = np.arange(1.0, 301.0)
    assert interval(values, 0.99) is None
    assert half_width(values, 0.99) is None
    low, high = interval(values, 0.5)
    assert low < 150 < high
    assert half_width(values, 0.5) == pytest.approx((high - low) / 2 / 150.5)
    assert interval(np.empty(0), 0.5) is None


@pytest.mark.slow
def test_measuring(table_run, tt_run):
    """Real processes: what they say of the models, and times that grow with the size."""
    model = load_frozen(table_run).request
    samples = dataset_samples(table_run.parent / "data", model)
    sources = [
        PathSource("table@cpu", str(table_run), ServingOptions(), "cpu"),
        PathSource("tt@cpu", str(tt_run), ServingOptions(tensor_trains="cores"), "cpu"),
    ]
    settings = MeasureSettings(sizes=(1, 64, 2048), seconds=0.5, quantiles=16, p99_within=1e-9, clock="cpu")
    table, tt = measure_paths(sources, samples, settings)
    assert [p.source for p in (table, tt)] == sources
    assert (table.representation, tt.representation) == ("table", "tt")
    assert table.fingerprint == load_frozen(table_run).fingerprint
    assert table.request == model
    assert tt.bytes < table.bytes
    for path in (table, tt):
        assert [t.size for t in path.times] == [1, 64, 2048]
        assert {len(t.quantiles) for t in path.times} == {16}
        assert path.times[0].quantile(0.5) < path.times[2].quantile(0.5)
        assert all(t.runs >= 3 for t in path.times)
        assert path.unsettled == (1, 64, 2048)  # nobody settles within a billionth
        assert set(path.noise) == {"waited", "switches"}


@pytest.mark.slow
def test_settled_sizes_are_not_measured_further(table_run):
    samples = generated_samples(load_frozen(table_run).request, 2000)
    source = PathSource("table@cpu", str(table_run), ServingOptions(), "cpu")
    settings = MeasureSettings(sizes=(1,), seconds=60, p50_within=10.0, p99_within=10.0, idle_s=1e-4)
    (found,) = measure_paths([source], samples, settings)
    assert found.unsettled == ()
    assert 380 <= found.times[0].runs <= 4003  # fewer have no interval of the 99th percentile


def test_faults_of_a_process_are_told(tmp_path, table_run):
    samples = generated_samples(load_frozen(table_run).request, 100)
    source = PathSource("x@cpu", str(tmp_path), ServingOptions(), "cpu")
    with pytest.raises(InputError, match="has no checkpoint; train it first"):
        measure_paths([source], samples, MeasureSettings(sizes=(1,)))
    many = len(os.sched_getaffinity(0)) + 1
    with pytest.raises(InputError, match=f"{many} workers of 1 threads need {many} cores"):
        measure_paths([source], samples, MeasureSettings(workers=many))


@pytest.mark.parametrize("when", ["loading", "measuring"])
def test_a_process_that_is_killed(table_run, when):
    samples = generated_samples(load_frozen(table_run).request, 100)
    source = PathSource("x@cpu", str(table_run), ServingOptions(), "cpu")

    class KillsWhenMeasuring(SilentProgress):
        def start(self, description, total, unit):
            if description.startswith(when):
                (process,) = multiprocessing.active_children() or [None]
                if process is None:
                    threading.Timer(0.3, lambda: multiprocessing.active_children()[0].kill()).start()
                else:
                    process.kill()
                    process.join()

    with pytest.raises(RecsysOptError, match="path x@cpu: its process ended with code -9"):
        measure_paths([source], samples, MeasureSettings(sizes=(1,)), progress=KillsWhenMeasuring())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": ()}, "sizes = "),
        ({"sizes": (4, 2)}, "ascending"),
        ({"sizes": (0, 2)}, "from 1 on"),
        ({"seconds": 0.0}, "seconds = 0.0; it must be above 0"),
        ({"p99_within": float("nan")}, "p99_within = nan"),
        ({"workers": 0}, "workers = 0"),
        ({"idle_s": -0.1}, "idle_s = -0.1"),
        ({"idle_s": 2.0}, "less than a second"),
    ],
)
def test_bad_settings(change, message):
    with pytest.raises(InputError, match=message):
        MeasureSettings(**change)


def test_samples_of_a_dataset(table_run):
    model = load_frozen(table_run).request
    samples = dataset_samples(table_run.parent / "data", model, 50)
    assert samples.rows == 50
    assert samples.what == "50 rows of the test split of generated"
    dense, ids = samples.request(7, 48)
    np.testing.assert_array_equal(dense[2:], samples.dense[:5])
    np.testing.assert_array_equal(ids[:, :2], samples.ids[:, 48:])
    other = ServedModel(3, model.features, (4, 60, 700, 5001), 16)
    with pytest.raises(InputError, match="name the dataset that it was trained on"):
        dataset_samples(table_run.parent / "data", other)


def test_generated_samples():
    small = generated_samples(ServedModel(2, ("a", "b"), (1, 1000), 8), 4000)
    assert "by a power law" in small.what
    assert small.ids.shape == (2, 4000)
    assert (small.ids[0] == 0).all()
    assert 0 <= small.ids[1].min() <= small.ids[1].max() < 1000
    assert (small.ids[1] < 100).mean() > 0.4
    criteo = SyntheticCriteo(10)
    rows = tuple(c.num_embeddings for c in criteo.sparse_columns)
    names = tuple(c.name for c in criteo.sparse_columns)
    like = generated_samples(ServedModel(13, names, rows, 16), 500)
    assert "like Criteo Kaggle's" in like.what
    assert like.ids.shape == (26, 500)
    assert (like.ids < np.array(rows)[:, None]).all()
