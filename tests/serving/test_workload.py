import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_opt.errors import InputError
from recsys_opt.serving.sizes import Sizes, parse_sizes
from recsys_opt.serving.spec import seconds
from recsys_opt.serving.trace import Trace, write_trace
from recsys_opt.serving.workload import Bursty, make_workload, parse_arrivals


@settings(max_examples=25)
@given(
    kind=st.sampled_from(
        ["lognormal:sigma=0.5", "lognormal:sigma=1.5", "pareto:alpha=1.3", "pareto:alpha=2.5"]
    ),
    mean=st.floats(1.5, 900),
)
def test_sizes_have_the_mean_asked_for(kind, mean):
    sizes = parse_sizes(f"{kind},mean={mean},max=1024")
    assert math.isclose(sizes.mean, mean, rel_tol=1e-6)
    assert math.isclose(sizes.weights.sum(), 1.0)
    assert 1 <= sizes.values[0] <= sizes.max <= 1024


def test_lognormal_sizes_follow_their_law():
    sizes = parse_sizes("lognormal:mean=1000,sigma=0.5,max=20000")
    draws = np.random.default_rng(0).lognormal(math.log(1000) - 0.125, 0.5, 400_000)
    for q in (0.05, 0.5, 0.95, 0.99):
        assert math.isclose(sizes.quantile(q), np.quantile(draws, q), rel_tol=0.01)


def test_pareto_sizes_have_the_tail_asked_for():
    sizes = parse_sizes("pareto:mean=40,alpha=1.5,max=100000")
    above = {n: sizes.weights[sizes.values > n].sum() for n in (200, 400, 800)}
    assert math.isclose(above[200] / above[400], 2**1.5, rel_tol=0.02)
    assert math.isclose(above[400] / above[800], 2**1.5, rel_tol=0.02)


def test_mlperf_sizes():
    sizes = parse_sizes("mlperf")
    assert (sizes.values[0], sizes.max) == (100, 700)
    assert math.isclose(sizes.mean, 270.0)


def test_the_smallest_share_of_queries_has_the_fewest_samples():
    sizes = Sizes(np.array([1, 10, 100]), np.array([0.5, 0.4, 0.1]))
    assert math.isclose(sizes.least_samples(1.0), sizes.mean)
    assert math.isclose(sizes.least_samples(0.95), 0.5 + 4.0 + 5.0)
    assert math.isclose(sizes.least_samples(0.5), 0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("normal:mean=3", "'normal' is no kind of sizes; it must be one of lognormal:"),
        ("lognormal:mena=3", r"takes no 'mena' \(did you mean mean\?\); it takes mean, sigma, max"),
        ("lognormal:mean=much", "mean = 'much' is no number; it must be above 0"),
        ("lognormal:mean=nan", "mean = nan; it must be above 0"),
        ("lognormal:mean=0", "mean = 0; it must be above 0"),
        ("lognormal:mean=5000", "a mean of 5000 with at most 4096 samples"),
        ("lognormal:sigma=9", "sigma = 9; it must be above 0 and at most 5"),
        ("lognormal:max=10.5", "max = 10.5; it must be a whole number, 1 .. 1048576"),
        ("lognormal:mean=3,mean=4", "mean is given twice"),
        ("lognormal:3", "'3' has no name; write NAME=VALUE"),
        ("pareto:alpha=0", "alpha = 0; it must be above 0"),
        ("fixed:size=0", "size = 0; it must be a whole number"),
        ("mlperf:mean=1", "takes no 'mean'; it takes nothing"),
        ("file:", "has no file"),
        ("file:none.csv", "none.csv does not exist"),
    ],
)
def test_impossible_sizes_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        parse_sizes(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("weibull", "'weibull' is no kind of arrivals; it must be one of poisson:"),
        ("poisson:rate=-1", "rate = -1; it must be above 0"),
        ("mmpp:peak=6,share=0.2", "peak times share must be below 1: take a peak below 5"),
        ("mmpp:dwell=soon", "dwell = 'soon' is no time; write e.g. 25ms"),
        ("mmpp:dwell=0s", "dwell = 0s; it must be longer than 0 s"),
        ("diurnal:swing=1.5", "swing = 1.5; it must be 0 .. 1"),
        ("trace:none.csv", "none.csv does not exist"),
        ("trace:notes.txt", "notes.txt does not exist"),
    ],
)
def test_impossible_arrivals_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        parse_arrivals(text)


