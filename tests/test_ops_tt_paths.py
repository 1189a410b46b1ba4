"""A lookup's ways on the CPU give the same: planned or not, kept or not, summed in place or not."""

import pytest
import torch
from hypothesis import given, settings

from recsys_opt import ops, reference
from tests.test_ops_tt import make_cores, one_table
from tests.tt_cases import OPTIONS, Case, cases, running


@settings(max_examples=80)
@given(cases())
def test_without_gradients_the_values_are_the_same(case: Case):
    """Tables of two cores are then looked up without a plan."""
    with torch.no_grad(), running(case):
        got = case.call(ops.tt_embedding_bag)
    want = case.mapped(torch.Tensor.double).call(reference.tt_embedding_bag).detach()
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-11}[got.dtype]
    scale = max(1.0, want.abs().max().item()) if want.numel() else 1.0
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("longest", [1, 3, 2500])
def test_two_cores_over_more_ids_than_are_read_at_once(longest):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(0, longest + 1, (3000 // longest + 2,), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    indices = torch.randint(0, 900, (int(offsets[-1]),), generator=generator)
    options = dict(zip(OPTIONS, ([2, 2], [900, 900], [0, 1], [7, 2]), strict=True))
    cores = [c.detach() for seed in (0, 1) for c in make_cores((30, 30), (2, 4), (16,), seed=seed)]
    both = torch.cat([offsets, offsets[1:] + indices.numel()])
    case = Case(torch.cat([indices, indices.flip(0)]), both, cores, options)
    torch.testing.assert_close(case.call(ops.tt_embedding_bag), case.call(reference.tt_embedding_bag))
    for dtype in (torch.bfloat16, torch.float16):  # widened on the way, bit for bit as beforehand
        case.cores = [core.to(dtype) for core in cores]
        got = case.call(ops.tt_embedding_bag)
        case.cores = [core.float() for core in case.cores]
        assert torch.equal(got, case.call(ops.tt_embedding_bag).to(dtype))


@pytest.mark.parametrize("bad", [900, -1, 2**40])
@pytest.mark.parametrize("position", [0, 1023, 1024, 2999])
def test_two_cores_name_a_bad_id(bad, position):
    options = dict(zip(OPTIONS, ([2], [900], [0], [-1]), strict=True))
    cores = [c.detach() for c in make_cores((30, 30), (2, 4), (16,))]
    indices = torch.zeros(3000, dtype=torch.long)
    indices[position] = bad
    case = Case(indices, torch.arange(3001), cores, options)
    with pytest.raises(RuntimeError, match=rf"indices\[{position}\] = {bad} is outside the table's 900 rows"):
        case.call(ops.tt_embedding_bag)
    case.offsets = torch.tensor([0, 2, 1])
    with pytest.raises(RuntimeError, match=r"offsets\[2\] = 1 is less than offsets\[1\] = 2"):
        case.call(ops.tt_embedding_bag)


@pytest.mark.parametrize("isa", [0, 1, 2])
@pytest.mark.parametrize("p", [(40, 270), (40, 9, 30), (8, 5, 9, 30)])
def test_a_backward_pass_with_and_without_what_the_forward_pass_kept(p, isa):
    """Bit for bit; the fused update is the gradient's."""
    if ops.tt_limit_isa(isa) != isa:
        ops.tt_limit_isa(2)
        pytest.skip("this machine lacks it")
    try:
        generator = torch.Generator().manual_seed(0)
        q, ranks = (2, 2, 2, 4)[-len(p) :], (8, 16, 16)[-len(p) + 1 :]
        indices = torch.randint(0, 10800, (3000,), generator=generator)
        offsets = torch.arange(3001)
        cores = [c.detach() for c in make_cores(p, q, ranks, torch.float32)]
        tables = (len(p), 10800, 0, -1)
        options = [[number] for number in tables]
        kernels = torch.ops.recsys_opt
        out, kept = kernels.tt_lookup(indices, offsets, True, cores, tables, None, True)
        assert torch.equal(out, kernels.tt_embedding_bag(indices, offsets, cores, *options, None))
        grad = torch.randn(out.shape, generator=generator)
        plain = kernels.tt_embedding_bag_backward(grad, indices, offsets, cores, *options, None, False)
        taken = kernels.tt_lookup_backward(kept, grad, False)
        assert all(torch.equal(a, b) for a, b in zip(plain, taken, strict=True))
        for decay in (0.0, 0.01):  # without it the terms are added to the cores one by one
            moved = [core.clone() for core in cores]
            numbers = torch.tensor([0.1, 0, 0, 0, decay, 1], dtype=torch.float64)
            _, mine = kernels.tt_lookup(indices, offsets, True, moved, tables, None, True)
            kernels.tt_lookup_update(mine, grad, False, False, [], 0, numbers)
            for new, old, gradient in zip(moved, cores, plain, strict=True):
                touched = gradient.flatten(1).abs().sum(1) > 0
                want = old - 0.1 * (gradient + decay * old)
                scale = gradient.abs().max().item()
                torch.testing.assert_close(new[touched], want[touched], rtol=1e-4, atol=1e-5 * scale)
                assert torch.equal(new[~touched], old[~touched])
            again = [core.clone() for core in cores]
            kernels.tt_embedding_bag_backward_update(
                grad, indices, offsets, again, [], *options, None, False, 0, numbers
            )
            assert all(torch.equal(a, b) for a, b in zip(moved, again, strict=True))
            # What was multiplied before the cores moved is not theirs.
            kernels.tt_lookup_update(mine, grad, False, True, [], 0, numbers)
            kernels.tt_embedding_bag_backward_update(
                grad, indices, offsets, again, [], *options, None, False, 0, numbers
            )
            assert all(torch.equal(a, b) for a, b in zip(moved, again, strict=True))
    finally:
        ops.tt_limit_isa(2)


@pytest.mark.parametrize("q", [(1, 2, 8), (1, 1, 16), (2, 2, 8), (4, 4, 4), (3, 1, 6), (1, 4, 16)])
def test_column_factors_with_kernels_of_their_own(q):
    for ranks in ((32, 32), (16, 16), (48, 64), (4, 12)):
        case = one_table(n=300, dtype=torch.float32, q=q, ranks=ranks, weighted=True)
        exact = Case(
            case.indices,
            case.offsets,
            [core.detach().double().requires_grad_() for core in case.cores],
            case.options,
            None if case.weights is None else case.weights.detach().double().requires_grad_(),
        )
        got, want = case.call(ops.tt_embedding_bag), exact.call(reference.tt_embedding_bag)
        for mine, right in zip(
            [got, *torch.autograd.grad(got.square().sum(), case.leaves())],
            [want, *torch.autograd.grad(want.square().sum(), exact.leaves())],
            strict=True,
        ):
            torch.testing.assert_close(mine.double(), right, rtol=0, atol=2e-5 * right.abs().max().item())
