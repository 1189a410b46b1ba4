import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recsys_opt import ops, reference


def make(batch: int, dim: int, pieces: list[int], dtype: torch.dtype = torch.float64, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    dense = torch.randn(batch, dim, generator=g, dtype=torch.float64).to(dtype)
    sparse = [torch.randn(batch, k * dim, generator=g, dtype=torch.float64).to(dtype) for k in pieces]
    order = torch.randperm(sum(pieces), generator=g).tolist()
    return dense, sparse, order


def gradients(f, dense: Tensor, sparse: list[Tensor], order: list[int]) -> list[Tensor]:
    leaves = [t.clone().requires_grad_() for t in (dense, *sparse)]
    out = f(leaves[0], leaves[1:], order)
    return list(
        torch.autograd.grad((out * torch.linspace(-1, 2, out.shape[1], dtype=out.dtype)).sum(), leaves)
    )


@settings(max_examples=60)
@given(
    batch=st.integers(0, 70),
    dim=st.integers(1, 40),
    pieces=st.lists(st.integers(1, 20), min_size=1, max_size=3),
    seed=st.integers(0, 100),
)
def test_values_and_gradients_match_the_reference(batch, dim, pieces, seed):
    args = make(batch, dim, pieces, seed=seed)
    torch.testing.assert_close(ops.dot_interaction(*args), reference.dot_interaction(*args))
    torch.testing.assert_close(
        gradients(ops.dot_interaction, *args), gradients(reference.dot_interaction, *args)
    )


def test_order_of_pairs():
    dense = torch.tensor([[1.0, 0.0]])
    sparse = torch.tensor([[2.0, 3.0, 5.0, 7.0]])
    got = ops.dot_interaction(dense, [sparse], [0, 1])
    assert got.tolist() == [[1.0, 0.0, 2.0, 5.0, 2 * 5 + 3 * 7]]


@pytest.mark.parametrize("sparse_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dense_dtype", [torch.float32, torch.bfloat16])
def test_low_precision_is_rounded_once(dense_dtype, sparse_dtype):
    dense, sparse, order = make(37, 16, [20, 6], torch.bfloat16)
    dense, sparse = dense.to(dense_dtype), [s.to(sparse_dtype) for s in sparse]
    exact = reference.dot_interaction(dense.double(), [s.double() for s in sparse], order)
    got = ops.dot_interaction(dense, sparse, order)
    assert got.dtype == dense_dtype
    torch.testing.assert_close(
        got, exact.to(dense_dtype), rtol=1e-2 if dense_dtype == torch.bfloat16 else 1e-5, atol=1e-4
    )
    exact_grads = gradients(reference.dot_interaction, dense.double(), [s.double() for s in sparse], order)
    got_grads = gradients(ops.dot_interaction, dense, sparse, order)
    assert [g.dtype for g in got_grads] == [dense_dtype, sparse_dtype, sparse_dtype]
    for got_grad, want in zip(got_grads, exact_grads, strict=True):
        torch.testing.assert_close(got_grad.double(), want, rtol=2e-2, atol=0.2)


def test_non_contiguous_input():
    dense, sparse, order = make(9, 4, [3])
    strided = torch.empty(4, 9, dtype=torch.float64).t().copy_(dense)
    wide = torch.zeros(9, 24, dtype=torch.float64)
    wide[:, ::2] = sparse[0]
    want = reference.dot_interaction(dense, sparse, order)
    torch.testing.assert_close(ops.dot_interaction(strided, [wide[:, ::2]], order), want)


def test_opcheck():
    dense, sparse, order = make(5, 3, [2, 1])
    for requires_grad in (False, True):
        args = (
            dense.clone().requires_grad_(requires_grad),
            [s.clone().requires_grad_(requires_grad) for s in sparse],
            order,
        )
        torch.library.opcheck(torch.ops.recsys_opt.dot_interaction.default, args)
    grad = torch.randn(5, 3 + 6, dtype=torch.float64)
    torch.library.opcheck(torch.ops.recsys_opt.dot_interaction_backward.default, (grad, dense, sparse, order))


def test_compiles():
    args = make(6, 4, [5])
    compiled = torch.compile(ops.dot_interaction, fullgraph=True)
    torch.testing.assert_close(gradients(compiled, *args), gradients(reference.dot_interaction, *args))


def test_threads_do_not_change_the_result():
    dense, sparse, order = make(300, 16, [26], torch.float32)
    threads = torch.get_num_threads()
    try:
        results = []
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(
                [
                    ops.dot_interaction(dense, sparse, order),
                    *gradients(ops.dot_interaction, dense, sparse, order),
                ]
            )
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d, s, o: (d[:4], s, o), r"sparse\[0\] must be \[4, F \* 4\]"),
        (lambda d, s, o: (d, [s[0][:, :7]], o), r"sparse\[0\] has 7 columns, no multiple of dense's 4"),
        (lambda d, s, o: (d, [], []), r"needs at least one sparse vector"),
        (lambda d, s, o: (d, s, o[:2]), r"order has 2 entries, but sparse holds 3 vectors"),
        (lambda d, s, o: (d, s, [0, 1, 1]), r"order\[2\] = 1; order must be a permutation of 0 .. 2"),
        (lambda d, s, o: (d.int(), s, o), r"dense must be float32, float64 or bfloat16"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(RuntimeError, match=message):
        ops.dot_interaction(*change(*make(5, 4, [3])))
