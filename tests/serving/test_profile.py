import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_opt.errors import InputError
from recsys_opt.serving.profile import Profile, ServiceTime, fleet
from tests.serving.profiles import affine_times, cpu_gpu_profile, make_path


def test_save_and_load(tmp_path):
    profile = cpu_gpu_profile()
    profile.save(tmp_path / "profile.json")
    assert Profile.load(tmp_path / "profile.json") == profile
    text = (tmp_path / "profile.json").read_text()
    assert max(line.count(",") for line in text.splitlines()) == 64  # a size's quantiles on one line
    assert json.loads(text)["format"] == "recsys_opt.profile"


def changed(document, place, value):
    """The document with another value at "a.0.b"."""
    *above, last = [int(p) if p.isdigit() else p for p in place.split(".")]
    for key in above:
        document = document[key]
    if value is None:
        del document[last]
    else:
        document[last] = value


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("version", 2, "has version 2 of recsys_opt.profile; this recsys_opt reads version 1"),
        ("format", "recsys_opt.plan", "is a plan, not a profile of paths"),
        ("model", None, "has no 'model'"),
        ("model.cardinalities.1", 0, "cardinalities[1] = 0 (of C2)"),
        ("model.cardinalities", [4, 60], "4 features, but 2 cardinalities"),
        ("model.features.2", "C1", "features[2] = 'C1'; each needs a name of its own"),
        ("model.dense_features", -1, "dense_features = -1"),
        ("model.embedding_dim", 2.5, "model.embedding_dim = 2.5; it must be a whole number"),
        ("devices.0.kind", "tpu", "kind = 'tpu'; it must be one of 'cpu', 'cuda'"),
        ("devices.0.workers", 0, "workers = 0"),
        ("devices.0.name", "a cpu", "'a cpu'"),
        ("devices.1.name", "cpu", "two devices called 'cpu'"),
        ("devices.1.assumed", "yes", "it must be true or false"),
        ("paths", [], "the profile has no paths"),
        ("paths.0.name", "dhe@cpu", "two paths called 'dhe@cpu'"),
        ("paths.0.name", "a, b", "must be a word without commas"),
        ("paths.0.device", "cpu7", "path table@cpu is on device 'cpu7', which is none of cpu, gpu"),
        ("paths.0.accuracy", 78.79, "path table@cpu: accuracy = 78.79; it must be a share"),
        ("paths.0.accuracy", -0.1, "accuracy = -0.1"),
        ("paths.0.auc", 1.01, "auc = 1.01"),
        ("paths.0.bytes", -1, "bytes = -1"),
        ("paths.0.speed", 3, "has no key 'speed'"),
        ("paths.0.times", [], "path table@cpu has no service times"),
        ("paths.0.times.0.size", 0, "size = 0"),
        ("paths.0.times.1.size", 1, "size 1 follows 1; sizes must ascend"),
        ("paths.0.times.2.size", 4, "size 4 follows 16; sizes must ascend"),
        ("paths.0.times.1.quantiles", [1e-4], "64 quantiles for size 1, but 1 for 16"),
        ("paths.0.times.1.quantiles.0", 1.0, "is below quantiles[0] = 1.0; they must ascend"),
        ("paths.0.times.1.quantiles.0", 0.0, "quantiles[0] = 0.0; a time is a positive number"),
        ("paths.0.times.1.quantiles.0", "fast", "quantiles[0] = 'fast'; it must be a number"),
        ("paths.0.times.1.quantiles", [], "size 16 has no quantiles"),
        ("paths.0.times.1.runs", -1, "runs = -1"),
        ("paths.0.times.1.p99_within", -0.1, "p99_within = -0.1"),
        ("paths.3.assumed", False, "table@gpu passes for measured, but its device gpu is assumed"),
    ],
)
def test_bad_files(tmp_path, place, value, message):
    cpu_gpu_profile().save(tmp_path / "profile.json")
    document = json.loads((tmp_path / "profile.json").read_text())
    changed(document, place, value)
    (tmp_path / "profile.json").write_text(json.dumps(document))
    with pytest.raises(InputError) as error:
        Profile.load(tmp_path / "profile.json")
    assert message in str(error.value)
    assert "profile.json" in str(error.value)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_a_time_that_is_no_number(tmp_path, number):
    cpu_gpu_profile().save(tmp_path / "profile.json")
    document = json.loads((tmp_path / "profile.json").read_text())
    document["paths"][0]["times"][0]["quantiles"][-1] = "HERE"
    (tmp_path / "profile.json").write_text(json.dumps(document).replace('"HERE"', number))
    with pytest.raises(InputError, match=r"no number|must be a|is a positive number"):
        Profile.load(tmp_path / "profile.json")


