"""Ids and offsets out of range in the CUDA kernels, run on the host by the shim (simt.h)."""

from dataclasses import replace

import pytest
import torch

from recsys_opt import ops as public_ops
from recsys_opt import reference
from tests.simt import ops
from tests.simt.test_tt_kernels import DIRECT, PLANNED, check, one_table
from tests.tt_cases import Case

pytestmark = pytest.mark.usefixtures("one_thread")


def bad_call(indices: list[int], offsets: list[int]) -> Case:
    case = one_table(dtype=torch.float64)
    case.indices, case.offsets = torch.tensor(indices), torch.tensor(offsets)
    return case


BAD = [
    ([0, 60, 5], [0, 1, 2, 3], r"indices\[1\] = 60, outside the table's 60 rows \(table 0\)", [0, -1, 5]),
    ([-1, 3], [0, 1, 2], r"indices\[0\] = -1, outside the table's 60 rows", [-1, 3]),
    ([2**62, 3], [0, 2, 2], r"indices\[0\] = 4611686018427387904, outside", [-1, 3]),
    ([1, 2], [0, 2, 1], r"offsets\[2\] = 1, less than offsets\[1\] = 2", None),
    ([1, 2], [0, 1, 3], r"offsets\[2\] = 3, outside the 2 indices", None),
    ([1, 2], [0, 10**12, 2], r"offsets\[1\] = 1000000000000, outside the 2 indices", None),
    ([1, 2], [-(10**12), 1, 2], r"offsets\[0\] = -1000000000000, outside the 2 indices", None),
    ([1, 2], [1, 1, 2], r"offsets\[0\] = 1, where the first bag must start at 0", None),
]


@pytest.mark.parametrize("path", [PLANNED, DIRECT], ids=["planned", "direct"])
@pytest.mark.parametrize(("indices", "offsets", "message", "kept"), BAD)
def test_bad_values_are_raised_by_the_next_call(indices, offsets, message, kept, path):
    case = bad_call(indices, offsets)
    good = one_table(dtype=torch.float64)
    with ops.running(bounds=0, **path):
        out = case.call(ops.tt_embedding_bag)
        assert out.isfinite().all()
        with pytest.raises(RuntimeError, match=message):
            good.call(ops.tt_embedding_bag)
        good.call(ops.tt_embedding_bag)  # once
        out.sum().backward()
        with pytest.raises(RuntimeError, match=message):
            good.call(ops.tt_embedding_bag)


@pytest.mark.parametrize(("indices", "offsets", "message", "kept"), BAD)
def test_clamped_values_count_for_nothing_and_are_counted(indices, offsets, message, kept):
    case = bad_call(indices, offsets)
    ops.library().tt_bounds_report(0)
    for path in (PLANNED, DIRECT):
        with ops.running(bounds=1, **path):
            out = case.call(ops.tt_embedding_bag)
            grads = torch.autograd.grad(out.sum(), case.cores)
        count, *_ = ops.library().tt_bounds_report(0)
        assert count >= 2
        assert all(t.isfinite().all() for t in (out, *grads))
        assert ops.library().tt_bounds_report(0)[0] == 0
        if kept is None:
            continue
        lengths = torch.tensor(offsets).diff()
        bags = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        valid = torch.tensor(kept) >= 0
        good = replace(
            case,
            indices=torch.tensor(kept)[valid],
            offsets=torch.cat([torch.zeros(1), torch.bincount(bags[valid], minlength=len(lengths))]).cumsum(
                0
            ),
        )
        good.offsets = good.offsets.long()
        want = good.call(reference.tt_embedding_bag)
        torch.testing.assert_close(out, want)
        torch.testing.assert_close(grads, torch.autograd.grad(want.sum(), case.cores))


def test_trusted_values_are_not_looked_at():
    case = one_table(dtype=torch.float64)
    with ops.running(bounds=2, direct_lookups=0):
        check(case)
    assert ops.library().tt_bounds_report(0) == [0] * 6


def test_many_bad_ids_are_counted():
    case = bad_call([60 + i for i in range(50)], list(range(51)))
    ops.library().tt_bounds_report(0)
    with ops.running(bounds=1, direct_lookups=0):
        out = case.call(ops.tt_embedding_bag)
    report = ops.library().tt_bounds_report(0)
    assert not out.any()
    assert report[0] == 50
    assert report[3] == report[2] + 60


def test_trusting_a_bad_id_reads_outside_and_the_shim_sees_it():
    case = bad_call([-(10**6)], [0, 1])
    with ops.running(bounds=2, **DIRECT), pytest.raises(RuntimeError, match="outside every buffer"):
        case.call(ops.tt_embedding_bag)


def test_settings_refuse_what_they_do_not_know():
    with pytest.raises(RuntimeError, match="there is no setting 'speed'"):
        ops.library().tt_cuda_setting("speed", 1)
    with pytest.raises(RuntimeError, match="bounds = 3; it is 0"):
        ops.library().tt_cuda_setting("bounds", 3)
    assert ops.library().tt_cuda_setting("bounds", -1) == 0


def test_algorithms_have_the_kernels_numbers():
    assert public_ops.TT_ALGORITHMS == {"sgd": 0, "adagrad": 1, "rowwise_adagrad": 2, "adam": 3}


@pytest.mark.parametrize("path", [PLANNED, DIRECT], ids=["planned", "direct"])
def test_a_bag_of_bad_offsets_is_empty_and_the_others_are_not(path):
    case = bad_call([3, 4, 5, 6, 7, 8], [0, 2, 1, 4, 9])  # the second ends before it begins, the last outside
    with ops.running(bounds=1, **path), torch.no_grad():
        out = case.call(ops.tt_embedding_bag)
    assert ops.library().tt_bounds_report(0)[0] == 2
    assert not out[1].any()
    assert not out[3].any()
    rows = reference.tt_embedding_bag(torch.tensor([3, 4, 5, 6]), torch.arange(5), case.cores, **case.options)
    # The first and the third overlap: an id is in the last of the bags that begin before it.
    torch.testing.assert_close(out[0], rows[0])
    torch.testing.assert_close(out[2], rows[1:].sum(0))
