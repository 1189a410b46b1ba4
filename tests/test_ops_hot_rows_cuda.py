"""The ops of held rows on a real GPU; tests/simt tests the logic of the same kernels without one."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_opt import ops
from recsys_opt.ops import hot_rows
from tests.test_ops_hot_rows import Case, counters, shapes

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        not (torch.cuda.is_available() and ops.has_cuda_kernel("hot_rows_split")),
        reason="needs a CUDA GPU and the CUDA kernels; scripts/gpu_check.sh builds and runs these",
    ),
]


@pytest.fixture(autouse=True)
def _no_error_is_left() -> Iterator[None]:
    before = ops.tt_bounds_check("check")
    yield
    ops.tt_bounds_check(before)
    assert ops.tt_bounds_report().errors == 0


def on_gpu(value):
    return [v.cuda() for v in value] if isinstance(value, list) else None if value is None else value.cuda()


def split_there(case: Case):
    directories = [torch.empty_like(d, device="cuda") for d in case.directories]
    keys = on_gpu(case.keys)
    for directory, own in zip(directories, keys, strict=True):
        hot_rows.hot_rows_directory_(directory, own)
    lookups = on_gpu(case.indices), on_gpu(case.offsets)
    return hot_rows.hot_rows_split(*lookups, keys, directories, case.rows, case.padding)


@settings(max_examples=40)
@given(shapes, st.integers(0, 9), st.booleans(), st.booleans())
def test_held_rows_are_found_pooled_and_counted_as_on_the_cpu(lengths, seed, single, exact):
    case = Case(lengths, seed, single)
    want = case.split()
    got = split_there(case)
    torch.testing.assert_close([t.cpu() for t in got], list(want), rtol=0, atol=0)
    results = []
    for move in (lambda v: v, on_gpu):
        leaves = [t.detach().clone().requires_grad_() for t in (move(case.base), *move(case.weights))]
        slots = move(want[0])
        out = hot_rows.hot_rows_bag(leaves[0], leaves[1:], slots, move(case.offsets), None, [True, False])
        grads = torch.autograd.grad(out.square().sum(), leaves, materialize_grads=True)
        counts = [move(list(t)) for t in counters(case, exact)]
        hot_rows.hot_rows_count_(*counts, move(case.indices), slots, move(case.offsets), case.rows)
        results.append([out, *(g.to_dense() for g in grads), *(t for own in counts for t in own)])
    torch.testing.assert_close([t.cpu() for t in results[1]], results[0])


def test_held_rows_of_bad_ids_leave_the_device_usable():
    case = Case([2, 1, 2, 1], 0)
    good = Case([1, 1], 0)
    case.indices[1] = 9
    slots = split_there(case)[0]
    torch.cuda.synchronize()
    assert slots[1] == hot_rows.PADDING
    with pytest.raises(RuntimeError, match=r"indices\[1\] = 9, outside the table's 9 rows"):
        split_there(good)
    torch.testing.assert_close([t.cpu() for t in split_there(good)], list(good.split()), rtol=0, atol=0)


def test_held_rows_not_looked_up_keep_still_under_momentum():
    """SparseAdam moves the rows that a gradient names: the same ones as on the CPU."""
    case = Case([2, 2, 2, 2], 1)
    results = []
    for move in (lambda v: v, on_gpu):
        weights = [torch.nn.Parameter(move(w).clone()) for w in case.weights]
        optimizer = torch.optim.SparseAdam(weights, lr=0.1)
        for batch in (case.split()[0], torch.full((8,), 1, dtype=torch.int32)):
            optimizer.zero_grad()
            out = hot_rows.hot_rows_bag(
                move(case.base), weights, move(batch[:8]), move(case.offsets), None, [False, False]
            )
            out.sum().backward()
            optimizer.step()
        results.append([w.detach().cpu() for w in weights])
    torch.testing.assert_close(*results)


def test_held_rows_wait_for_nothing():
    case = Case([2, 2], 0)
    arguments = on_gpu(case.base), on_gpu(case.weights)
    lookups = on_gpu(case.split()[0]), on_gpu(case.offsets)
    keys, directories = on_gpu(case.keys), on_gpu(case.directories)
    indices = on_gpu(case.indices)
    split_there(case)  # what is made once
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        hot_rows.hot_rows_split(indices, lookups[1], keys, directories, case.rows, case.padding)
        hot_rows.hot_rows_bag(*arguments, *lookups, None, [False, False])
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_held_rows_on_two_devices_are_refused():
    case = Case([1, 1], 0)
    with pytest.raises(RuntimeError, match=r"hot_rows_split: offsets is on cpu, indices on cuda:0"):
        hot_rows.hot_rows_split(
            on_gpu(case.indices),
            case.offsets,
            on_gpu(case.keys),
            on_gpu(case.directories),
            [9, 500],
            [-1, -1],
        )
