import math

import pytest
import torch

from recsys_opt import TTEmbeddingBag
from recsys_opt.embeddings.tt_init import core_std

SHAPES = [
    dict(num_embeddings=4000, embedding_dim=16, tt_ranks=32),
    dict(num_embeddings=4000, embedding_dim=16, tt_ranks=[2]),
    dict(num_embeddings=9000, embedding_dim=64, tt_ranks=[4, 8]),
    dict(num_embeddings=9000, embedding_dim=16, tt_ranks=[8, 16, 4]),
]


@pytest.mark.parametrize("init", ["sampled_gaussian", "gaussian"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("std", [None, 0.01])
def test_table_variance_is_the_target(init, shape, std):
    """The mean over tables: entries of one share its cores, so one table's variance is a noisy sample."""
    torch.manual_seed(0)
    target = 1.0 / math.sqrt(3 * shape["num_embeddings"]) if std is None else std
    ratios = []
    bag = TTEmbeddingBag(**shape, init=init)
    for _ in range(12):
        bag.reset_parameters(std)
        ratios.append(float(bag.materialize().detach().square().mean()) / target**2)
    ratio = torch.tensor(ratios)
    error = float(ratio.std()) / math.sqrt(len(ratios))
    assert abs(float(ratio.mean()) - 1) < max(5 * error, 0.02)
    assert error < 0.1


def test_sampled_gaussian_has_no_values_near_zero():
    torch.manual_seed(0)
    bag = TTEmbeddingBag(100_000, 16, 16)
    entries = bag.cores[1].detach().flatten() / core_std(1 / math.sqrt(3 * 100_000), bag.tt_ranks)
    assert abs(float(entries.mean())) < 0.02
    assert abs(float(entries.var()) - 1) < 0.02
    # |x| >= 2 of a standard normal, whose variance is then 5.7462.
    assert float(entries.abs().min()) >= 2 / math.sqrt(5.7463)
    assert 0.45 < float((entries > 0).double().mean()) < 0.55


def test_the_seed_decides_the_cores():
    def draw(seed):
        torch.manual_seed(seed)
        return TTEmbeddingBag(1000, 16, 8).cores[1]

    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(4))
