import contextlib
import copy
import io
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.nn.functional import embedding_bag

from recsys_opt import TTEmbeddingBag
from recsys_opt.embeddings.frozen import FrozenEmbeddingBag
from recsys_opt.embeddings.prefix import FrozenPrefixBag
from recsys_opt.errors import InputError

LEVELS = ["cores", "prefix", "dense"]


def make_bag(rows=57, ranks=4, **options) -> TTEmbeddingBag:
    torch.manual_seed(0)
    bag = TTEmbeddingBag(rows, 8, ranks, **{"dtype": torch.float64, **options})
    bag.reset_parameters(1.0)
    return bag


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=8),
    mode=st.sampled_from(["sum", "mean"]),
    padding_idx=st.sampled_from([None, 0, 3]),
    last=st.booleans(),
    cores=st.sampled_from([3, 4]),
    data=st.data(),
)
def test_a_frozen_table_pools_as_the_bag(level, lengths, mode, padding_idx, last, cores, data):
    bag = make_bag(ranks=[4, 2, 3][: cores - 1], mode=mode, padding_idx=padding_idx, include_last_offset=last)
    n = sum(lengths)
    kind = data.draw(st.sampled_from([torch.int32, torch.int64]))
    ids = torch.tensor(data.draw(st.lists(st.integers(0, 56), min_size=n, max_size=n)), dtype=kind)
    ends = torch.tensor(lengths).cumsum(0)
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), ends if last else ends[:-1]])
    weights = torch.rand(n).double() if mode == "sum" and data.draw(st.booleans()) else None
    frozen = bag.freeze(level)
    torch.testing.assert_close(frozen(ids, offsets, weights), bag(ids, offsets, weights).detach())


@pytest.mark.parametrize("level", LEVELS)
def test_frozen_means_no_gradients_evaluation_and_plain_state(level, tmp_path):
    bag = make_bag(padding_idx=3, dtype=torch.float32)
    frozen = bag.freeze(level)
    assert not frozen.training
    assert not any(p.requires_grad for p in frozen.parameters())
    ids, offsets = torch.tensor([1, 3, 50]), torch.tensor([0, 1])
    want = frozen(ids, offsets)
    assert not want.requires_grad
    assert frozen.storage_bytes() == sum(p.numel() * 4 for p in frozen.state_dict().values())
    save_file(frozen.state_dict(), str(tmp_path / "t.safetensors"))
    other = make_bag(padding_idx=3, dtype=torch.float32)
    with torch.no_grad():
        other.cores[0].mul_(0)
    other = other.freeze(level)
    other.load_state_dict(load_file(str(tmp_path / "t.safetensors")))
    assert torch.equal(other(ids, offsets), want)
    assert torch.equal(copy.deepcopy(frozen)(ids, offsets), want)
    with torch.no_grad():
        bag.cores[0].mul_(2)  # a copy: training goes on without it
    assert torch.equal(frozen(ids, offsets), want)


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
def test_export(level):
    frozen = make_bag(dtype=torch.float32, padding_idx=2, mode="mean").freeze(level)
    ids, offsets = torch.tensor([1, 2, 3, 50, 7]), torch.tensor([0, 1, 3])
    batch, count = torch.export.Dim("batch", min=1), torch.export.Dim("count", min=1)
    program = torch.export.export(frozen, (ids, offsets), dynamic_shapes=({0: count}, {0: batch}))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    more, starts = torch.tensor([4, 2, 2, 56, 0, 1, 9]), torch.tensor([0, 2, 2, 5])
    torch.testing.assert_close(loaded(more, starts), frozen(more, starts))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rows(dtype):
    bag = make_bag(rows=500, dtype=torch.float32)
    frozen = bag.freeze("dense", dtype=dtype)
    assert frozen.storage_bytes() == 2 * 500 * 8
    table = bag.materialize().detach()
    assert torch.equal(frozen.materialize(), table.to(dtype))
    ids, offsets = torch.randint(0, 500, (30,)), torch.arange(0, 30, 3)
    want = embedding_bag(ids, table, offsets, mode="sum")
    got = frozen(ids, offsets, torch.ones(30)).float()
    assert got.dtype == torch.float32
    precision = 2**-8 if dtype == torch.bfloat16 else 2**-11
    assert float((got - want).norm() / want.norm()) < 2 * precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("level", ["cores", "prefix"])
