"""`DHEEmbeddingBag` as a module: nn.EmbeddingBag's arguments, hash functions, freezing, graphs."""

import pickle

import pytest
import torch
from torch.nn import functional as F

import recsys_opt
from recsys_opt.embeddings.dhe import DHEEmbeddingBag, next_prime
from recsys_opt.embeddings.frozen import FrozenEmbeddingBag
from recsys_opt.errors import BatchError, InputError

ROWS, DIM = 60, 8
IDS = torch.tensor([0, 59, 3, 3, 17, 59, 0, 5])
OFFSETS = torch.tensor([0, 0, 3, 3, 4, 8])


def make(**options):
    torch.manual_seed(0)
    return DHEEmbeddingBag(ROWS, DIM, **{"hashes": 32, "widths": (12,), "dtype": torch.float64, **options})


def test_public_name():
    assert recsys_opt.DHEEmbeddingBag is DHEEmbeddingBag


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("padding_idx", [None, 3, -1])
def test_pools_as_nn_embedding_bag(mode, padding_idx):
    bag = make(mode=mode, padding_idx=padding_idx)
    want = F.embedding_bag(IDS, bag.materialize(), OFFSETS, mode=mode, padding_idx=bag.padding_idx)
    torch.testing.assert_close(bag(IDS, OFFSETS), want)
    ends = make(mode=mode, padding_idx=padding_idx, include_last_offset=True)
    torch.testing.assert_close(ends(IDS, torch.cat([OFFSETS, torch.tensor([8])])), want)


def test_rows_do_not_depend_on_the_batch():
    bag = make()
    with torch.no_grad():
        table = bag.materialize()
        for n in (1, 2, 7, 60):
            ids = torch.randperm(ROWS)[:n]
            torch.testing.assert_close(bag.rows(ids), table[ids], rtol=0, atol=1e-15)
    torch.testing.assert_close(bag.materialize(range(5, 50, 7)), table[5:50:7], rtol=0, atol=1e-15)
    half = torch.empty(ROWS, DIM, dtype=torch.bfloat16)
    assert bag.materialize(out=half) is half
    torch.testing.assert_close(half.double(), table, rtol=1e-2, atol=1e-3)


def test_new_tables_have_the_wanted_spread():
    torch.manual_seed(1)
    for options in ({}, {"widths": (64, 32)}, {"encoding": "gaussian"}, {"widths": ()}):
        bag = DHEEmbeddingBag(10_000_000, 16, **options)
        with torch.no_grad():
            rows = bag.rows(torch.randint(0, 10_000_000, (2000,)))
        assert 0.05 < float(rows.std()) < 0.2


def test_ids_beyond_the_prime_share_rows_and_the_default_prime_avoids_it():
    bag = make(prime=101, buckets=64)  # fewer values than ids is fine, as published
    assert next_prime(1_000_001) == 1_000_003
    torch.manual_seed(0)
    small = DHEEmbeddingBag(5_000_000, 4, hashes=16, widths=(), prime=1_000_003)
    with torch.no_grad():
        assert torch.equal(*small.rows(torch.tensor([7, 7 + 1_000_003])))
        large = DHEEmbeddingBag(5_000_000, 4, hashes=16, widths=())
        assert large.prime >= 5_000_000
        assert not torch.equal(*large.rows(torch.tensor([7, 7 + 1_000_003])))
    assert bag.settled_options()["prime"] == 101


def test_hash_functions_are_drawn_from_the_seed_and_saved():
    bag, again = make(), make()
    assert torch.equal(bag.hashes, again.hashes)
    torch.manual_seed(5)
    other = DHEEmbeddingBag(ROWS, DIM, hashes=32, widths=(12,), dtype=torch.float64)
    assert not torch.equal(bag.hashes, other.hashes)
    other.load_state_dict(bag.state_dict())
    assert torch.equal(bag.materialize(), other.materialize())
    assert torch.equal(pickle.loads(pickle.dumps(bag)).materialize(), bag.materialize())


def test_freeze():
    bag = make(mode="mean", padding_idx=3)
    stored, computed = bag.freeze(), bag.freeze("decoder")
    assert isinstance(stored, FrozenEmbeddingBag)
    assert isinstance(computed, DHEEmbeddingBag)
    assert type(bag.freeze(max_bytes=ROWS * DIM * 8)) is FrozenEmbeddingBag
    assert type(bag.freeze(max_bytes=ROWS * DIM * 8 - 1)) is DHEEmbeddingBag
    want = bag(IDS, OFFSETS).detach()
    for frozen in (stored, computed):
        assert not frozen.training
        assert not any(p.requires_grad for p in frozen.parameters())
        torch.testing.assert_close(frozen(IDS, OFFSETS), want, rtol=0, atol=1e-15)
    with torch.no_grad():
        bag.weights[0].zero_()
    torch.testing.assert_close(computed(IDS, OFFSETS), want, rtol=0, atol=1e-15)  # a copy
    half = make().freeze("dense", dtype=torch.bfloat16)
    assert half.storage_bytes() == ROWS * DIM * 2
    torch.testing.assert_close(half(IDS, OFFSETS).double(), make()(IDS, OFFSETS), rtol=2e-2, atol=1e-2)


def test_compiles_for_any_batch():
    bag = make()
    compiled = torch.compile(bag, fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (4, 8):
        ids, offsets = IDS[:n], torch.tensor([0, 1, 1])
        torch.testing.assert_close(compiled(ids, offsets), bag(ids, offsets))


def test_exports():
    bag = make().freeze("decoder")
    exported = torch.export.export(bag, (IDS, OFFSETS))
    torch.testing.assert_close(exported.module()(IDS, OFFSETS), bag(IDS, OFFSETS))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hashes": 0}, "hashes = 0; it must be at least 1"),
        ({"widths": (8, 0)}, "widths = 0"),
        ({"prime": 1_000_004}, "prime = 1000004 is no prime; the next one is 1000033"),
        ({"prime": 101}, "prime = 101; it must be a prime from buckets = 1000000"),
        ({"prime": 2**31 + 11}, "to 2147483647"),
        ({"buckets": 1}, "buckets = 1"),
        ({"encoding": "binary"}, "encoding = 'binary'; choose one of uniform, gaussian"),
        ({"encoding": "gaussian", "hashes": 3}, "take an even one"),
        ({"mode": "max"}, "'max' is not supported"),
        ({"padding_idx": 60}, "padding_idx = 60 is outside"),
        ({"max_norm": 1.0}, "max_norm"),
        ({"dtype": torch.bfloat16}, "computes in float32 or float64"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        make(**options)


def test_bad_calls():
    with pytest.raises(BatchError, match="averages"):
        make(mode="mean")(IDS, OFFSETS, torch.ones(8))
    with pytest.raises(RuntimeError, match=r"indices\[1\] = 60 is outside the 60 rows"):
        make()(torch.tensor([[0, 60]]))
    with pytest.raises(InputError, match="level = 'cores'"):
        make().freeze("cores")
    with pytest.raises(InputError, match=r"torch.int8"):
        make().freeze("dense", dtype=torch.int8)
