"""Memory, paths and shapes of the CUDA kernels, run on the host by the shim (simt.h)."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.simt import ops
from tests.simt.test_tt_kernels import RUNS, check, joined, one_table
from tests.tt_cases import Case

pytestmark = pytest.mark.usefixtures("one_thread")


def backward_workspace(case: Case) -> int:
    """Bytes that the backward pass takes besides its results."""
    out = case.call(ops.tt_embedding_bag)
    torch.autograd.grad(out, case.cores, case.upstream)
    bytes_: int = ops.library().workspace_bytes()
    return bytes_


def test_a_wide_table_of_few_prefixes_does_not_pay_for_every_lookup_of_the_call():
    """Memory is for the most nodes that any division of the lookups among the tables can have."""
    n = 1500
    narrow = one_table(n, (40, 30, 20), (1, 1, 2), (2, 2))
    wide = one_table(n, (2, 2, 5), (2, 4, 2), (16, 32))  # 4 prefixes of 256 + 32 elements
    with ops.running(direct_lookups=0):
        alone, both = backward_workspace(narrow), backward_workspace(joined([narrow, wide]))
        check(joined([narrow, wide]))
    plan = 2 * n * (32 + 3 * 24 + 8) + 100_000
    cut = 2 * n * (1 / 64 + 1 / 256)
    assert both < alone + plan + 4 * 288 * (4 + cut) + 2 * 4 * 2048 * (4 + 2 * n / 256)
    assert both < 2 * n * 4 * 288 / 2, "half of what the widest node for every lookup would take"


@pytest.mark.parametrize("run", [1, 40, 64, 65, 256])
@pytest.mark.parametrize("four", [False, True])
def test_nodes_that_chunks_and_units_cut_have_their_room(run, four):
    """Two prefixes, hundreds of lookups: every chunk of them begins a node of its own."""
    p, q, ranks = ((1, 2, 1, 3), (2, 1, 2, 2), (3, 5, 4)) if four else ((2, 1, 3), (2, 2, 2), (5, 3))
    case = one_table(700, p, q, ranks, dtype=torch.float64)
    case.indices[:] = 0
    case.indices[650:] = case.options["num_embeddings"][0] - 1
    with ops.running("backward", direct_lookups=0, run=run):
        check(case)


@settings(max_examples=15)
@given(st.integers(0, 99), RUNS)
def test_lookups_in_any_one_of_the_tables_have_their_room(seed, run):
    """The host knows how many lookups a call has, not which table has them."""
    rng = random.Random(seed)
    parts = []
    full = rng.randrange(4)
    for t in range(4):
        d = rng.choice((2, 3, 3, 4))
        shape = [rng.randint(1, 6) for _ in range(d)]
        part = one_table(
            120, shape, [rng.randint(1, 3) for _ in range(d)], [rng.randint(1, 9)] * (d - 1), seed=t
        )
        lengths = torch.zeros(120, dtype=torch.int64)
        if t == full:
            lengths[rng.randrange(100) :][:20] = 6
        part.offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        part.indices = part.indices[: part.offsets[-1]]
        parts.append(part)
    with ops.running("random", seed, direct_lookups=0, run=run):
        check(joined(parts))


def test_few_lookups_in_very_many_or_very_long_bags_are_planned():
    """A block per bag, and a bag's lookups one after the other, would cost more than a plan."""
    empty = one_table(2)
    empty.offsets = torch.zeros(9001, dtype=torch.int64)
    empty.offsets[-1] = 2
    empty.upstream = torch.ones(9000, 12)
    long = one_table(300)
    long.offsets = torch.tensor([0, 300])
    long.upstream = torch.ones(1, 12)
    usual = one_table(300)
    for case, planned in ((empty, True), (long, True), (usual, False)):
        with ops.running(direct_lookups=512), torch.no_grad():
            out = case.call(ops.tt_embedding_bag)
            bytes_ = ops.library().workspace_bytes()
        with ops.running(direct_lookups=0), torch.no_grad():
            torch.testing.assert_close(out, case.call(ops.tt_embedding_bag), rtol=1e-5, atol=1e-5)
            assert (bytes_ == ops.library().workspace_bytes()) == planned


def test_shapes_beyond_what_a_block_can_index_are_refused():
    with ops.running(), pytest.raises(RuntimeError, match=r"must be fewer than 2\^31"):
        ops.library().tt_embedding_bag(
            torch.tensor([0]),
            torch.tensor([0, 1]),
            [torch.empty(1, 1 << 20, 1, 1), torch.empty(1, 200, 1, 1)],
            *([2], [1], [0], [-1]),
            None,
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_cores_that_begin_anywhere_in_memory(dtype):
    """Views whose first element is not at 16 bytes: copies go element by element, to the same bits."""
    case = one_table(90, (5, 4, 3), (4, 4, 4), (32, 16), dtype=dtype)
    with ops.running(direct_lookups=0, tf32=1):
        arguments = (case.indices, case.offsets)
        options = (*case.options.values(), None)
        results = []
        for shift in (0, 1):
            cores = []
            for core in case.cores:
                room = torch.full((core.numel() + 8,), torch.nan, dtype=dtype)
                start = (-room.data_ptr() // core.element_size()) % (16 // core.element_size()) + shift
                view = room[start : start + core.numel()].view(core.shape)
                cores.append(view.copy_(core.detach()))
                assert (view.data_ptr() % 16 == 0) == (shift == 0)
            out = ops.library().tt_embedding_bag(*arguments, cores, *options)
            grads = ops.library().tt_embedding_bag_backward(case.upstream, *arguments, cores, *options, False)
            rates = torch.tensor([0.1, 1e-8, 0.9, 0.999, 0.0, 1.0], dtype=torch.float64)
            update = ops.library().tt_embedding_bag_backward_update
            update(case.upstream, *arguments, cores, [], *options, False, 0, rates)
            results.append([out, *grads, *cores])
    assert all(map(torch.equal, *results))
