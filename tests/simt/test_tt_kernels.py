"""The CUDA kernels' logic, run on the host by the shim (simt.h), against the float64 reference.

Every buffer ends at a page that may not be touched and begins as NaN patterns, so a read or write outside, or
an output that nothing wrote, fails these tests.
"""

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recsys_opt import reference
from tests.simt import ops
from tests.test_ops_tt_update import ALGORITHMS, Step, numbers
from tests.tt_cases import OPTIONS, Case, cases, rounding_steps

pytestmark = pytest.mark.usefixtures("one_thread")
PLANNED, DIRECT = {"direct_lookups": 0}, {"direct_lookups": 10**9}
PATHS = st.sampled_from((PLANNED, PLANNED, PLANNED, DIRECT))
RUNS = st.sampled_from((1, 3, 64, 65, 256))
THREAD_ORDERS = st.sampled_from(("forward", "backward", "random"))


def check(case: Case, unit: float | None = None) -> None:
    """Values and gradients against the reference, within the rounding that the sums allow.

    unit  of the products, where it is not that of the type's accumulator
    """
    got = case.results(ops.tt_embedding_bag)
    exact = case.mapped(Tensor.double).results(reference.tt_embedding_bag)
    sizes = case.mapped(lambda t: t.double().abs()).results(reference.tt_embedding_bag)
    dtype = case.cores[0].dtype
    accumulator = dtype if dtype == torch.float64 else torch.float32
    products = torch.finfo(accumulator).eps / 2 if unit is None else unit
    for mine, right, size, steps in zip(got, exact, sizes, rounding_steps(case), strict=True):
        assert mine.dtype == dtype
        u = torch.finfo(accumulator).eps * steps + products * 8
        bound = u / (1 - u) * size + torch.finfo(dtype).eps * right.abs() + torch.finfo(dtype).tiny
        wrong = ~((mine.double() - right).abs() <= bound)
        assert not wrong.any(), (
            f"{mine[wrong][0]} instead of {right[wrong][0]}, allowed {bound[wrong][0]}; {case.notes}"
        )


SMALL = cases(tables=3, batches=(1, 2, 5, 20, 0), most_rank=20)


@settings(max_examples=40)
@given(SMALL, PATHS, RUNS, THREAD_ORDERS)
def test_values_and_gradients(case: Case, path, run, order):
    with ops.running(order, run=run, **path):
        check(case)


@pytest.mark.slow
@settings(max_examples=150)
@given(cases(batches=(1, 3, 9, 40, 0)), PATHS, RUNS, THREAD_ORDERS)
def test_values_and_gradients_on_many_cases(case: Case, path, run, order):
    with ops.running(order, run=run, **path):
        check(case)