def test_half_precision_cores_are_the_rounded_cores(level, dtype):
    bag = make_bag(dtype=torch.float32)
    whole, half = bag.freeze(level), bag.freeze(level, dtype=dtype)
    assert half.storage_bytes() * 2 == whole.storage_bytes()
    for a, b in zip(whole.core_tensors(), half.core_tensors(), strict=True):
        assert torch.equal(a.to(dtype), b)


@settings(max_examples=30)
@given(data=st.data())
def test_prefix_makes_the_same_rows_within_the_bytes(data):
    d = data.draw(st.integers(3, 4))
    p = data.draw(st.lists(st.integers(1, 5), min_size=d, max_size=d))
    q = data.draw(st.lists(st.integers(1, 3), min_size=d, max_size=d))
    ranks = data.draw(st.lists(st.integers(1, 4), min_size=d - 1, max_size=d - 1))
    rows = math.prod(p)
    bag = TTEmbeddingBag(rows, math.prod(q), ranks, tt_p_shapes=p, tt_q_shapes=q, dtype=torch.float64)
    bag.reset_parameters(1.0)
    frozen = bag.freeze("prefix")
    torch.testing.assert_close(frozen.materialize(), bag.materialize().detach())
    assert len(frozen.core_tensors()) < d
    assert frozen.flops_per_lookup() <= bag.flops_per_lookup()
    with contextlib.suppress(InputError):  # there may be nothing smaller
        limited = bag.freeze("prefix", max_bytes=frozen.storage_bytes() - 1)
        assert limited.storage_bytes() < frozen.storage_bytes()
        assert limited.flops_per_lookup() >= frozen.flops_per_lookup()
        torch.testing.assert_close(limited.materialize(), bag.materialize().detach())


def test_prefix_of_the_paper_and_of_four_cores():
    shapes = {"tt_p_shapes": [200, 220, 250], "tt_q_shapes": [2, 2, 4]}
    three = TTEmbeddingBag(10_131_227, 16, 32, **shapes, device="meta").freeze("prefix")
    assert three.p_shapes == (44_000, 250)
    assert three.flops_per_lookup() == 1024
    assert three.storage_bytes() == 4 * (44_000 * 4 * 32 + 250 * 4 * 32)
    bag = TTEmbeddingBag(9000, 16, [8, 16, 4], tt_p_shapes=[9, 10, 10, 10], tt_q_shapes=[2, 2, 2, 2])
    whole, little = bag.freeze("prefix"), bag.freeze("prefix", max_bytes=100_000)
    assert isinstance(whole, FrozenPrefixBag)
    assert whole.storage_bytes() > 100_000 >= little.storage_bytes()
    assert whole.flops_per_lookup() < little.flops_per_lookup() < bag.flops_per_lookup()


def test_a_group_of_frozen_tables():
    bags = [make_bag().freeze("dense"), make_bag(rows=40, mode="mean", padding_idx=1).freeze("dense")]
    lengths = torch.tensor([1, 2, 0, 3, 1, 2])
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    ids = torch.randint(0, 40, (9,))
    got = FrozenEmbeddingBag.forward_group(bags, ids, offsets)
    pieces = [
        bags[0](ids[:3], torch.tensor([0, 1, 3])),
        bags[1](ids[3:], torch.tensor([0, 3, 4])),
    ]
    torch.testing.assert_close(got, torch.cat(pieces, 1))
    ones = FrozenEmbeddingBag.forward_group(bags, ids[:6])
    torch.testing.assert_close(ones, FrozenEmbeddingBag.forward_group(bags, ids[:6], torch.arange(7)))


def test_refusals():
    for call, message in [
        (lambda: TTEmbeddingBag(60, 8, [4]).freeze("prefix"), "use 'dense'"),
        (lambda: make_bag().freeze("fast"), "level = 'fast'"),
        (lambda: make_bag().freeze("dense", dtype=torch.int8), "dtype = torch.int8"),
        (lambda: make_bag().freeze("prefix", max_bytes=100), "max_bytes = 100; with any two"),
        (
            lambda: make_bag(mode="mean").freeze("dense")(
                torch.tensor([1]), torch.tensor([0]), torch.ones(1)
            ),
            "needs sum pooling",
        ),
    ]:
        with pytest.raises(InputError, match=message):
            call()
