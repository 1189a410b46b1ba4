"""hardware.toml, its presets and what is refused."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_opt.errors import InputError
from recsys_opt.planner.hardware import PRESETS, Hardware, Link, Tier

TIER = Tier("hbm", 1 << 30, (16, 64, 256), (100.0, 400.0, 800.0), (50.0, 200.0, 300.0))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_load_and_survive_a_file(name: str, tmp_path: Path) -> None:
    preset = Hardware.load(name)
    preset.save(tmp_path / "h.toml")
    again = Hardware.load(tmp_path / "h.toml")
    assert (again, again.sha256) == (preset, preset.sha256)
    assert Hardware.from_json(preset.to_json()) == preset
    # Small rows never reach the bandwidth of large ones, and the fast tier is the faster one.
    for tier in (preset.fast, preset.slow):
        rates = [size / tier.read_seconds(size) for size in (8, 16, 64, 100, 256, 1024)]
        assert rates == sorted(rates)
        assert all(tier.update_seconds(size) > tier.read_seconds(size) for size in (8, 64, 4096))
    assert all(preset.fast.read_seconds(s) < preset.slow.read_seconds(s) for s in (4, 64, 512))


def test_the_issue_asks_for_these_presets() -> None:
    assert {"a100-40gb", "a100-80gb", "h100", "h200", "gh200", "cpu-disk"} <= set(PRESETS)


def test_bandwidth_between_and_outside_the_given_sizes() -> None:
    assert TIER.read_seconds(64) == pytest.approx(64 / 400)
    assert TIER.read_seconds(32) == pytest.approx(32 / 200)  # the geometric mean, at the middle
    assert TIER.read_seconds(1024) == pytest.approx(1024 / 800)
    assert TIER.read_seconds(4) == pytest.approx(16 / 100)  # as long as the smallest row
    assert TIER.update_seconds(256) == pytest.approx(256 / 300)
    with pytest.raises(InputError, match="row_bytes = 0"):
        TIER.read_seconds(0)


@given(
    st.lists(st.integers(1, 1 << 20), min_size=1, max_size=6, unique=True).map(sorted),
    st.data(),
    st.text(min_size=1),
)
def test_whatever_can_be_said_survives_a_file(sizes: list[int], data: st.DataObject, text: str) -> None:
    rates = st.lists(st.floats(1e-6, 1e18, allow_subnormal=False), min_size=len(sizes), max_size=len(sizes))
    tier = Tier("x", data.draw(st.integers(1, 1 << 60)), tuple(sizes), data.draw(rates), data.draw(rates))  # type: ignore[arg-type]
    link = Link("wire", data.draw(st.floats(1e-3, 1e15)), data.draw(st.floats(0, 10)))
    hardware = Hardware(text, text[::-1], True, 3, 2, tier, replace(tier, name="y"), link, link)
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        hardware.save(Path(folder) / "h.toml")
        assert Hardware.load(Path(folder) / "h.toml") == hardware


def test_changes_behind_a_colon() -> None:
    changed = Hardware.load("h100:nodes=4,devices=2,hbm=24GB,uvm=128GB,reserved=8GB")
    assert (changed.num_devices, changed.fast.capacity_bytes) == (8, 16 * 10**9)
    assert changed.slow.capacity_bytes == 128 * 10**9
    assert Hardware.load("h100:hbm=24GB").fast.capacity_bytes == 24 * 10**9
    assert changed.name == "h100:nodes=4,devices=2,hbm=24GB,uvm=128GB,reserved=8GB"
    assert changed.fast.read_bytes_per_s == Hardware.load("h100").fast.read_bytes_per_s
    assert changed.sha256 != Hardware.load("h100").sha256


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("h10", "did you mean 'h100'"),
        ("h100:hmb=24GB", "did you mean 'hbm'"),
        ("h100:ddr=24GB", "give nodes, devices, hbm, uvm, reserved"),
        ("h100:nodes=0", "nodes = 0"),
        ("h100:nodes=two", "nodes = 'two'; it must be a whole number"),
        ("h100:hbm=24GB,hbm=32GB", "hbm is given twice"),
        ("h100:hbm=-24GB", "hbm = '-24GB'; it must be a number of bytes"),
        ("h100:hbm=0", "at least 1 byte"),
        ("h100:reserved=90GB", "reserve less"),
        ("nowhere.toml", "does not exist"),
    ],
)
def test_specs_that_are_refused(spec: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        Hardware.load(spec)
    assert said in str(error.value)
    assert spec.partition(":")[0] in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("bytes_per_s = 370000000000.0", "bytes_per_s = nan", "[intra_node] bytes_per_s = nan"),
        ("bytes_per_s = 370000000000.0", "bytes_per_s = -1", "[intra_node] bytes_per_s = -1"),
        ("bytes_per_s = 370000000000.0", "bytes_per_s = inf", "it must be a finite number above 0"),
        ("[536000000000.0,", "[0,", "[fast] read_bytes_per_s[0] = 0"),
        ("[536000000000.0,", "[true,", "[fast] read_bytes_per_s[0] = True"),
        ("[536000000000.0,", "[", "6 bandwidths for the 7 sizes"),
        (
            "row_bytes = [16, 32,",
            "row_bytes = [32, 16,",
            "sizes of rows are whole numbers of bytes that ascend",
        ),
        ("memory_bytes = 80000000000", "memory_bytes = 0", "[fast] memory_bytes = 0"),
        (
            "memory_bytes = 80000000000",
            "memory_bytes = -5",
            "[fast] memory_bytes = -5; it must be a number of bytes",
        ),
        ("memory_bytes = 80000000000", "memory_byte = 80", "did you mean 'memory_bytes'"),
        ("memory_bytes = 80000000000\n", "", "[fast] memory_bytes is missing"),
        ('name = "uvm"', 'name = "hbm"', "both tiers are called 'hbm'"),
        ("nodes = 1", "nodes = 1.5", "nodes = 1.5"),
        ("nodes = 1", "node = 1", "did you mean 'nodes'"),
        ("measured = false", 'measured = "no"', "measured = 'no'; it must be true or false"),
        ("latency_seconds = 2.5e-05", "latency_seconds = -1e-6", "it must be a finite number 0 or more"),
        (
            "version = 1",
            "version = 2",
            "has version 2 of recsys_opt.hardware; this recsys_opt reads version 1",
        ),
        ('format = "recsys_opt.hardware"', 'format = "x"', "format = 'x'"),
        ("[inter_node]", "[inter_node", "not whole, readable TOML"),
        ("[inter_node]", "[elsewhere]", "elsewhere is no key"),
    ],
)
def test_files_that_are_refused(old: str, new: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "h.toml"
    Hardware.load("h100").save(path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(InputError) as error:
        Hardware.load(path)
    assert said in str(error.value)
    assert str(path) in str(error.value)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "h.toml"
    Hardware.load("gh200").save(path)
    text = path.read_text()
    for cut in range(0, len(text) - 1, 97):
        path.write_text(text[:cut])
        with pytest.raises(InputError):
            Hardware.load(path)


def test_a_bandwidth_that_is_no_number_never_gets_into_a_tier() -> None:
    with pytest.raises(InputError, match=r"read_bytes_per_s\[1\] = nan"):
        replace(TIER, read_bytes_per_s=(1.0, math.nan, 1.0))


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=8,
)


@settings(max_examples=200)
@given(st.data(), JSON_VALUES)
def test_any_value_in_any_place_is_taken_or_refused_with_the_files_name(
    data: st.DataObject, value: object
) -> None:
    document = Hardware.load("h100").to_json()
    key = data.draw(st.sampled_from(sorted(document)))
    if isinstance(document[key], dict) and data.draw(st.booleans()):
        document[key][data.draw(st.sampled_from([*sorted(document[key]), "extra"]))] = value
    else:
        document[key] = value
    said = ""
    try:
        taken = Hardware.from_json(document, "x.toml")
    except InputError as error:
        said = str(error)
    else:
        assert Hardware.from_json(taken.to_json()) == taken
        assert taken.fast.capacity_bytes >= 1
        assert 0 < taken.fast.read_seconds(64) < math.inf
    assert not said or said.startswith("x.toml: ")