def one_table(
    n=150, p=(4, 3, 5), q=(2, 3, 2), ranks=(8, 6), dtype=torch.float32, rows=None, bags=None, seed=0
) -> Case:
    g = torch.Generator().manual_seed(seed)
    bonds = [1, *ranks, 1]
    cores = [
        torch.randn(p[k], q[k], bonds[k], bonds[k + 1], generator=g).to(dtype).requires_grad_()
        for k in range(len(p))
    ]
    rows = rows or torch.tensor(p).prod().item()
    offsets = torch.arange(n + 1) if bags is None else torch.arange(0, n + 1, n // bags)
    indices = torch.randint(0, rows, (n,), generator=g)
    indices[::3] = rows // 2
    indices[:2] = torch.tensor([0, rows - 1])
    options = dict(zip(OPTIONS, ([len(p)], [rows], [0], [-1]), strict=True))
    columns = torch.tensor(q).prod().item()
    upstream = torch.randn(len(offsets) - 1, columns, generator=g).to(dtype)
    return Case(indices, offsets, cores, options, upstream=upstream)


SHAPES = [
    ((4, 3, 5), (2, 3, 2), (8, 6)),
    ((7, 5), (2, 4), (12,)),
    ((5, 4, 3), (4, 4, 4), (32, 16)),
    ((3, 2, 3, 2), (2, 2, 2, 3), (8, 20, 5)),
    ((2, 3, 2), (1, 40, 2), (3, 3)),  # more left rows than a tile
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_tensor_cores(shape, dtype):
    """fp32 by choice, rounded to tf32; half precision always, where only gradients are rounded."""
    with ops.running(direct_lookups=0, tf32=1):
        for bags in (None, 30):
            check(one_table(150, *shape, dtype=dtype, bags=bags), unit=2.0**-11)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_products_of_half_precision_cores_are_exact_in_tf32(dtype):
    """Of a single product nothing is rounded but the sums, and the result to its type."""
    case = one_table(150, (4, 3, 5), (2, 3, 2), (8, 6), dtype=dtype)
    with ops.running(direct_lookups=0):
        got = case.call(ops.tt_embedding_bag)
    want = replace(case, cores=[c.detach().double() for c in case.cores]).call(reference.tt_embedding_bag)
    eps = torch.finfo(dtype).eps / 2
    assert ((got.double() - want).abs() <= eps * want.abs() * 1.001 + 1e-4 * eps * want.abs().max()).all()


def test_a_slice_that_does_not_fit_into_shared_memory():
    """Rank 160: the middle core's slice comes in pieces, and its gradient is summed in the workspace."""
    case = one_table(40, (3, 2, 4), (2, 2, 2), (160, 150), dtype=torch.float64)
    with ops.running(direct_lookups=0):
        check(case)


def test_a_product_beyond_the_devices_shared_memory_is_refused():
    case = one_table(3, (2, 2), (2, 2), (9000,), dtype=torch.float64)
    with ops.running(direct_lookups=0), pytest.raises(RuntimeError, match="choose lower ranks"):
        case.call(ops.tt_embedding_bag)


@pytest.mark.parametrize("path", [PLANNED, DIRECT], ids=["planned", "direct"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_results_do_not_depend_on_the_order_of_threads_and_blocks(dtype, path):
    """To the bit: a missing barrier, or two blocks that write the same place, would show."""
    cases_ = [one_table(150, *shape, dtype=dtype, bags=bags) for shape in SHAPES for bags in (None, 30)]
    for case in cases_:
        results = []
        for order, seed in (("forward", 0), ("backward", 0), ("random", 1), ("random", 2)):
            with ops.running(order, seed, run=40, tf32=1, **path):
                results.append(case.results(ops.tt_embedding_bag))
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_a_batch_of_several_sorting_tiles():
    """More lookups than one block sorts, and keys of several digits."""
    case = one_table(4500, (40, 9, 30), (1, 2, 2), (2, 3), dtype=torch.float64)
    for order in ("forward", "backward"):
        with ops.running(order, direct_lookups=0):
            check(case)


def joined(parts: list[Case]) -> Case:
    """One call of the parts' tables, of equal batches."""
    lengths = torch.cat([part.offsets.diff() for part in parts])
    assert all(part.upstream is not None for part in parts)
    return Case(
        torch.cat([part.indices for part in parts]),
        torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
        [core for part in parts for core in part.cores],
        {name: [value for part in parts for value in part.options[name]] for name in OPTIONS},
        upstream=torch.cat([part.upstream for part in parts if part.upstream is not None], dim=1),
    )


def test_more_tables_than_travel_by_value():
    rng = random.Random(0)
    parts = []
    for t in range(60):
        d = 2 + t % 3
        shape = [rng.randint(1, 5) for _ in range(d)]
        parts.append(one_table(6, shape, [2] * d, [3] * (d - 1), dtype=torch.float64, seed=t))
    case = joined(parts)
    for path in (PLANNED, DIRECT):
        with ops.running(**path):
            check(case)


@settings(max_examples=25)
@given(
    SMALL,
    st.tuples(st.sampled_from(ALGORITHMS), st.sampled_from([0.0, 0.01]), st.integers(1, 9)),
    RUNS,
    THREAD_ORDERS,
)
def test_updates(case: Case, update, run, order):
    algorithm, decay, at = update
    step = Step(case, algorithm, numbers(weight_decay=decay, step=at))
    tolerance = 1e-9 if case.cores[0].dtype == torch.float64 else 2e-4
    with ops.running(order, run=run):
        got = step.run(ops.library().tt_embedding_bag_backward_update)
    want = step.run(reference.tt_embedding_bag_backward_update)
    for mine, right in zip((got[0], *got[1], *got[2]), (want[0], *want[1], *want[2]), strict=True):
        scale = right.abs().max().item() if right.numel() else 0.0
        torch.testing.assert_close(mine, right, rtol=tolerance, atol=tolerance * max(scale, 1.0))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_updates_of_half_precision_cores(dtype, algorithm):
    """States and sums are float32; a core is rounded once."""
    case = one_table(150, dtype=dtype, bags=30)
    case.weights = torch.rand(150, generator=torch.Generator().manual_seed(3)).to(dtype)
    step = Step(case.mapped(Tensor.double), algorithm, numbers())
    step.grad = step.grad.to(dtype).double()
    # Not near 0: rules that divide by them would make much of the rounding of small gradients.
    step.states = [1 + s.float().double() for s in step.states]
    want = step.run(reference.tt_embedding_bag_backward_update)
    step.case, step.grad = case, step.grad.to(dtype)
    step.cores, step.states = [c.to(dtype) for c in step.cores], [s.float() for s in step.states]
    got = step.run(ops.library().tt_embedding_bag_backward_update)
    eps = torch.finfo(dtype).eps
    for mine, right in zip((got[0], *got[1]), (want[0], *want[1]), strict=True):
        assert mine.dtype == dtype
        assert ((mine.double() - right).abs() <= eps * right.abs() + 5e-3 * right.abs().max()).all()
    for mine, right in zip(got[2], want[2], strict=True):
        torch.testing.assert_close(mine.double(), right, rtol=5e-3, atol=5e-3 * right.abs().max().item())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_updates_of_shared_cores_add_their_gradients_first(algorithm):
    case = one_table(60, dtype=torch.float64)
    twice = {name: values * 2 for name, values in case.options.items()}
    both = Case(torch.cat([case.indices, case.indices.flip(0)]), torch.arange(121), case.cores * 2, twice)
    with torch.no_grad():
        step = Step(both, algorithm, numbers())
    cores, states = step.cores[:3], step.states[: len(step.states) // 2]
    results = []
    for op in (ops.library().tt_embedding_bag_backward_update, reference.tt_embedding_bag_backward_update):
        mine, own = [c.clone() for c in cores], [s.clone() for s in states]
        op(*step.arguments(mine * 2, own * 2))
        results.append([*mine, *own])
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-9)