def test_nan_in_memory():
    with pytest.raises(InputError, match=r"quantiles\[1\] = nan"):
        ServiceTime(8, (1e-3, math.nan), 3)
    with pytest.raises(InputError, match="accuracy = nan"):
        make_path("a@cpu", math.nan, affine_times(1e-3, 1e-6))


def test_quantiles_are_linear_in_the_size():
    path = make_path("a@cpu", 0.5, (ServiceTime(2, (1.0, 3.0), 9), ServiceTime(6, (2.0, 8.0), 9)))
    assert path.quantiles(2) == (1.0, 3.0)
    assert path.quantiles(1) == (1.0, 3.0)
    assert path.quantiles(3) == (1.25, 4.25)
    assert path.expected(4) == pytest.approx(3.5)
    assert [path.quantile(6, q) for q in (0, 0.25, 0.5, 0.75, 1)] == [2, 2, 5, 8, 8]
    for size in (0, 7):
        with pytest.raises(InputError, match=f"size = {size}; its batches have 1"):
            path.quantiles(size)
    with pytest.raises(InputError, match=r"a probability is 0 \.\. 1"):
        path.quantile(3, 1.5)


@given(
    st.lists(st.floats(1e-6, 10), min_size=1, max_size=300),
    st.integers(1, 40),
)
def test_quantiles_of_samples(times, quantiles):
    found = ServiceTime.of_samples(5, times, quantiles)
    assert found.runs == len(times)
    wanted = np.quantile(times, (np.arange(quantiles) + 0.5) / quantiles)
    np.testing.assert_allclose(found.quantiles, wanted, rtol=1e-4)
    assert min(times) * 0.9999 <= found.mean <= max(times) * 1.0001


def test_no_samples():
    with pytest.raises(InputError, match="size 4: no measured time"):
        ServiceTime.of_samples(4, [])


def test_what_is_assumed():
    profile = cpu_gpu_profile()
    assert profile.assumed
    told = profile.assumption()
    assert told is not None
    assert "table@gpu, dhe@gpu, hybrid@gpu" in told
    assert "gpu for tests" in told
    assert "table@cpu" not in told
    assert profile.assumption(["table@cpu"]) is None
    part = profile.with_paths(["hybrid@cpu", "table@cpu"])
    assert [p.name for p in part.paths] == ["table@cpu", "hybrid@cpu"]
    assert [d.name for d in part.devices] == ["cpu"]
    assert not part.assumed
    with pytest.raises(InputError, match="no path 'table@tpu'; it has table@cpu"):
        profile.with_paths(["table@tpu"])
    with pytest.raises(InputError, match="no device 'tpu'; it has cpu, gpu"):
        profile.on_device("tpu")
    assert [p.name for p in profile.on_device("gpu")] == ["table@gpu", "dhe@gpu", "hybrid@gpu"]


def test_the_schedulers_fleet_has_the_profiles_times():
    profile = cpu_gpu_profile(workers={"cpu": 2})
    devices = fleet(profile)
    assert devices.devices == ["cpu", "gpu"]
    assert devices.workers == 3
    assert devices.paths == [p.name for p in profile.paths]
    for number, path in enumerate(profile.paths):
        assert devices.accuracy(number) == path.accuracy
        assert devices.max_size(number) == path.max_size
        for size in (1, 2, 77, 128, 4096):
            assert math.isclose(devices.expected(number, size), path.expected(size), rel_tol=1e-12)
    assert fleet(profile, ["dhe@gpu"]).devices == ["gpu"]
