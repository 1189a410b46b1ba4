"""bf16 products of the CPU kernels: `ops.tt_allow_bf16`."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from recsys_opt import ops, reference

# Row factors, column factors, rank; the last of ranks that bf16 products are not made for.
SHAPES = [
    ((7, 11, 5), (2, 2, 4), 32),
    ((7, 11, 5), (2, 1, 8), 16),
    ((3, 4, 5), (4, 4, 4), 48),
    ((3, 4, 5, 6), (2, 2, 2, 2), 32),
    ((9, 8), (4, 4), 64),
    ((3, 4, 5), (4, 1, 32), 64),
    ((3, 4, 5), (2, 1, 48), 32),
    ((3, 2, 4), (2, 3, 3), 272),
    ((7, 11, 5), (2, 2, 4), 24),
]


@pytest.fixture
def bf16() -> Iterator[None]:
    before = ops.tt_allow_bf16(True)
    yield
    ops.tt_allow_bf16(before)


def has_bf16_products() -> bool:
    with open("/proc/cpuinfo", encoding="ascii") as info:
        return "avx512_bf16" in info.read()


def integer_cores(p: tuple[int, ...], q: tuple[int, ...], rank: int) -> list[Tensor]:
    """Cores of few ones, minus ones and zeros: products of all lengths are small integers, exact in bf16."""
    ranks = (1, *[rank] * (len(p) - 1), 1)
    cores = []
    for k in range(len(p)):
        shape = (p[k], q[k], ranks[k], ranks[k + 1])
        core = torch.randint(-1, 2, shape).float()
        cores.append(core * (torch.rand(shape) < 0.3) if k else core)
    return cores


def looked_up(
    cores: list[Tensor],
    ids: Tensor,
    offsets: Tensor,
    weights: Tensor | None,
    backward_bf16: bool | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Pooled rows, and the gradients of the cores for integer upstream gradients.

    backward_bf16: the setting from the backward pass on; None: the forward pass's.
    """
    rows = math.prod(core.shape[0] for core in cores)
    leaves = [core.clone().requires_grad_() for core in cores]
    found = ops.tt_embedding_bag(
        ids,
        offsets,
        leaves,
        cores_per_table=[len(cores)],
        num_embeddings=[rows],
        pooling_modes=[0],
        padding_idx=[3],
        per_sample_weights=weights,
    )
    upstream = torch.arange(found.numel()).view_as(found) % 3 - 1.0
    if backward_bf16 is not None:
        ops.tt_allow_bf16(backward_bf16)
    found.backward(upstream)
    return found.detach(), [leaf.grad for leaf in leaves if leaf.grad is not None]


@pytest.mark.parametrize(("p", "q", "rank"), SHAPES)
@pytest.mark.parametrize("bags", ["one id", "several ids", "weighted"])
def test_exact_where_operands_are_bf16(
    p: tuple[int, ...], q: tuple[int, ...], rank: int, bags: str, bf16: None
) -> None:
    """Integers of up to 8 bits are not rounded, so that every result equals float32's."""
    torch.manual_seed(0)
    cores = integer_cores(p, q, rank)
    count = 500
    rows = math.prod(p)
    ids = torch.randint(0, rows, (count,))
    offsets = torch.arange(count + 1)
    if bags == "several ids":
        offsets = torch.cat((torch.tensor([0, 0, 5]), torch.arange(8, count + 1, 4)))
    weights = torch.randint(0, 2, (count,)).float() if bags == "weighted" else None
    found, grads = looked_up(cores, ids, offsets, weights)
    ops.tt_allow_bf16(False)
    expected, expected_grads = looked_up(cores, ids, offsets, weights)
    largest = max(float(g.abs().max()) for g in grads)
    assert float(found.abs().max()) > 0
    assert largest > 0
    assert torch.equal(found, expected)
    for grad, exact in zip(grads, expected_grads, strict=True):
        assert torch.equal(grad, exact) or float((grad - exact).norm() / exact.norm()) < 0.004


@pytest.mark.parametrize(("p", "q", "rank"), SHAPES)
@pytest.mark.parametrize("forward_bf16", [False, True])
def test_the_setting_may_change_before_the_backward_pass(
    p: tuple[int, ...], q: tuple[int, ...], rank: int, forward_bf16: bool, bf16: None
) -> None:
    """Products that the forward pass kept are in the form of its kernels, which the others cannot read."""
    torch.manual_seed(0)
    cores = integer_cores(p, q, rank)
    rows = math.prod(p)
    ids = torch.randint(0, rows, (300,))
    ops.tt_allow_bf16(forward_bf16)
    grads = looked_up(cores, ids, torch.arange(301), None, backward_bf16=not forward_bf16)[1]
    ops.tt_allow_bf16(False)
    for grad, exact in zip(grads, looked_up(cores, ids, torch.arange(301), None)[1], strict=True):
        assert torch.equal(grad, exact) or float((grad - exact).norm() / exact.norm()) < 0.004


@pytest.mark.parametrize(("p", "q", "rank"), SHAPES[:-1])
def test_error_is_that_of_rounded_operands(
    p: tuple[int, ...], q: tuple[int, ...], rank: int, bf16: None
) -> None:
    torch.manual_seed(1)
    ranks = (1, *[rank] * (len(p) - 1), 1)
    cores = [torch.randn(p[k], q[k], ranks[k], ranks[k + 1]) for k in range(len(p))]
    rows = math.prod(p)
    ids = torch.randint(0, rows, (200,))
    found, grads = looked_up(cores, ids, torch.arange(201), None)
    exact = [core.double().requires_grad_() for core in cores]
    expected = reference.tt_embedding_bag(
        ids,
        torch.arange(201),
        exact,
        cores_per_table=[len(p)],
        num_embeddings=[rows],
        pooling_modes=[0],
        padding_idx=[3],
    )
    expected.backward((torch.arange(expected.numel()).view_as(expected) % 3 - 1.0).double())
    errors = [float((found - expected.detach()).norm() / expected.detach().norm())]
    for grad, core in zip(grads, exact, strict=True):
        assert core.grad is not None
        errors.append(float((grad - core.grad).norm() / core.grad.norm()))
    # One rounding is 2^-9 at most, for each of 2 operands of each of d - 1 products.
    assert max(errors) < len(p) * 2**-8
    if has_bf16_products() and len(p) > 2:
        assert max(errors) > 2**-11, "nothing was rounded: the bf16 products were not used"


def test_setting_tells_what_was_before() -> None:
    assert ops.tt_allow_bf16(True) is False
    assert ops.tt_allow_bf16(False) is True


def test_narrower_instruction_sets_do_not_round() -> None:
    torch.manual_seed(2)
    cores = [torch.randn(5, 2, 1, 16), torch.randn(6, 2, 16, 16), torch.randn(7, 4, 16, 1)]
    ids = torch.randint(0, 210, (100,))
    try:
        ops.tt_limit_isa(1)
        exact = looked_up(cores, ids, torch.arange(101), None)[0]
        ops.tt_allow_bf16(True)
        assert torch.equal(looked_up(cores, ids, torch.arange(101), None)[0], exact)
    finally:
        ops.tt_allow_bf16(False)
        ops.tt_limit_isa(2)
