"""tt_prefix_bag against its plain-torch twin in float64, over shapes, types, instruction sets and threads."""

import random
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

from recsys_opt import ops, reference
from recsys_opt.embeddings.prefix import packed, steps_per_lane, tile_of, unpacked

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
pytestmark = pytest.mark.usefixtures("one_thread")
# Every tile that has a kernel of its own, several of them in a row, and shapes that no tile divides.
COLUMNS = (
    (4, 4),
    (2, 8),
    (1, 16),
    (8, 2),
    (16, 1),
    (8, 8),
    (8, 16),
    (4, 12),
    (3, 5),
    (1, 1),
    (2, 4),
    (1, 32),
)
RANKS = (32, 16, 64, 8, 4, 24, 1, 7, 40)


@dataclass
class Call:
    """Arguments of `ops.tt_prefix_bag`."""

    indices: Tensor
    offsets: Tensor | None
    prefixes: list[Tensor]
    lasts: list[Tensor]
    num_embeddings: list[int]
    pooling_modes: list[int]
    padding_idx: list[int]
    weights: Tensor | None = None
    include_last_offset: bool = True

    def arguments(self, change=lambda tensor: tensor):
        """For the op's overload and the reference, with its numbers changed."""
        return (
            self.indices,
            self.offsets,
            [change(core) for core in self.prefixes],
            [change(core) for core in self.lasts],
            self.num_embeddings,
            self.pooling_modes,
            self.padding_idx,
            None if self.weights is None else change(self.weights),
            self.include_last_offset,
        )

    def run(self, op=torch.ops.recsys_opt.tt_prefix_bag) -> Tensor:
        return op(*self.arguments())


def check(call: Call, op=torch.ops.recsys_opt.tt_prefix_bag) -> None:
    """Values are the float64 reference's, but for the rounding of sums (Higham) and of the result."""
    got = call.run(op)
    exact = reference.tt_prefix_bag(*call.arguments(Tensor.double))
    size = reference.tt_prefix_bag(*call.arguments(lambda t: t.double().abs()))
    dtype = call.prefixes[0].dtype
    assert got.dtype == dtype
    assert got.shape == exact.shape
    steps = max(core.shape[2] * core.shape[4] for core in call.prefixes) + call.indices.numel() + 3
    sums = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps * steps
    bound = sums * size + torch.finfo(dtype).eps * exact.abs() + torch.finfo(dtype).tiny
    wrong = ~((got.double() - exact).abs() <= bound)
    assert not wrong.any(), f"{got[wrong][0]} instead of {exact[wrong][0]}, allowed {bound[wrong][0]}"


def table(n, q, rank, dtype, generator) -> tuple[Tensor, Tensor]:
    tile = tile_of(*q)
    cores = [torch.randn(n[k], q[k], rank, generator=generator, dtype=torch.float64) for k in (0, 1)]
    return packed(cores[0], tile[0], dtype), packed(cores[1], tile[1], dtype)


@st.composite
def calls(draw, most_tables=3, most_bags=12) -> Call:
    dtype = draw(st.sampled_from(DTYPES))
    rng = random.Random(draw(st.integers(0, 2**32)))
    generator = torch.Generator().manual_seed(rng.randrange(2**32))
    tables = draw(st.integers(1, most_tables))
    bags = draw(st.integers(0, most_bags))
    kind = draw(st.sampled_from(["none", "ones", "jagged", "open"]))
    prefixes, lasts, rows, ids, lengths = [], [], [], [], []
    for _ in range(tables):
        n = rng.randint(1, 40), rng.randint(1, 30)
        prefix, last = table(n, rng.choice(COLUMNS), rng.choice(RANKS), dtype, generator)
        prefixes.append(prefix)
        lasts.append(last)
        rows.append(rng.randint(1, n[0] * n[1]))
        per_bag = [1 if kind in ("none", "ones") else rng.choice((0, 1, 2, 5)) for _ in range(bags)]
        lengths += per_bag
        ids += [rng.choice((0, rows[-1] - 1, rng.randrange(rows[-1]))) for _ in range(sum(per_bag))]
    weighted = draw(st.booleans())
    offsets = None
    if kind != "none":
        offsets = torch.tensor([0, *lengths]).cumsum(0).to(draw(st.sampled_from([torch.int32, torch.int64])))
    last_offset = kind != "open" or not lengths
    if offsets is not None and not last_offset:
        offsets = offsets[:-1]
    return Call(
        torch.tensor(ids, dtype=draw(st.sampled_from([torch.int32, torch.int64]))),
        offsets,
        prefixes,
        lasts,
        rows,
        [0 if weighted else rng.randint(0, 1) for _ in rows],
        [rng.choice((-1, -1, rng.randrange(r))) for r in rows],
        torch.randn(len(ids), generator=generator).to(dtype) if weighted else None,
        last_offset,
    )


