"""The CUDA kernel of frozen tables, run on the host by the shim (simt.h), against the float64 reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.simt import ops
from tests.test_ops_tt_prefix import Call, bad, big_batch, calls, check

pytestmark = pytest.mark.usefixtures("one_thread")


def on_device(*arguments) -> Tensor:
    """The op on copies that end at a page that may not be touched."""
    guarded = [
        [ops.guarded(t) for t in a] if isinstance(a, list) and isinstance(a[0], Tensor) else a
        for a in arguments
    ]
    guarded = [ops.guarded(a) if isinstance(a, Tensor) else a for a in guarded]
    result: Tensor = ops.library().tt_prefix_bag(*guarded)
    return result


@settings(max_examples=30)
@given(calls(), st.sampled_from(("forward", "backward", "random")))
def test_values(call, order):
    with ops.running(order):
        check(call, on_device)


def test_more_tables_than_travel_at_once():
    one = big_batch(4)
    count = 40
    call = Call(
        one.indices.repeat(count),
        torch.arange(0, 12 * count + 1, 3),
        one.prefixes * count,
        one.lasts * count,
        one.num_embeddings * count,
        one.pooling_modes * count,
        one.padding_idx * count,
    )
    check(call, on_device)


@pytest.mark.parametrize(
    ("call", "message", "errors"),
    [
        (bad([0, 57, 5], [0, 1, 3]), r"indices\[1\] = 57, outside the table's 57 rows \(table 0\)", 1),
        (bad([-1, 3], None), r"indices\[0\] = -1, outside the table's 57 rows", 1),
        (bad([1, 2], [0, 3]), r"offsets\[1\] = 3, outside the 2 indices", 1),
        (bad([1, 2], [0, 2, 1]), r"offsets\[2\] = 1, less than offsets\[1\] = 2", 1),
        (bad([1, 2], [0, 10**12], last=False), r"offsets\[1\] = 1000000000000, outside the 2 indices", 1),
    ],
)
def test_bad_values_count_for_nothing_and_are_reported(call, message, errors):
    good = bad([0, 1], None)
    ops.library().tt_bounds_report(0)
    with ops.running(bounds=0):
        assert call.run(on_device).isfinite().all()
        with pytest.raises(RuntimeError, match=message):
            good.run(on_device)
        good.run(on_device)  # once
    with ops.running(bounds=1):
        assert call.run(on_device).isfinite().all()
        assert ops.library().tt_bounds_report(0)[0] >= errors
        good.run(on_device)


def test_trusted_values_are_not_looked_at():
    with ops.running(bounds=2):
        check(big_batch(20), on_device)
    assert ops.library().tt_bounds_report(0) == [0] * 6
