"""bf16 and fp16 cores on the CPU: computed in fp32, each result rounded once."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recsys_opt import ops, reference
from tests.test_ops_tt import make_cores, one_table
from tests.test_ops_tt_update import ALGORITHMS, NATIVE, Step, make_states, numbers, used_slices
from tests.tt_cases import OPTIONS, Case, cases, rounding_steps, running

REDUCED = st.sampled_from([torch.bfloat16, torch.float16])


def small(case: Case, dtype: torch.dtype) -> Case:
    """The case in a reduced type, small enough that nothing overflows fp16."""
    factor = 0.5 if dtype == torch.bfloat16 else 0.125
    return case.mapped(lambda tensor: (tensor.double() * factor).to(dtype))


@settings(max_examples=25)
@given(cases(), REDUCED)
def test_results_are_the_fp32_ones_rounded(case, dtype):
    check(case, dtype)


@pytest.mark.slow
@settings(max_examples=150)
@given(cases(), REDUCED)
def test_results_are_the_fp32_ones_rounded_in_many_cases(case, dtype):
    check(case, dtype)


def check(case: Case, dtype: torch.dtype) -> None:
    case = small(case, dtype)
    wide = case.mapped(Tensor.float)
    with running(case):
        got, fp32 = case.results(ops.tt_embedding_bag), wide.results(ops.tt_embedding_bag)
    for mine, right in zip(got, fp32, strict=True):
        assert mine.dtype == dtype
        assert torch.equal(mine, right.to(dtype)) or not right.isfinite().all()
    exact = case.mapped(Tensor.double).results(reference.tt_embedding_bag)
    sizes = case.mapped(lambda t: t.double().abs()).results(reference.tt_embedding_bag)
    for mine, right, size, steps in zip(got, exact, sizes, rounding_steps(case), strict=True):
        summed = steps * 2.0**-23 * size
        bound = (
            torch.finfo(dtype).eps / 2 * (right.abs() + summed) + summed + torch.finfo(dtype).smallest_normal
        )
        inside = right.abs() < torch.finfo(dtype).max * 0.99
        assert ((mine.double() - right).abs() <= bound)[inside].all(), case.notes


@settings(max_examples=40)
@given(cases(most_rank=20), REDUCED, st.sampled_from(ALGORITHMS))
def test_updates_are_the_fp32_ones_rounded(case, dtype, algorithm):
    case = small(case, dtype)
    wide = case.mapped(Tensor.float)
    step, fp32 = (Step(c, algorithm, numbers(eps=1e-3)) for c in (case, wide))
    step.grad, fp32.grad = case.upstream, wide.upstream
    with running(case):
        weights, cores, states = step.run(NATIVE)
        right_weights, right_cores, right_states = fp32.run(NATIVE)
    assert weights.dtype == dtype
    assert torch.equal(weights, right_weights.to(dtype)) or not right_weights.isfinite().all()
    for mine, right in zip([*cores, *states], [*right_cores, *right_states], strict=True):
        assert mine.dtype in (dtype, torch.float32)
        torch.testing.assert_close(mine, right.to(mine.dtype), rtol=0, atol=0, equal_nan=True)
    for before, after, used in zip(step.cores, cores, used_slices(case), strict=True):
        assert torch.equal(before[~used], after[~used])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tables_with_the_same_cores(algorithm, dtype):
    case = one_table(p=(6, 3, 5), dtype=torch.float32)
    offsets = torch.cat([case.offsets, case.offsets[1:] + 23])
    ids = torch.randint(0, 60, (46,), generator=torch.Generator().manual_seed(3))
    options = {name: values * 2 for name, values in case.options.items()}
    cores = [(core.detach() * 0.3).to(dtype) for core in case.cores]
    states = make_states(algorithm, [core.float() for core in cores], 1.0)
    grad = torch.linspace(-1, 1, 96).reshape(4, 24).to(dtype)
    results = []
    for change in (Tensor.clone, Tensor.float):
        own, own_states = [change(core) for core in cores], [state.clone() for state in states]
        NATIVE(
            change(grad),
            ids,
            offsets,
            own * 2,
            own_states * 2,
            *(options[name] for name in OPTIONS),
            None,
            False,
            ops.TT_ALGORITHMS[algorithm],
            numbers(),
        )
        results.append(([core.to(dtype) for core in own], own_states))
    torch.testing.assert_close(*results, rtol=0, atol=0)
    assert not any(torch.equal(a, b) for a, b in zip(results[0][0], cores, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_many_chunks_and_threads(dtype):
    generator = torch.Generator().manual_seed(0)
    options = dict(zip(OPTIONS, ([3], [10800], [0], [-1]), strict=True))
    cores = make_cores((40, 9, 30), (2, 2, 4), (32, 32), torch.float32)
    case = Case(torch.randint(0, 10800, (8000,), generator=generator), torch.arange(8001), cores, options)
    case.upstream = torch.randn(8000, 16, generator=generator)
    case = small(case, dtype)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(case.results(ops.tt_embedding_bag))
    finally:
        torch.set_num_threads(threads)
    wide = case.mapped(Tensor.float).results(ops.tt_embedding_bag)
    for result in results:
        for mine, right in zip(result, wide, strict=True):
            assert torch.equal(mine, right.to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_opcheck(dtype):
    case = one_table(dtype=torch.float32, weighted=True)
    rest = [case.options[name] for name in OPTIONS]
    cores, weights = [core.detach().to(dtype) for core in case.cores], case.weights.detach().to(dtype)
    arguments = (case.indices, case.offsets, cores, *rest, weights)
    utils = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(torch.ops.recsys_opt.tt_embedding_bag.default, arguments, test_utils=utils)
    grad = torch.randn(4, 12).to(dtype)
    backward = torch.ops.recsys_opt.tt_embedding_bag_backward.default
    torch.library.opcheck(backward, (grad, *arguments, True), test_utils=utils)
