"""`HybridEmbeddingBag`: both parts side by side, whatever their kinds, padding and pooling."""

import pytest
import torch
from torch.nn import functional as F

import recsys_opt
from recsys_opt.embeddings.frozen import FrozenEmbeddingBag
from recsys_opt.embeddings.hybrid import HybridEmbeddingBag
from recsys_opt.errors import InputError

ROWS, DIM = 60, 8
IDS = torch.tensor([0, 59, 3, 3, 17, 59, 0, 5])
OFFSETS = torch.tensor([0, 0, 3, 3, 4, 8])
DEEP = {"hashes": 16, "widths": (8,), "dtype": torch.float64}
KINDS = {"dense": {}, "tt": {"table": "tt", "table_options": {"tt_ranks": 4}}}


def make(kind="dense", **options):
    torch.manual_seed(0)
    return HybridEmbeddingBag(ROWS, options.pop("dim", DIM), **DEEP, **KINDS[kind], **options)


def test_public_name():
    assert recsys_opt.HybridEmbeddingBag is HybridEmbeddingBag


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("padding_idx", [None, 3])
def test_pools_as_nn_embedding_bag_frozen_too(kind, mode, padding_idx):
    bag = make(kind, mode=mode, padding_idx=padding_idx)
    table = bag.materialize()
    want = F.embedding_bag(IDS, table, OFFSETS, mode=mode, padding_idx=padding_idx)
    stored, computed = bag.freeze(), bag.freeze(max_bytes=0)
    assert isinstance(stored, FrozenEmbeddingBag)
    assert isinstance(computed, HybridEmbeddingBag)
    for module in (bag, stored, computed):
        torch.testing.assert_close(module(IDS, OFFSETS), want)
        two_d = F.embedding_bag(IDS.view(2, 4), table, mode=mode, padding_idx=padding_idx)
        torch.testing.assert_close(module(IDS.view(2, 4)), two_d)
    if mode == "sum":
        weights = torch.linspace(-1, 2, 8, dtype=torch.float64)
        want = F.embedding_bag(
            IDS, table, OFFSETS, mode="sum", padding_idx=padding_idx, per_sample_weights=weights
        )
        torch.testing.assert_close(bag(IDS, OFFSETS, weights), want)
    assert not any(p.requires_grad for p in (*stored.parameters(), *computed.parameters()))


def test_last_offset_and_ids_of_no_bag():
    bag = make(padding_idx=59, include_last_offset=True)
    want = F.embedding_bag(IDS[:6], bag.materialize(), OFFSETS[:5], mode="sum", padding_idx=59)
    torch.testing.assert_close(bag(IDS, torch.cat([OFFSETS[:5], torch.tensor([6])])), want)


@pytest.mark.parametrize("jagged", [True, False])
def test_tables_of_mixed_kinds_in_one_group(jagged):
    bags = [make("dense"), make("tt", padding_idx=3), make("dense", dhe_dim=2), make("tt", dim=4)]
    ids = torch.cat([IDS, IDS.flip(0), IDS, IDS])
    lengths = torch.tensor([0, 3, 0, 1, 4] * 4) if jagged else torch.ones(32, dtype=torch.int64)
    bounds = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    batch = len(lengths) // 4
    got = HybridEmbeddingBag.forward_group(bags, ids, bounds if jagged else None)
    want = []
    for t, bag in enumerate(bags):
        part = bounds[t * batch : (t + 1) * batch + 1]
        own = ids[part[0] : part[-1]]
        table = bag.materialize()
        starts = part[:-1] - part[0]
        want.append(F.embedding_bag(own, table, starts, mode="sum", padding_idx=bag.padding_idx))
    torch.testing.assert_close(got, torch.cat(want, dim=1))


@pytest.mark.parametrize("kind", KINDS)
def test_both_parts_learn(kind):
    bag = make(kind)
    bag(IDS, OFFSETS).square().sum().backward()
    for name, parameter in bag.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.to_dense().abs().sum()) > 0, name


def test_sizes():
    bag = make("tt", dhe_dim=6)
    assert (bag.table.embedding_dim, bag.dhe.embedding_dim) == (2, 6)
    assert bag.storage_bytes() == bag.table.storage_bytes() + bag.dhe.storage_bytes()
    assert bag.settled_options()["table_options"]["tt_ranks"] == [4, 4]
    half = bag.freeze(dtype=torch.bfloat16)
    assert half.storage_bytes() == ROWS * DIM * 2
    assert make().freeze(max_bytes=0).table.weight.data_ptr() != 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dhe_dim": 8}, "dhe_dim = 8 of embedding_dim = 8"),
        ({"dim": 1}, "dhe_dim = 0 of embedding_dim = 1"),
        ({"table": "sparse"}, "table = 'sparse'; it must be 'dense' or 'tt'"),
        ({"table": "tt"}, "needs table_options with tt_ranks"),
        ({"table_options": {"tt_ranks": 4}}, "table_options has 'tt_ranks'; a 'dense' table has none"),
        ({"mode": "max"}, "'max' is not supported"),
        ({"padding_idx": 99}, "padding_idx = 99 is outside"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        make(**options)


def test_freezes_again_and_refuses_other_parts():
    again = make().freeze(max_bytes=0).freeze(max_bytes=0)
    torch.testing.assert_close(again(IDS, OFFSETS), make()(IDS, OFFSETS))
    deep = make().dhe
    with pytest.raises(InputError, match="not DHEEmbeddingBag beside DHEEmbeddingBag"):
        HybridEmbeddingBag.of_parts(deep, deep).freeze()


def test_compiles():
    bag = make("tt", padding_idx=3)
    compiled = torch.compile(bag, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(IDS, OFFSETS), bag(IDS, OFFSETS))