@settings(max_examples=60)
@given(calls(), st.integers(0, 2))
def test_values(call, isa):
    try:
        ops.tt_limit_isa(isa)
        check(call)
    finally:
        ops.tt_limit_isa(2)


@pytest.mark.slow
@settings(max_examples=2000)
@given(calls(most_bags=70), st.integers(0, 2))
def test_values_on_many_calls(call, isa):
    try:
        ops.tt_limit_isa(isa)
        check(call)
    finally:
        ops.tt_limit_isa(2)


@pytest.mark.parametrize("isa", [0, 1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("q", COLUMNS, ids=str)
def test_every_tile_and_rank(q, dtype, isa):
    generator = torch.Generator().manual_seed(0)
    try:
        ops.tt_limit_isa(isa)
        for rank in RANKS:
            prefix, last = table((13, 7), q, rank, dtype, generator)
            indices = torch.randint(0, 91, (40,), generator=generator)
            check(Call(indices, None, [prefix], [last], [91], [0], [-1]))
    finally:
        ops.tt_limit_isa(2)


def big_batch(bags=3000, length=3, dtype=torch.float32) -> Call:
    """Several tasks, and more ids than are read at once."""
    generator = torch.Generator().manual_seed(1)
    prefix, last = table((50, 20), (4, 4), 32, dtype, generator)
    indices = torch.randint(0, 1000, (bags * length,), generator=generator)
    offsets = torch.arange(0, bags * length + 1, length)
    return Call(indices, offsets, [prefix], [last], [1000], [1], [3])


@pytest.mark.parametrize("length", [1, 3])
def test_results_do_not_depend_on_threads_or_on_the_neighbours_in_a_batch(length):
    call = big_batch(length=length)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(call.run())
    torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])
    check(call)
    call.padding_idx = [-1]
    check(call)
    whole = call.run()
    some = slice(1500 * length, 1700 * length)
    call.indices, call.offsets = call.indices[some], call.offsets[:201]
    assert torch.equal(call.run(), whole[1500:1700])


def test_ids_beyond_32_bits():
    generator = torch.Generator().manual_seed(0)
    cores = table((3, 5), (2, 8), 16, torch.float32, generator)
    prefix = cores[0][:1].expand(100_000, -1, -1, -1, -1).contiguous()
    last = cores[1][:1].expand(50_000, -1, -1, -1, -1).contiguous()
    prefix[99_999], last[49_999] = cores[0][1], cores[1][2]
    rows = 5 * 10**9
    call = Call(torch.tensor([0, rows - 1, 2**32]), None, [prefix], [last], [rows], [0], [-1])
    check(call)
    call.indices = torch.tensor([0, rows])
    with pytest.raises(RuntimeError, match=rf"indices\[1\] = {rows} is outside the table's {rows} rows"):
        call.run()


