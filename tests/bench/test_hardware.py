"""Measured bandwidths: that the rows counted were touched, and that the planner reads the result."""

import json
import mmap
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys_opt import _machine
from recsys_opt.bench.hardware import Settings, measure, tier_of
from recsys_opt.bench.hardware_bags import BagSettings, bag_rates
from recsys_opt.bench.measure import WallClock
from recsys_opt.cli.main import main
from recsys_opt.errors import InputError
from recsys_opt.planner.hardware import Hardware

SMALL = Settings(
    row_bytes=(16, 256), rounds=1, memory_bytes=1 << 20, file_bytes=4 << 20, seconds=0.001, file_seconds=0.002
)


@pytest.mark.parametrize(("row_bytes", "threads"), [(8, 1), (64, 2), (200, 2)])
def test_an_update_changes_each_row_that_is_counted(row_bytes: int, threads: int) -> None:
    memory = np.zeros(1 << 16, dtype=np.uint8)
    rate, rows = _machine.row_rate(memory, row_bytes, threads, 0.002, update=True, mapped_file=False, seed=3)
    assert rate > 0
    assert int(memory.view(np.uint64).sum()) == rows * (row_bytes // 8) * 0x0101
    touched = memory.view(np.uint64) != 0
    # Nearly all rows of each thread's part.
    assert touched[: len(touched) // 2].mean() > 0.9
    assert touched[len(touched) // 2 :].mean() > 0.9


def test_a_read_changes_nothing_and_repeats_itself() -> None:
    memory = np.arange(1 << 12, dtype=np.uint8)
    before = memory.copy()
    _, rows = _machine.row_rate(memory, 64, 1, 0.001, update=False, mapped_file=False, seed=1)
    assert rows >= 4096
    assert (memory == before).all()


@pytest.mark.parametrize(
    ("memory", "row_bytes", "threads", "said"),
    [
        (np.zeros(64, dtype=np.uint8), 12, 1, "multiple of 8"),
        (np.zeros(64, dtype=np.uint8), 64, 2, "each thread have a row"),
        (np.zeros(64, dtype=np.float32), 8, 1, "buffer of bytes"),
        (np.zeros(64, dtype=np.uint8)[::2], 8, 1, "buffer of bytes"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    memory: np.ndarray, row_bytes: int, threads: int, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        _machine.row_rate(memory, row_bytes, threads, 0.001, update=False, mapped_file=False, seed=0)


def test_a_machine_becomes_hardware_that_the_planner_reads(tmp_path: Path) -> None:
    out, record = tmp_path / "h.toml", tmp_path / "r.json"
    arguments = ["--disk", str(tmp_path), "--out", str(out), "--record", str(record), "--rounds", "1"]
    sizes = ["--row-bytes", "16", "64", "--memory-bytes", "1MiB", "--file-bytes", "4MiB"]
    assert main(["bench", "hardware", *arguments, *sizes]) == 0
    hardware = Hardware.load(out)
    assert hardware.measured
    assert (hardware.fast.row_bytes, hardware.slow.row_bytes) == ((16, 64), (16, 64, mmap.PAGESIZE))
    rows = {(r["tier"], r["kind"], r["row_bytes"]): r for r in json.loads(record.read_text())["rows"]}
    assert len(rows) == 12
    for tier in (hardware.fast, hardware.slow):
        for size, read, update in zip(
            tier.row_bytes, tier.read_bytes_per_s, tier.update_bytes_per_s, strict=True
        ):
            assert read == pytest.approx(rows[tier.name, "read", size]["bytes_per_s"], rel=1e-3)
            assert update == pytest.approx(rows[tier.name, "update", size]["bytes_per_s"], rel=1e-3)
    assert not list(tmp_path.glob(".bench_hardware*"))  # the file is removed


def test_a_file_that_lies_in_memory_is_said_to() -> None:
    shared = Path("/dev/shm")
    if not shared.is_dir():
        pytest.skip("there is no /dev/shm, a file system in memory")
    (remark,) = measure(SMALL, shared).remarks
    assert "came from memory" in remark
    assert "--disk" in remark


def test_settings_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="row_bytes = 20"):
        Settings(row_bytes=(20,))
    with pytest.raises(InputError, match="memory_bytes = 64"):
        Settings(memory_bytes=64)
    with pytest.raises(InputError, match="no folder"):
        measure(SMALL, tmp_path / "nowhere")
    with pytest.raises(InputError, match="bytes free, of which half may be taken"):
        measure(Settings(file_bytes=1 << 60), tmp_path)


def test_lookups_that_measure_a_gpu_run_on_any_device(device: torch.device) -> None:
    settings = BagSettings((16, 64), rounds=2, table_bytes=1 << 16, lookups=1 << 10)
    rates = list(bag_rates(settings, device, ("fast", "slow"), WallClock()))
    assert [(r.tier, r.row_bytes, r.kind) for r in rates] == [
        (tier, size, kind) for tier in ("fast", "slow") for size in (16, 64) for kind in ("read", "update")
    ]
    assert all(0 < r.p20 <= r.bytes_per_s <= r.p80 for r in rates)
    assert tier_of("fast", 100, 10, rates).row_bytes == (16, 64)
    with pytest.raises(InputError, match="row_bytes = 6"):
        BagSettings((6,))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")
def test_a_gpu_becomes_hardware(tmp_path: Path) -> None:
    out = tmp_path / "h.toml"
    arguments = ["--out", str(out), "--record", str(tmp_path / "r.json"), "--rounds", "2"]
    assert main(["bench", "hardware", "--device", "cuda", *arguments, "--row-bytes", "64", "256"]) == 0
    hardware = Hardware.load(out)
    assert (hardware.fast.name, hardware.slow.name) == ("hbm", "uvm")
    assert hardware.fast.read_seconds(64) < hardware.slow.read_seconds(64)
