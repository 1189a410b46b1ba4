"""A hundred fused updates equal those of an optimizer of torch with gradients."""

import pytest
import torch
from torch import Tensor

from recsys_opt import ops
from tests.test_ops_tt import one_table
from tests.test_ops_tt_update import make_states, numbers, used_slices
from tests.tt_cases import Case


def train(algorithm: str, case: Case, settings: Tensor, steps=100) -> list[Tensor]:
    """The cores after so many lookups and backward passes that update."""
    cores = [core.detach().clone() for core in case.cores]
    update = ops.TTUpdate(ops.TT_ALGORITHMS[algorithm], make_states(algorithm, cores), settings)
    for k in range(steps):
        losses(case, cores, k, update=update).backward()
    return cores


def losses(case: Case, cores: list[Tensor], k: int, **keywords) -> Tensor:
    """A loss whose gradient differs from step to step."""
    ids = case.indices.roll(k) if k % 2 else case.indices
    out = ops.tt_embedding_bag(ids, case.offsets, cores, **case.options, **keywords)
    return (out - torch.linspace(-1, 1, out.shape[1], dtype=out.dtype)).square().sum() / 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("decay", [0.0, 0.01])
@pytest.mark.parametrize("algorithm", ["sgd", "adagrad", "adam"])
def test_a_hundred_steps_equal_torch(algorithm, decay, dtype):
    case = one_table(n=200, dtype=dtype, p=(4, 3, 5), ranks=(4, 8))  # every slice is used in every step
    assert all(used.all() for used in used_slices(case))
    case.cores = [(core.detach() * 0.3).requires_grad_() for core in case.cores]
    make = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad, "adam": torch.optim.Adam}[algorithm]
    lr, keywords = 0.01, {"weight_decay": decay}
    if algorithm != "sgd":
        keywords["eps"] = 1e-8
    if algorithm == "adam":
        keywords["betas"] = (0.9, 0.99)
    start = [core.detach().clone() for core in case.cores]
    optimizer = make(case.cores, lr=lr, **keywords)
    got = train(algorithm, case, numbers(lr, weight_decay=decay, step=0))
    for k in range(100):
        optimizer.zero_grad()
        losses(case, case.cores, k).backward()
        optimizer.step()
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-11}[dtype]
    for mine, right, before in zip(got, case.cores, start, strict=True):
        torch.testing.assert_close(mine, right.detach(), rtol=tolerance, atol=tolerance)
        assert (mine - before).abs().max() > 0.05


def test_a_hundred_lazy_steps_equal_sparse_adam():
    """Slices that come and go. SparseAdam adds eps elsewhere, so eps is next to nothing."""
    torch.manual_seed(0)
    case = one_table(n=6, p=(9, 7, 8), ranks=(4, 8))
    case.offsets = torch.tensor([0, 2, 6])
    case.options["num_embeddings"] = [504]
    cores = [core.detach() * 0.3 for core in case.cores]
    wanted = [core.flatten(1).clone().requires_grad_() for core in cores]
    optimizer = torch.optim.SparseAdam(wanted, lr=0.01, betas=(0.9, 0.99), eps=1e-30)
    states = make_states("adam", cores)
    update = ops.TTUpdate(ops.TT_ALGORITHMS["adam"], states, numbers(0.01, eps=1e-30, step=0))
    for _ in range(100):
        case.indices = torch.randint(0, 504, (6,))
        losses(case, cores, 0, update=update).backward()
        leaves = [
            w.detach().reshape(core.shape).requires_grad_() for w, core in zip(wanted, cores, strict=True)
        ]
        grads = torch.autograd.grad(losses(case, leaves, 0), leaves)
        for w, grad, used in zip(wanted, grads, used_slices(case), strict=True):
            i = used.nonzero()[:, 0]
            w.grad = torch.sparse_coo_tensor(i[None], grad.flatten(1)[i], w.shape, is_coalesced=True)
        optimizer.step()
    for mine, right in zip(cores, wanted, strict=True):
        torch.testing.assert_close(mine.flatten(1), right.detach(), rtol=1e-9, atol=1e-9)


def test_a_hundred_steps_equal_rowwise_adagrad():
    case = one_table(n=40, p=(4, 3, 5), ranks=(4, 8))
    cores = [core.detach() * 0.3 for core in case.cores]
    sums = [torch.zeros(len(core), dtype=core.dtype) for core in cores]
    got = train("rowwise_adagrad", Case(case.indices, case.offsets, cores, case.options), numbers(0.05))
    for k in range(100):
        leaves = [core.clone().requires_grad_() for core in cores]
        for core, grad, s in zip(
            cores, torch.autograd.grad(losses(case, leaves, k), leaves), sums, strict=True
        ):
            s += grad.square().flatten(1).mean(1)
            core -= 0.05 * grad / (s.sqrt() + 1e-8)[:, None, None, None]
    torch.testing.assert_close(got, cores, rtol=1e-9, atol=1e-9)
