"""The CUDA kernels of held rows, run on the host by the shim (simt.h), against the CPU's."""

import re

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


@settings(max_examples=40)
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


@settings(max_examples=40)
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
    for ids, values, want in zip(rows[::2], rows[1::2], wanted, strict=True):
        got = torch.sparse_coo_tensor(ids.unsqueeze(0), values, want.shape, check_invariants=True)
        torch.testing.assert_close(got.to_dense(), want.to_dense())
        touched = want.coalesce().indices()
        # No slot that was not looked up, or optimizers with momentum would move it; 0 where none was.
        torch.testing.assert_close(
            got.coalesce().indices(), touched if touched.numel() else torch.zeros_like(ids[:1]).unsqueeze(0)
        )


@settings(max_examples=40)
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


def test_counts_stop_at_the_largest_number():
    """Not wrapped to the least one, on either device."""
    most = torch.iinfo(torch.int32).max
    for exact in (True, False):
        case = Case([3, 3], 0)
        slots = case.split()[0]
        results = []
        for library in (ops.library(), torch.ops.recsys_opt):
            hot, counts, candidates = tuple(map(guarded, counters(case, exact)))
            for tensor in (*hot, *counts):
                tensor.fill_(most - 1)
            for _ in range(3):
                library.hot_rows_count_(
                    hot, counts, candidates, case.indices, slots, case.offsets, case.rows, 1, 0
                )
            assert all(int(tensor.min()) >= most - 1 for tensor in (*hot, *counts))
            assert max(int(tensor.max()) for tensor in (*hot, *counts)) == most
            results.append((*hot, *counts, *candidates))
        torch.testing.assert_close(*results, rtol=0, atol=0)
        hot, counts, candidates = counters(case, exact)
        for tensor in (*hot, *counts):
            tensor.fill_(most - 1)
        for _ in range(3):
            reference.count_(hot, counts, candidates, case.indices, slots, case.offsets)
        torch.testing.assert_close(results[0], (*hot, *counts, *candidates), rtol=0, atol=0)


# --- ids, offsets, slots and keys out of range ---


def report() -> list[int]:
    found: list[int] = ops.library().tt_bounds_report(0)
    return found


def bad_ids() -> Case:
    case = Case([2, 1, 2, 1], 0)
    case.indices[1], case.indices[3] = 9, -5
    return case


def test_bad_ids_count_for_nothing_and_the_next_call_says_so():
    case = bad_ids()
    good = Case([1, 1], 0)
    with ops.running():
        slots, cold, cold_offsets, positions = split(case)
        with pytest.raises(RuntimeError, match=r"met 2 ids .* indices\[1\] = 9, outside the table's 9 rows"):
            split(good)
        got = split(good)
    torch.testing.assert_close(tuple(got), good.split(), rtol=0, atol=0)
    assert slots[1] == slots[3] == public.PADDING
    kept = torch.tensor([0, 2, 4, 5])
    expected = Case([1, 1, 1, 1], 0)
    expected.indices = case.indices[kept]
    want = expected.split()
    torch.testing.assert_close(slots[kept], want[0], rtol=0, atol=0)
    torch.testing.assert_close(cold_offsets, want[2], rtol=0, atol=0)
    count = int(cold_offsets[-1])
    torch.testing.assert_close(cold[:count], want[1][:count], rtol=0, atol=0)
    torch.testing.assert_close(positions[:count], kept[want[3][:count]], rtol=0, atol=0)
    assert not cold[count:].any()


def test_clamped_ids_are_counted():
    report()
    with ops.running(bounds=1):
        split(bad_ids())
        split(Case([1, 1], 0))
    assert report()[0] == 2
    assert report() == [0] * 6


def test_trusted_ids_are_not_looked_at():
    case = Case([2, 2], 0)
    with ops.running(bounds=2):
        torch.testing.assert_close(tuple(split(case)), case.split(), rtol=0, atol=0)
    assert report()[0] == 0


