"""What every registered representation must do. A new one is held to it by its line in the registry alone."""

import copy

import pytest
import torch
from torch.nn import functional as F

from recsys_opt.embeddings.base import EmbeddingRepresentation
from recsys_opt.embeddings.collection import EmbeddingCollection
from recsys_opt.embeddings.registry import REPRESENTATIONS, build_embedding
from recsys_opt.errors import InputError
from recsys_opt.models.dlrm import DLRM
from recsys_opt.tables import TableConfig

ROWS, DIM = 60, 8
# Options that a representation cannot do without.
NEEDED = {
    "tiered": {"hot_rows": 20, "ranked": True},
    "tt": {"tt_ranks": 4},
    "tt_cached": {"tt_ranks": 4, "cache_rows": 5},
}


def make(name: str, rows: int = ROWS, pooling: str = "sum") -> EmbeddingRepresentation:
    torch.manual_seed(0)
    config = TableConfig("t", rows, DIM, pooling=pooling, representation=name, options=NEEDED.get(name, {}))
    try:
        return build_embedding(config)
    except InputError as error:
        if "does not import here" in str(error):
            pytest.skip(str(error))
        raise


@pytest.fixture(params=REPRESENTATIONS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def bags() -> tuple[torch.Tensor, torch.Tensor]:
    """Ids with repeats and extremes; bags with an empty one at each end and in the middle."""
    indices = torch.tensor([0, 59, 3, 3, 17, 59, 0, 5])
    return indices, torch.tensor([0, 0, 3, 3, 4, 8])


@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_is_an_embedding_bag_over_its_own_table(name: str, pooling: str):
    bag = make(name, pooling=pooling)
    indices, offsets = bags()
    table = bag.materialize()
    assert table.shape == (ROWS, DIM)
    want = F.embedding_bag(indices, table, offsets, mode=pooling)
    torch.testing.assert_close(bag(indices, offsets), want, rtol=1e-5, atol=1e-6)
    two_d = indices.view(4, 2)
    want = F.embedding_bag(two_d, table, mode=pooling)
    torch.testing.assert_close(bag(two_d), want, rtol=1e-5, atol=1e-6)


def test_weighs_its_samples(name: str):
    bag = make(name)
    indices, offsets = bags()
    weights = torch.linspace(-1, 2, len(indices))
    want = F.embedding_bag(indices, bag.materialize(), offsets, mode="sum", per_sample_weights=weights)
    torch.testing.assert_close(bag(indices, offsets, weights), want, rtol=1e-5, atol=1e-6)


def test_group_is_its_bags_side_by_side(name: str):
    first, second = make(name), make(name, rows=ROWS + 7)
    indices, offsets = bags()
    both = torch.cat([indices, indices + 7])
    starts = torch.cat([offsets, offsets + len(indices), torch.tensor([2 * len(indices)])])
    want = torch.cat([first(indices, offsets), second(indices + 7, offsets)], dim=1)
    got = type(first).forward_group([first, second], both, starts)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_says_what_it_takes(name: str):
    bag = make(name)
    held = sum(t.numel() * t.element_size() for t in (*bag.parameters(), *bag.buffers()))
    assert bag.storage_bytes() == held > 0
    assert bag.flops_per_lookup() >= 0


@pytest.mark.parametrize("bad", [-1, ROWS])
def test_collection_refuses_an_id_outside_the_table(name: str, bad: int):
    make(name)
    options = NEEDED.get(name, {})
    tables = EmbeddingCollection([TableConfig("t", ROWS, DIM, representation=name, options=options)])
    with pytest.raises((InputError, RuntimeError), match=f"{bad}.*{ROWS}"):
        tables(torch.tensor([0, bad]))


def test_state_dict_carries_the_table(name: str):
    bag, other = make(name), make(name)
    with torch.no_grad():
        for tensor in (*bag.parameters(), *bag.buffers()):
            if tensor.is_floating_point():
                tensor.mul_(1.5)
    other.load_state_dict(copy.deepcopy(bag.state_dict()))
    torch.testing.assert_close(other.materialize(), bag.materialize(), rtol=0, atol=0)


def test_unknown_option_is_named(name: str):
    options = {**NEEDED.get(name, {}), "colour": "red"}
    make(name)
    with pytest.raises(InputError, match="colour"):
        build_embedding(TableConfig("t", ROWS, DIM, representation=name, options=options))


def test_unknown_representation_names_the_choices():
    with pytest.raises(InputError, match="dense, tt"):
        build_embedding(TableConfig("t", ROWS, DIM, representation="tensor"))


def test_works_in_a_dlrm(name: str):
    make(name)
    tables = [
        TableConfig("a", ROWS, DIM, representation=name, options=NEEDED.get(name, {})),
        TableConfig("b", 9, DIM),
    ]
    model = DLRM(tables, dense_features=3, bottom_mlp=(4, DIM), top_mlp=(4, 1))
    logits = model(torch.randn(5, 3), torch.tensor([0, 59, 3, 3, 17, 0, 8, 1, 1, 2]))
    assert logits.shape == (5,)
    logits.sum().backward()
    assert all(torch.isfinite(p.grad.to_dense()).all() for p in model.parameters() if p.grad is not None)
