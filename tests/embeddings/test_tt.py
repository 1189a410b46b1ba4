"""TTEmbeddingBag as a drop-in for nn.EmbeddingBag, and its place in torch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import embedding_bag

from recsys_opt import TableConfig, TTEmbeddingBag
from recsys_opt.embeddings.registry import build_embedding
from recsys_opt.errors import InputError


def make_bag(**options) -> TTEmbeddingBag:
    torch.manual_seed(0)
    bag = TTEmbeddingBag(60, 8, 4, dtype=torch.float64, **options)
    bag.reset_parameters(1.0)
    return bag


@settings(max_examples=100)
@given(
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=8),
    mode=st.sampled_from(["sum", "mean"]),
    padding_idx=st.sampled_from([None, 0, 3, -1]),
    last=st.booleans(),
    weighted=st.booleans(),
    data=st.data(),
)
def test_matches_embedding_bag_on_the_whole_table(lengths, mode, padding_idx, last, weighted, data):
    weighted = weighted and mode == "sum"
    bag = make_bag(mode=mode, padding_idx=padding_idx, include_last_offset=last)
    n = sum(lengths)
    ids = torch.tensor(data.draw(st.lists(st.integers(0, 59), min_size=n, max_size=n)), dtype=torch.long)
    ends = torch.tensor(lengths).cumsum(0)
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), ends if last else ends[:-1]])
    weights = torch.linspace(-1, 1, n, dtype=torch.float64).requires_grad_() if weighted else None
    want = embedding_bag(
        ids,
        bag.materialize(),
        offsets,
        mode=mode,
        padding_idx=padding_idx,
        include_last_offset=last,
        per_sample_weights=weights,
    )
    got = bag(ids, offsets, weights)
    torch.testing.assert_close(got, want)
    leaves = [*bag.parameters(), *([weights] if weighted else [])]
    upstream = torch.randn_like(got)
    torch.testing.assert_close(
        torch.autograd.grad(got, leaves, upstream),
        torch.autograd.grad(want, leaves, upstream, materialize_grads=True),
    )


def test_two_dimensional_input():
    bag, ids = make_bag(mode="mean"), torch.randint(0, 60, (5, 3))
    torch.testing.assert_close(bag(ids), embedding_bag(ids, bag.materialize(), mode="mean"))
    weighted, factors = make_bag(), torch.rand(5, 3).double()
    torch.testing.assert_close(
        weighted(ids, per_sample_weights=factors),
        embedding_bag(ids, weighted.materialize(), mode="sum", per_sample_weights=factors),
    )
    assert bag(torch.empty(4, 0, dtype=torch.long)).shape == (4, 8)
    assert not bag(torch.empty(4, 0, dtype=torch.long)).any()


def test_a_group_is_its_bags_side_by_side():
    torch.manual_seed(0)
    a = TTEmbeddingBag(60, 8, 4)
    b = TTEmbeddingBag(1000, 16, [3, 5, 2], mode="mean", padding_idx=2)
    lengths = torch.randint(0, 4, (12,))
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    ids = torch.randint(0, 60, (int(offsets[-1]),), dtype=torch.int32)
    got = TTEmbeddingBag.forward_group([a, b, a], ids, offsets)
    pieces = []
    for t, bag in enumerate((a, b, a)):
        bounds = offsets[4 * t : 4 * t + 5]
        pieces.append(bag(ids[bounds[0] : bounds[-1]], bounds[:-1] - bounds[0]))
    torch.testing.assert_close(got, torch.cat(pieces, 1))
    ones = TTEmbeddingBag.forward_group([a, b], ids[:6])
    torch.testing.assert_close(ones, TTEmbeddingBag.forward_group([a, b], ids[:6], torch.arange(7)))
    got.sum().backward()
    assert all(p.grad is not None for p in [*a.parameters(), *b.parameters()])


def test_bad_input_is_refused():
    bag, ids = make_bag(), torch.tensor([1, 2, 3])
    for call, message in [
        (lambda: bag(ids), "needs offsets"),
        (lambda: bag(ids[None], torch.tensor([0])), "takes no offsets"),
        (lambda: bag(ids[None, None]), "must be 1-D with offsets or 2-D"),
        (lambda: bag(ids, torch.tensor([0]), torch.ones(2)), "per_sample_weights has shape"),
        (lambda: make_bag(mode="mean")(ids, torch.tensor([0]), torch.ones(3)), "needs sum pooling"),
        (lambda: make_bag(mode="max"), "mode = 'max'"),
        (lambda: make_bag(init="zeros"), "init = 'zeros'"),
        (lambda: make_bag(padding_idx=60), "padding_idx = 60"),
    ]:
        with pytest.raises(InputError, match=message):
            call()
    with pytest.raises(RuntimeError, match=r"offsets\[0\] = 1; the first bag must start at 0"):
        bag(ids, torch.tensor([1, 2]))
    with pytest.raises(RuntimeError, match=r"indices\[1\] = 60 is outside the table's 60 rows"):
        bag(torch.tensor([0, 60]), torch.tensor([0]))


def test_from_config():
    options = {"tt_ranks": 8, "tt_p_shapes": [4, 3, 5], "init": "gaussian"}
    bag = build_embedding(TableConfig("t", 60, 8, pooling="mean", representation="tt", options=options))
    assert isinstance(bag, TTEmbeddingBag)
    assert (bag.tt_p_shapes, bag.tt_q_shapes, bag.tt_ranks) == ((4, 3, 5), (1, 1, 8), (1, 8, 8, 1))
    assert (bag.mode, bag.init) == ("mean", "gaussian")
    for bad, message in [
        ({}, "table t: tt needs the option tt_ranks"),
        ({"tt_ranks": 8, "rank": 1}, "table t: tt has no option 'rank'"),
        ({"tt_ranks": 8, "tt_p_shapes": [2, 2, 2]}, "table t: tt_p_shapes = .* make 8 rows"),
    ]:
        with pytest.raises(InputError, match=message):
            build_embedding(TableConfig("t", 60, 8, representation="tt", options=bad))


@pytest.mark.slow
def test_compiles_whole_with_gradients():
    bag, ids, offsets = make_bag(), torch.randint(0, 60, (20,)), torch.arange(0, 20, 2)
    compiled = torch.compile(bag, fullgraph=True)
    torch.testing.assert_close(compiled(ids, offsets), bag(ids, offsets))
    compiled(ids, offsets).square().sum().backward()
    got = [p.grad.clone() for p in bag.parameters()]
    bag.zero_grad()
    bag(ids, offsets).square().sum().backward()
    torch.testing.assert_close(got, [p.grad for p in bag.parameters()])
    more = torch.randint(0, 60, (33,))
    torch.testing.assert_close(compiled(more, torch.arange(0, 33, 3)), bag(more, torch.arange(0, 33, 3)))


def test_autocast_keeps_single_precision():
    bag = TTEmbeddingBag(60, 8, 4)
    ids, offsets = torch.tensor([1, 2]), torch.tensor([0, 1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = bag(ids, offsets, torch.ones(2, dtype=torch.bfloat16))
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, bag(ids, offsets))


def test_deferred_initialisation():
    bag = TTEmbeddingBag(10_131_227, 16, 32, device="meta")
    assert all(core.is_meta for core in bag.cores)
    bag.to_empty(device="cpu")
    bag.reset_parameters()
    assert bag(torch.tensor([10_131_226]), torch.tensor([0])).isfinite().all()


@pytest.mark.parametrize("level", ["cores", "prefix", "dense"])
@pytest.mark.parametrize("ranks", [4, [3, 2, 5]])
@pytest.mark.parametrize("padding_idx", [None, 3])
def test_freeze(level, ranks, padding_idx):
    torch.manual_seed(0)
    bag = TTEmbeddingBag(57, 8, ranks, padding_idx=padding_idx, dtype=torch.float64)
    frozen = bag.freeze(level)
    assert not any(p.requires_grad for p in frozen.parameters())
    ids, offsets = torch.randint(0, 57, (30,)), torch.arange(0, 30, 3)
    torch.testing.assert_close(frozen(ids, offsets), bag(ids, offsets).detach())


def test_freeze_refusals():
    with pytest.raises(InputError, match="use 'dense'"):
        TTEmbeddingBag(60, 8, [4]).freeze("prefix")
    with pytest.raises(InputError, match="level = 'fast'"):
        make_bag().freeze("fast")


def test_from_pretrained_recovers_a_table_of_low_rank():
    torch.manual_seed(0)
    original = TTEmbeddingBag(60, 8, [3, 4], tt_p_shapes=[4, 3, 5], dtype=torch.float64)
    table = original.materialize().detach()
    bag = TTEmbeddingBag.from_pretrained(table, [3, 4], tt_p_shapes=[4, 3, 5])
    torch.testing.assert_close(bag.materialize(), table)
    assert bag.fit_error < 1e-6
    assert all(p.requires_grad for p in bag.parameters())


def test_from_pretrained_reports_its_error():
    torch.manual_seed(0)
    table = torch.randn(500, 16)
    errors = []
    for rank in (2, 8, 200):
        bag = TTEmbeddingBag.from_pretrained(table, rank)
        actual = float((bag.materialize().detach() - table).norm() / table.norm())
        assert bag.fit_error >= actual - 1e-4  # the rows beyond the table count too, but are not looked up
        assert bag.fit_error <= 1.0
        errors.append(actual)
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-5


def test_cost_figures():
    bag = TTEmbeddingBag(
        10_131_227, 16, 32, tt_p_shapes=[200, 220, 250], tt_q_shapes=[2, 2, 4], device="meta"
    )
    assert bag.storage_bytes() == 4 * 495_360
    assert bag.flops_per_lookup() == 8192 + 1024
    assert "327.2x smaller" in repr(bag)
