import pytest

from recsys_opt import _machine
from recsys_opt.bench.ceilings import LEVELS, last_level_bytes, measure_cpu


def test_ceilings_are_those_of_a_computer():
    found = measure_cpu(1, (64, 100), seconds=0.002)
    assert 1e8 < found.fp32_flops_per_s < 1e13
    assert found.bf16_flops_per_s == 0 or found.bf16_flops_per_s > 1e8
    assert set(found.read_bytes_per_s) == set(LEVELS)
    assert all(1e7 < rate < 1e13 for rate in found.read_bytes_per_s.values())
    assert set(found.gather_bytes_per_s) == {64, 100}
    assert found.read_rate(found.cache_bytes) == found.read_bytes_per_s["L3"]
    assert found.read_rate(found.cache_bytes + 1) == found.read_bytes_per_s["memory"]
    assert found.to_json()["threads"] == 1


def test_the_last_level_is_no_smaller_than_a_first_level():
    assert last_level_bytes() >= 16 << 10


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: _machine.fp32_flops_per_s(0, 0.001), "threads = 0"),
        (lambda: _machine.bf16_flops_per_s(1, 0.0), "seconds must be above 0"),
        (lambda: _machine.read_bytes_per_s(100, 1, 0.001), "at least 256 bytes"),
        (lambda: _machine.gather_bytes_per_s(1 << 20, 100, 1, 0.001), "multiple of 64"),
        (lambda: _machine.gather_bytes_per_s(64, 128, 1, 0.001), "1 to 2"),
    ],
)
def test_nonsense_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()
