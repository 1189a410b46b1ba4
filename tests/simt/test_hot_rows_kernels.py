"""The CUDA kernels of held rows, run on the host by the shim (simt.h), against the CPU's."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_opt import reference_hot_rows as reference
from recsys_opt.ops import hot_rows as public
from tests.simt import ops
from tests.test_ops_hot_rows import Case, counters, shapes

pytestmark = pytest.mark.usefixtures("one_thread")
ORDERS = st.sampled_from(("forward", "backward", "random"))


def guarded(tensors):
    return [ops.guarded(tensor) for tensor in tensors]


def directory_of(keys: torch.Tensor, capacity: int) -> torch.Tensor:
    directory = ops.guarded(torch.zeros(capacity, dtype=torch.int32))
    ops.library().hot_rows_directory_(directory, ops.guarded(keys))
    return directory


def split(case: Case):
    directories = [directory_of(k, len(d)) for k, d in zip(case.keys, case.directories, strict=True)]
    indices, offsets = ops.guarded(case.indices), ops.guarded(case.offsets)
    keys = guarded(case.keys)
    return ops.library().hot_rows_split(indices, offsets, keys, directories, case.rows, case.padding)


@settings(max_examples=40, deadline=None)
@given(shapes, st.integers(0, 9), st.booleans(), st.booleans(), ORDERS)
def test_split(lengths, seed, single, narrow, order):
    case = Case(lengths, seed, single, torch.int32 if narrow else torch.int64)
    with ops.running(order):
        got = split(case)
    torch.testing.assert_close(tuple(got), case.split(), rtol=0, atol=0)


def test_split_of_more_bags_than_a_block_sums():
    g = torch.Generator().manual_seed(0)
    lengths = torch.randint(0, 3, (2 * 33_000,), generator=g).tolist()  # two turns of the totals' block
    case = Case(lengths, 0)
    want = public.hot_rows_split(
        case.indices, case.offsets, case.keys, case.directories, case.rows, case.padding
    )
    with ops.running():
        torch.testing.assert_close(tuple(split(case)), want, rtol=0, atol=0)


@settings(max_examples=40, deadline=None)
@given(shapes, st.integers(0, 9), st.booleans(), st.booleans(), st.tuples(*[st.booleans()] * 2), ORDERS)
def test_bag_and_its_gradients(lengths, seed, single, weighted, mean, order):
    case = Case(lengths, seed, single)
    slots = case.split()[0]
    flags = [0, 0] if weighted else [int(m) for m in mean]
    factors = torch.linspace(-1, 2, slots.numel(), dtype=torch.float64) if weighted else None
    lookups = (slots, case.offsets)
    grad = torch.randn_like(case.base)
    ours = torch.ops.recsys_opt
    with ops.running(order):
        theirs = (guarded(case.weights), *map(ops.guarded, lookups))
        kernels = ops.library()
        got = kernels.hot_rows_bag(ops.guarded(case.base), *theirs, ops.guarded(factors), flags)
        rows = kernels.hot_rows_bag_row_gradients(ops.guarded(grad), *theirs, ops.guarded(factors), flags)
        base = kernels.hot_rows_bag_base_gradient(ops.guarded(grad), *theirs, flags)
        weights = kernels.hot_rows_bag_factor_gradients(ops.guarded(grad), *theirs)
    arguments = (case.weights, *lookups)
    torch.testing.assert_close(got, ours.hot_rows_bag(case.base, *arguments, factors, flags))
    torch.testing.assert_close(base, ours.hot_rows_bag_base_gradient(grad, *arguments, flags))
    torch.testing.assert_close(weights, ours.hot_rows_bag_factor_gradients(grad, *arguments))
    wanted = ours.hot_rows_bag_weight_gradients(grad, *arguments, factors, flags)
    for weight, ids, values, want in zip(case.weights, rows[::2], rows[1::2], wanted, strict=True):
        torch.testing.assert_close(ids, torch.arange(len(weight)), rtol=0, atol=0)
        torch.testing.assert_close(values, want.to_dense())


@settings(max_examples=40, deadline=None)
@given(shapes, st.integers(0, 9), st.booleans(), st.booleans(), st.integers(1, 3), ORDERS)
def test_count(lengths, seed, single, exact, stride, order):
    case = Case(lengths, seed, single)
    slots = case.split()[0]
    got, want = tuple(map(guarded, counters(case, exact))), counters(case, exact)
    with ops.running(order):
        for turn in range(2):
            phase = turn % stride
            ids, offsets = ops.guarded(case.indices), ops.guarded(case.offsets)
            ops.library().hot_rows_count_(*got, ids, ops.guarded(slots), offsets, case.rows, stride, phase)
            reference.count_(*want, case.indices, slots, case.offsets, stride, phase)
    torch.testing.assert_close(got, tuple(want), rtol=0, atol=0)


def test_bad_ids_stop_the_device():
    case = Case([1, 1], 0, True)
    case.indices = torch.tensor([9, 1])
    with ops.running(), pytest.raises(RuntimeError, match="stopped the device"):
        split(case)
    with ops.running(), pytest.raises(RuntimeError, match="stopped the device"):
        directory_of(torch.tensor([5, 5]), 4)