def test_mean_rates():
    bursty = parse_arrivals("mmpp:rate=100,peak=3,share=0.25,dwell=500ms")
    assert isinstance(bursty, Bursty)
    (quiet, burst), (between, lasting) = bursty.rates(), bursty.dwells()
    assert math.isclose((quiet * between + burst * lasting) / (between + lasting), 100.0)
    assert (burst, lasting) == (300.0, 0.5)
    times, rates = parse_arrivals("diurnal:rate=100,swing=0.4,period=1h").curve()
    assert math.isclose(rates.mean(), 100.0)
    assert math.isclose(rates.max(), 140.0)
    assert times[-1] < 3600
    for text in (
        "poisson:rate=3",
        "mmpp:rate=100,peak=2,share=0.1,dwell=2s",
        "diurnal:rate=7,swing=0.1,period=60s",
    ):
        assert parse_arrivals(text).spec == text
        assert parse_arrivals(text).at_rate(50.0).rate == 50.0


def test_a_load_must_be_told():
    workload = make_workload(parse_arrivals("poisson"), parse_sizes("fixed:size=8"))
    with pytest.raises(InputError, match="no load; give one"):
        workload.samples_per_s  # noqa: B018
    assert workload.at_rate(10.0).samples_per_s == 80.0
    with pytest.raises(InputError, match="a load of 0"):
        workload.at_rate(0.0)
    with pytest.raises(InputError, match="no sizes of queries"):
        make_workload(parse_arrivals("poisson"), None)


def test_recorded_arrivals_of_every_kind_of_file(tmp_path):
    arrival, size = np.array([5.0, 4.0, 4.5, 6.0]), np.array([1, 2, 3, 4])
    (tmp_path / "a.csv").write_text(
        "size,arrival\n" + "".join(f"{n},{t}\n" for t, n in zip(arrival, size, strict=True))
    )
    (tmp_path / "b.csv").write_text("".join(f"{t},{n}\n" for t, n in zip(arrival, size, strict=True)))
    rows = [{"arrival": t, "size": n} for t, n in zip(arrival.tolist(), size.tolist(), strict=True)]
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    np.save(tmp_path / "d.npy", np.stack([arrival, size], axis=1))
    np.savez(tmp_path / "e.npz", arrival=arrival, size=size)
    write_trace(tmp_path / "f.npz", Trace(arrival, size, np.zeros(4), np.ones(4)))
    write_trace(tmp_path / "g.jsonl", Trace(arrival, size, np.zeros(4), np.ones(4)))
    files = sorted(tmp_path.iterdir())
    pyarrow = pytest.importorskip("pyarrow")
    files.append(tmp_path / "h.parquet")
    pytest.importorskip("pyarrow.parquet").write_table(
        pyarrow.table({"arrival": arrival, "size": size}), files[-1]
    )
    assert len(files) == 8
    for file in files:
        found = make_workload(parse_arrivals(f"trace:{file}"), None)
        assert found.arrivals.arrivals.tolist() == [0.0, 0.5, 1.0, 2.0], file
        assert found.arrivals.sizes.tolist() == [2, 3, 1, 4], file
        assert found.rate == 1.5
        assert found.sizes.mean == 2.5
        assert found.at_rate(3.0).arrivals.arrivals.tolist() == [0.0, 0.25, 0.5, 1.0]
        assert parse_sizes(f"file:{file}").values.tolist() == [1, 2, 3, 4]
    np.save(tmp_path / "i.npy", arrival)
    own = make_workload(parse_arrivals(f"trace:{tmp_path / 'i.npy'}"), parse_sizes("fixed:size=3"))
    assert own.arrivals.sizes is None
    assert own.sizes.mean == 3.0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "arrival,size\n1,2\nsoon,3\n", "row 3: arrival = 'soon' is no number"),
        ("a.csv", "", "holds no query"),
        ("a.csv", "size,other\n1,2\n", "has no column 'arrival'"),
        ("a.csv", "arrival,size\n1,2\n2\n", "differ in length"),
        ("a.csv", "arrival,size\n1,0\n", r"size\[0\] = 0; it must be a whole number"),
        ("a.csv", "arrival\ninf\n", r"arrival\[0\] = inf"),
        ("a.jsonl", '{"arrival": "1"}', "line 1: arrival = '1'; it must be a number"),
        ("a.jsonl", "{", "line 1 is no JSON"),
        ("a.jsonl", "3", "line 1 is no JSON object"),
        ("a.npy", "text", "no readable .npy file"),
        ("a.npz", "text", "no readable .npz file"),
        ("a.txt", "1\n2\n", "its name must end in one of .csv, .parquet"),
    ],
)
def test_unusable_files_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        parse_arrivals(f"trace:{tmp_path / name}")


def test_times():
    assert [seconds(t) for t in ("25ms", "1.5s", "200us", "2min", "1h", "3", ".5")] == [
        0.025,
        1.5,
        pytest.approx(2e-4),
        120.0,
        3600.0,
        3.0,
        0.5,
    ]
    for text in ("", "ms", "-1s", "5 parsecs", "1e999s"):
        with pytest.raises(InputError, match="is no time"):
            seconds(text)
