"""Tables in two tiers on a real GPU; tests/simt tests the logic of the same kernels without one."""

import copy
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_opt import FusedUpdate, TieredEmbeddingBag, ops
from recsys_opt import reference_tiered as reference
from tests.test_ops_tiered import NATIVE, STATES, Case, cases, numbers

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        not (torch.cuda.is_available() and ops.has_cuda_kernel("tiered_bag")),
        reason="needs a CUDA GPU and the CUDA kernels; scripts/gpu_check.sh builds and runs these",
    ),
]


@pytest.fixture(autouse=True)
def _no_error_is_left() -> Iterator[None]:
    before = ops.tt_bounds_check("check")
    yield
    ops.tt_bounds_check(before)
    assert ops.tt_bounds_report().errors == 0


def there(value, *, pinned: bool = False):
    """On the GPU, or pinned; those of one tensor are one."""
    if isinstance(value, list):
        made = {id(tensor): there(tensor, pinned=pinned) for tensor in value}
        return [made[id(tensor)] for tensor in value]
    if value is None:
        return None
    return value.pin_memory() if pinned and value.numel() else value if pinned else value.cuda()


def look_up(case: Case):
    hot, cold, remaps, indices, offsets, factors, mean = case.arguments()
    lookups = map(there, (remaps, indices, offsets, factors))
    return NATIVE.tiered_bag(there(hot), there(cold, pinned=True), *lookups, mean)


@settings(max_examples=40)
@given(cases)
def test_lookups_are_the_cpus(case):
    got, positions = look_up(case)
    want, wanted_positions = NATIVE.tiered_bag(*case.arguments())
    torch.testing.assert_close(got.cpu(), want)
    used = 0 if not len(positions) else len(case.indices) if case.offsets is None else case.offsets[-1]
    assert torch.equal(positions.cpu()[:used], wanted_positions[:used])


def updated(case: Case, algorithm: str, tensors, factors_grad: bool):
    hot, cold, hot_states, cold_states = tensors
    tiers = (there(hot), there(cold, pinned=True), there(hot_states), there(cold_states, pinned=True))
    rest = map(there, (case.positions(), case.offsets, case.factors))
    rule = (ops.TT_ALGORITHMS[algorithm], numbers(0.1, 3).cuda())
    result = NATIVE.tiered_bag_backward_update(
        case.grad.cuda(), *tiers, *rest, case.mean, factors_grad, *rule
    )
    torch.cuda.synchronize()
    return result.cpu(), *([t.cpu() for t in own] for own in tiers)


@settings(max_examples=60)
@given(cases, st.sampled_from(sorted(STATES)), st.booleans())
def test_updates_are_the_references(case, algorithm, factors_grad):
    tensors = (case.hot, case.cold, *case.states(algorithm))
    want = copy.deepcopy(tensors)
    factors_grad = factors_grad and case.factors is not None
    rest = (case.positions(), case.offsets, case.factors, case.mean, factors_grad)
    rule = (ops.TT_ALGORITHMS[algorithm], numbers(0.1, 3))
    result = reference.tiered_bag_backward_update(case.grad, *want, *rest, *rule)
    torch.testing.assert_close(updated(case, algorithm, tensors, factors_grad), (result, *want))


@pytest.mark.parametrize("algorithm", sorted(STATES))
def test_updates_of_many_lookups_are_the_same_in_every_run(algorithm):
    case = Case(1, 4, 3000, single=True)
    case.indices = case.indices % torch.tensor([min(n, 50) for n in case.rows]).repeat_interleave(3000)
    case.grad = torch.randn(3000, case.grad.shape[1], dtype=torch.float64)
    tensors = (case.hot, case.cold, *case.states(algorithm))
    first, second = (updated(case, algorithm, tensors, False) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("update", [None, "sgd", "rowwise_adagrad", "adagrad", "adam"])
@pytest.mark.parametrize("hot_rows", [0, 500, 2000])
def test_a_module_trains_as_on_the_cpu(hot_rows, update):
    ranking = torch.randperm(2000)
    results = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        bag = TieredEmbeddingBag(2000, 16, hot_rows, ranking=ranking, dtype=torch.float64).to(device)
        assert bag.cold.device.type == "cpu"
        assert bag.cold.is_pinned() == (device == "cuda" and hot_rows < 2000)
        if update:
            bag.fuse_update(FusedUpdate(update, 0.05))
        for k in range(4):
            ids = (torch.rand(600, generator=torch.Generator().manual_seed(k)) ** 3 * 2000).long().to(device)
            output = bag(ids, torch.arange(0, 600, 3, device=device))
            output.square().sum().backward()
            if update is None:
                with torch.no_grad():
                    for tier in (bag.hot, bag.cold):
                        tier.add_(tier.grad.to_dense(), alpha=-0.05)
                        tier.grad = None
            if k == 1:
                bag.retier(hot_rows=hot_rows // 2 + 100)
        results.append([bag.materialize().cpu(), *(s.cpu() for s in bag.update_state().values())])
    torch.testing.assert_close(*results)


def test_cold_rows_must_be_pinned():
    case = Case(0, 1, 2)
    case.cold = [torch.randn(8, 3, dtype=torch.float64)]
    case.hot, case.remaps = [torch.randn(2, 3, dtype=torch.float64)], [torch.empty(0).int()]
    with pytest.raises(RuntimeError, match=r"cold\[0\] is in memory that the GPU cannot read.*pin_memory"):
        NATIVE.tiered_bag(
            there(case.hot), case.cold, there(case.remaps), torch.zeros(2).long().cuda(), None, None, [0]
        )


def test_a_bad_id_counts_for_nothing_and_the_next_call_says_so():
    case = Case(0, 1, 2, single=True)
    good = there(case.indices)
    case.indices = torch.tensor([case.rows[0], -1])
    output, _ = look_up(case)
    torch.cuda.synchronize()
    assert not output.any()
    case.indices = good.cpu()
    with pytest.raises(RuntimeError, match="an earlier call on this CUDA device met 2 ids"):
        look_up(case)


def test_a_call_is_captured_in_a_graph():
    bag = TieredEmbeddingBag(3000, 16, 300, ranking=torch.randperm(3000), device="cuda")
    bag.fuse_update(FusedUpdate("rowwise_adagrad", 0.1))
    twin = copy.deepcopy(bag).to("cuda")  # which pins the copy
    twin.fuse_update(FusedUpdate("rowwise_adagrad", 0.1))
    ids, offsets = torch.randint(0, 3000, (512,), device="cuda"), torch.arange(512, device="cuda")
    grad = torch.randn(512, 16, device="cuda")
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        bag(ids, offsets).backward(grad)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        bag(ids, offsets).backward(grad)
    graph.replay()
    for _ in range(2):
        twin(ids, offsets).backward(grad)
    torch.testing.assert_close(bag.materialize(), twin.materialize())