def bad(indices, offsets, last=True) -> Call:
    generator = torch.Generator().manual_seed(0)
    prefix, last_core = table((10, 6), (4, 4), 8, torch.float32, generator)
    offsets = None if offsets is None else torch.tensor(offsets, dtype=torch.int64)
    return Call(
        torch.tensor(indices), offsets, [prefix], [last_core], [57], [0], [-1], include_last_offset=last
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (bad([0, 57], None), r"indices\[1\] = 57 is outside the table's 57 rows \(table 0\)"),
        (bad([-1, 3], None), r"indices\[0\] = -1 is outside"),
        (bad([2**62, 3], [0, 2]), r"indices\[0\] = 4611686018427387904 is outside"),
        (bad([2**32 + 1], [0, 1]), r"indices\[0\] = 4294967297 is outside"),
        (bad([1, 2], [0, 2, 1]), r"offsets\[2\] = 1 is less than offsets\[1\] = 2"),
        (bad([1, 2], [0, 3]), r"offsets\[1\] = 3 is outside the 2 indices"),
        (bad([1, 2], [0, -1, 2]), r"offsets\[1\] = -1 is outside the 2 indices"),
        (bad([1, 2], [1, 2]), r"offsets\[0\] = 1; the first bag must start at 0"),
        (bad([1, 2], [0, 3], last=False), r"offsets\[1\] = 3 is outside the 2 indices"),
        (bad([1, 2], [1], last=False), r"offsets\[0\] = 1; the first bag must start at 0"),
        (bad([1, 2], []), "offsets is empty"),
        (bad([[1, 2]], None), "indices must be 1-D"),
    ],
)
def test_bad_values_are_refused_with_their_place(call, message):
    with pytest.raises(RuntimeError, match=message):
        call.run()


def test_ids_after_the_last_bag_are_not_looked_at():
    call = bad([5, 6, 10**9], [0, 1, 2])
    check(Call(call.indices[:2], call.offsets, call.prefixes, call.lasts, [57], [0], [-1]))
    assert call.run().shape == (2, 16)


def test_wrong_arguments_are_refused():
    call = bad([0, 1], None)
    for change, message in [
        ({"lasts": []}, "1 prefix cores, but 0 last cores"),
        ({"prefixes": [], "lasts": []}, "no tables given"),
        ({"num_embeddings": [61]}, "num_embeddings = 61, its cores make 60 rows"),
        ({"pooling_modes": [2]}, "pooling mode 2"),
        ({"padding_idx": [57]}, "padding_idx = 57"),
        ({"weights": torch.ones(3)}, "per_sample_weights has 3 elements, indices has 2"),
        ({"weights": torch.ones(2).double()}, "differ in dtype"),
        ({"weights": torch.ones(2), "pooling_modes": [1]}, "need sum pooling"),
        ({"lasts": [call.lasts[0][:, :, :4].contiguous()]}, "disagree on rank: 8 vs 4"),
        ({"lasts": [call.lasts[0].double()]}, "differs in dtype"),
        ({"lasts": [call.lasts[0].bfloat16()]}, "must be .n, tiles, steps, tile, 1.|differs in dtype"),
        ({"prefixes": [call.prefixes[0][0]]}, "must be .n, tiles, steps, tile, 1."),
        ({"prefixes": [call.prefixes[0].transpose(1, 3)]}, "must be contiguous"),
    ]:
        other = Call(**{**call.__dict__, **change})
        with pytest.raises(RuntimeError, match=message):
            other.run()


def test_opcheck():
    for call in (
        big_batch(5),
        big_batch(5, 1, torch.bfloat16),
        bad([1, 2, 3], None),
        bad([1, 2], [0], False),
    ):
        opcheck(torch.ops.recsys_opt.tt_prefix_bag.default, call.arguments())


@settings(max_examples=40)
@given(
    st.integers(1, 4),
    st.sampled_from(COLUMNS),
    st.integers(1, 9),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_packing_is_undone_by_unpacking(n, q, rank, dtype):
    core = torch.randn(n, q[1], rank).to(dtype)
    both = packed(core, tile_of(*q)[1], dtype)
    assert both.is_contiguous()
    assert both.shape[4] == steps_per_lane(dtype)
    back = unpacked(both)
    assert torch.equal(back[..., :rank], core)
    assert not back[..., rank:].any()