BAD_OFFSETS = [
    ([1, 2, 4, 5, 6], 3, "offsets[0] = 1, where the first bag must start at 0"),
    ([0, 5, 2, 4, 6], 2, "offsets[2] = 2, less than offsets[1] = 5"),
    ([0, 1, 2, 3, 7], 1, "offsets[4] = 7, outside the 6 indices"),
    ([0, -1, 2, 3, 6], 1, "offsets[1] = -1, outside the 6 indices"),
    ([0, 6, 0, 6, 6], 2, "offsets[2] = 0, less than offsets[1] = 6"),
    ([0, 10**15, 0, 10**15, 6], 1, "offsets[1] = 1000000000000000, outside the 6 indices"),
]


@settings(max_examples=30)
@given(st.sampled_from(BAD_OFFSETS), ORDERS, st.integers(0, 9), st.booleans())
def test_bad_offsets_are_noted_and_nothing_is_read_or_written_outside(bad, order, seed, exact):
    offsets, kind, message = bad
    case = Case([2, 1, 2, 1], 0)
    case.offsets = torch.tensor(offsets)
    ids = len(case.indices)
    report()
    with ops.running(order, seed, bounds=1):
        slots, _, cold_offsets, positions = split(case)
        first = report()
        assert first[0] > 0
        assert first[1] == kind
        assert ((positions >= 0) & (positions < ids)).all()
        assert ((cold_offsets >= 0) & (cold_offsets <= ids)).all()
        lookups = (guarded(case.weights), ops.guarded(slots), ops.guarded(case.offsets))
        out = ops.library().hot_rows_bag(ops.guarded(case.base), *lookups, None, [0, 0])
        rows = ops.library().hot_rows_bag_row_gradients(ops.guarded(case.base), *lookups, None, [1, 1])
        factors = ops.library().hot_rows_bag_factor_gradients(ops.guarded(case.base), *lookups)
        assert all(tensor.isfinite().all() for tensor in (out, *rows, factors))
        hot, counts, candidates = tuple(map(guarded, counters(case, exact)))
        ids_, slots_, offsets_ = map(ops.guarded, (case.indices, slots, case.offsets))
        ops.library().hot_rows_count_(hot, counts, candidates, ids_, slots_, offsets_, case.rows, 1, 0)
        report()
    with ops.running(order, seed, bounds=0):
        split(case)
        with pytest.raises(RuntimeError, match=re.escape(message)):
            split(Case([1, 1], 0))


def test_slots_that_a_table_has_not_are_noted():
    case = Case([2, 2], 0)
    slots = torch.tensor([0, 4, 2, 1], dtype=torch.int32)
    lookups = (guarded(case.weights), ops.guarded(slots), ops.guarded(case.offsets))
    report()
    with ops.running(bounds=1):
        out = ops.library().hot_rows_bag(ops.guarded(case.base), *lookups, None, [0, 0])
    assert report()[0] == 3 + 8  # an element of the bag each
    want = case.base.clone()
    want[:, :3] += case.weights[0][0]
    want[:, 3:] += case.weights[1][1]
    torch.testing.assert_close(out, want)
    with ops.running(bounds=0):
        hot, counts, candidates = tuple(map(guarded, counters(case, False)))
        arguments = (ops.guarded(case.indices), ops.guarded(slots), ops.guarded(case.offsets))
        ops.library().hot_rows_count_(hot, counts, candidates, *arguments, case.rows, 1, 0)
        with pytest.raises(RuntimeError, match=r"slots\[1\] = 4, outside the table's 4 slots \(table 0\)"):
            split(case)
    assert hot[0].tolist() == [1, 0, 0, 0]
    assert hot[1].tolist() == [0, 1]


def test_a_key_held_twice_is_noted():
    with ops.running():
        directory = directory_of(torch.tensor([5, 5]), 4)
        with pytest.raises(RuntimeError, match=r"keys\[1\] = 5, held by keys\[0\] already"):
            directory_of(torch.tensor([5, 6]), 4)
    assert sorted(directory.tolist()) == [-1, -1, -1, 0]
