"""TTEmbeddingBag in bf16 and fp16, and under autocast, as nn.EmbeddingBag is."""

import pytest
import torch
from torch import nn

from recsys_opt import TTEmbeddingBag
from recsys_opt.embeddings.fused_update import FusedUpdate

REDUCED = [torch.bfloat16, torch.float16]


def make_bag(dtype=torch.float32, **options) -> TTEmbeddingBag:
    torch.manual_seed(0)
    bag = TTEmbeddingBag(60, 8, 4, tt_p_shapes=(4, 3, 5), **options)
    bag.reset_parameters(0.5)
    return bag.to(dtype)


IDS, OFFSETS = torch.tensor([0, 59, 7, 7, 31]), torch.tensor([0, 2, 2])


@pytest.mark.parametrize("autocast", REDUCED)
@pytest.mark.parametrize("stored", [torch.float32, *REDUCED])
@pytest.mark.parametrize("fused", [False, True])
def test_autocast_leaves_lookups_as_nn_embedding_bag_does(autocast, stored, fused):
    """Tables keep their dtype, and so do their outputs and gradients; autocast casts what comes after."""
    bag, dense = make_bag(stored), nn.EmbeddingBag(60, 8, mode="sum", dtype=stored)
    if fused:
        bag.fuse_update(FusedUpdate("sgd", 0.1))
    linear = nn.Linear(8, 3)
    with torch.autocast("cpu", autocast):
        outputs = [module(IDS, OFFSETS) for module in (bag, dense)]
        heads = [linear(output) for output in outputs]
    assert outputs[0].dtype == outputs[1].dtype == stored
    assert heads[0].dtype == heads[1].dtype == autocast
    before = [core.detach().clone() for core in bag.cores]
    for head in heads:
        head.float().square().sum().backward()
    assert dense.weight.grad.dtype == stored
    for core, old in zip(bag.cores, before, strict=True):
        assert core.dtype == stored
        if fused:
            assert core.grad is None
            assert not torch.equal(core, old)
        else:
            assert core.grad.dtype == stored
    torch.testing.assert_close(outputs[0], make_bag(stored)(IDS, OFFSETS))


@pytest.mark.parametrize("stored", [torch.float32, torch.float64, *REDUCED])
@pytest.mark.parametrize("given", [torch.float32, torch.float64, *REDUCED])
def test_weights_may_have_another_dtype(stored, given):
    """nn.EmbeddingBag refuses them; here they are converted, and their gradient comes back in their dtype."""
    bag = make_bag(stored)
    weights = torch.tensor([1.0, -0.5, 2.0, 0.25, 1.0], dtype=given).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = bag(IDS, OFFSETS, weights)
    assert out.dtype == stored
    torch.testing.assert_close(out, bag(IDS, OFFSETS, weights.to(stored)))
    out.sum().backward()
    assert weights.grad.dtype == given


@pytest.mark.parametrize("dtype", REDUCED)
def test_a_reduced_bag_is_near_its_fp32_one(dtype):
    bag, exact = make_bag(dtype), make_bag(dtype).double()
    torch.testing.assert_close(
        bag(IDS, OFFSETS), exact(IDS, OFFSETS).to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-5
    )
    frozen = make_bag().freeze("prefix", dtype=dtype)
    assert frozen.storage_bytes() == 2 * sum(core.numel() for core in frozen.core_tensors())
    torch.testing.assert_close(frozen(IDS, OFFSETS).float(), make_bag()(IDS, OFFSETS), rtol=0.02, atol=0.01)


def loss_of(bag: nn.Module) -> torch.Tensor:
    return (bag(torch.arange(60).reshape(30, 2)).float() - 1).square().mean()


@pytest.mark.parametrize("dtype", REDUCED)
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam, torch.optim.Adagrad])
def test_torchs_optimizers_train_reduced_cores(dtype, make):
    bag = make_bag(dtype)
    options = {"eps": 1e-4} if make is torch.optim.Adam else {}  # 1e-8 is 0 in fp16
    optimizer = make(bag.parameters(), lr=0.3 if make is torch.optim.SGD else 0.05, **options)
    first = loss_of(bag).item()
    for _ in range(60):
        optimizer.zero_grad()
        loss_of(bag).backward()
        optimizer.step()
    assert loss_of(bag).item() < 0.6 * first


@pytest.mark.parametrize("dtype", REDUCED)
@pytest.mark.parametrize("algorithm", ["sgd", "adagrad", "rowwise_adagrad", "adam"])
def test_fused_updates_train_reduced_cores(dtype, algorithm):
    bag = make_bag(dtype)
    bag.fuse_update(FusedUpdate(algorithm, 0.3 if algorithm == "sgd" else 0.05))
    first = loss_of(bag).item()
    for _ in range(60):
        loss_of(bag).backward()
    assert loss_of(bag).item() < 0.6 * first
    assert all(core.dtype == dtype for core in bag.cores)
    assert all(state.dtype != dtype for state in bag.update_state().values())
