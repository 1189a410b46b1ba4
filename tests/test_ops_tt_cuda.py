"""The tensor-train ops on a real GPU; tests/simt tests the logic of the same kernels without one."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from recsys_opt import ops, reference
from recsys_opt.embeddings.tt import TTEmbeddingBag
from tests.test_ops_tt_update import ALGORITHMS, make_states, numbers
from tests.tt_cases import OPTIONS, Case, cases, rounding_steps

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        not (torch.cuda.is_available() and ops.has_cuda_kernel("tt_embedding_bag")),
        reason="needs a CUDA GPU and the CUDA kernels; scripts/gpu_check.sh builds and runs these",
    ),
]
FAR = 10**9  # lookups: every batch is a small one


@pytest.fixture(autouse=True)
def _settings_and_errors() -> Iterator[None]:
    """Each test begins with the settings that hold by default, and leaves no error behind."""
    before = ops.tt_bounds_check("check"), ops.tt_allow_tf32(False), ops.tt_direct_lookups()
    yield
    ops.tt_bounds_check(before[0])
    ops.tt_allow_tf32(before[1])
    ops.tt_direct_lookups(before[2])
    assert ops.tt_bounds_report().errors == 0


def on_gpu(case: Case, device: str = "cuda") -> Case:
    weights = None if case.weights is None else case.weights.detach().to(device).requires_grad_()
    return Case(
        case.indices.to(device),
        case.offsets.to(device),
        [core.detach().to(device).requires_grad_() for core in case.cores],
        case.options,
        weights,
        None if case.upstream is None else case.upstream.to(device),
        notes=case.notes,
    )


def one_table(
    n: int = 3000,
    p: tuple[int, ...] = (20, 22, 25),
    q: tuple[int, ...] = (2, 2, 4),
    ranks: tuple[int, ...] = (32, 32),
    dtype: torch.dtype = torch.float32,
    device: str = "cuda",
    tables: int = 1,
) -> Case:
    g = torch.Generator().manual_seed(0)
    bonds = [1, *ranks, 1]
    rows = math.prod(p)
    cores = [
        (torch.randn(p[k], q[k], bonds[k], bonds[k + 1], generator=g, dtype=torch.float64) / bonds[k] ** 0.5)
        .to(dtype)
        .requires_grad_()
        for _ in range(tables)
        for k in range(len(p))
    ]
    indices = torch.randint(0, rows, (n * tables,), generator=g)
    indices[::3] = rows // 2
    options = dict(
        zip(OPTIONS, ([len(p)] * tables, [rows] * tables, [0] * tables, [-1] * tables), strict=True)
    )
    upstream = torch.randn(n, math.prod(q) * tables, generator=g, dtype=torch.float64).to(dtype)
    return on_gpu(Case(indices, torch.arange(n * tables + 1), cores, options, upstream=upstream), device)


def exact_results(case: Case) -> list[Tensor]:
    return on_gpu(case, "cpu").mapped(Tensor.double).results(reference.tt_embedding_bag)


def relative_errors(case: Case) -> list[float]:
    """||result - exact|| / ||exact|| of the output and of each gradient."""
    got = case.results(ops.tt_embedding_bag)
    assert all(t.isfinite().all() for t in got)
    pairs = zip(got, exact_results(case), strict=True)
    return [((mine.double().cpu() - right).norm() / right.norm()).item() for mine, right in pairs]


@settings(max_examples=150)
@given(cases(batches=(1, 3, 9, 40, 0)), st.sampled_from((0, FAR)))
def test_values_and_gradients_match_the_float64_reference(case: Case, direct: int):
    ops.tt_direct_lookups(direct)
    got = on_gpu(case).results(ops.tt_embedding_bag)
    exact = case.mapped(Tensor.double).results(reference.tt_embedding_bag)
    sizes = case.mapped(lambda t: t.double().abs()).results(reference.tt_embedding_bag)
    for mine, right, size, steps in zip(got, exact, sizes, rounding_steps(case), strict=True):
        u = torch.finfo(mine.dtype).eps * (steps + 8)
        bound = u / (1 - u) * size + torch.finfo(mine.dtype).tiny
        assert ((mine.cpu().double() - right).abs() <= bound).all(), case.notes


@pytest.mark.parametrize("bags", [1, 7])
@pytest.mark.parametrize(
    ("dtype", "tf32", "limit"),
    [
        (torch.float64, False, 1e-13),
        (torch.float32, False, 1e-5),
        (torch.float32, True, 2e-3),
        (torch.float16, True, 4e-3),
        (torch.bfloat16, True, 2e-2),
    ],
    ids=["fp64", "fp32", "tf32", "fp16", "bf16"],
)
def test_errors_by_precision(dtype, tf32, limit, bags, record_property):
    """A batch of many sorting tiles, units and repeats; the errors go to the report."""
    case = one_table(7 * 3000, dtype=dtype)
    if bags > 1:
        case.offsets = torch.arange(0, 7 * 3000 + 1, bags, device="cuda")
        case.upstream = case.upstream[: 7 * 3000 // bags]
    ops.tt_allow_tf32(tf32)
    errors = relative_errors(case)
    record_property("relative_errors", str(errors))
    print(f"\nrelative errors {dtype} tf32={tf32} bags={bags}: {errors}")
    assert max(errors) < limit


@pytest.mark.parametrize("tables", [26, 60], ids=["by value", "in a buffer"])
def test_many_tables_in_one_call(tables):
    assert max(relative_errors(one_table(500, (5, 4, 6), (2, 2, 2), (8, 8), tables=tables))) < 1e-5


def test_results_are_the_same_to_the_bit():
    case = one_table(20000)
    first = case.results(ops.tt_embedding_bag)
    for _ in range(5):
        assert all(map(torch.equal, first, case.results(ops.tt_embedding_bag)))


def test_nothing_waits_for_the_device():
    case = one_table(5000)
    case.results(ops.tt_embedding_bag)  # what is made once
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = case.call(ops.tt_embedding_bag)
        torch.autograd.grad(out, case.leaves(), case.upstream)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("n", [300, 5000])
def test_a_cuda_graph_replays_with_new_ids(n):
    case = one_table(n)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            case.results(ops.tt_embedding_bag)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = case.results(ops.tt_embedding_bag)
    for seed in range(3):
        torch.manual_seed(seed)
        case.indices.copy_(torch.randint(0, case.options["num_embeddings"][0], (n,)))
        graph.replay()
        torch.cuda.synchronize()
        again = case.results(ops.tt_embedding_bag)
        assert all(map(torch.equal, captured, again))


def test_a_cuda_graph_of_sixty_tables_and_an_update():
    """Tables in a buffer and hyperparameters on the device: a replay reads what they hold then."""
    case = one_table(40, (5, 4, 6), (2, 2, 2), (8, 8), tables=60)
    cores = [core.detach().clone() for core in case.cores]
    states = make_states("adagrad", [c.cpu() for c in cores])
    states = [s.cuda() for s in states]
    rates = numbers().cuda()
    arguments = (*(case.options[name] for name in OPTIONS), None, False, ops.TT_ALGORITHMS["adagrad"], rates)

    def step(mine: list[Tensor], own: list[Tensor]) -> None:
        op = torch.ops.recsys_opt.tt_embedding_bag_backward_update
        op(case.upstream, case.indices, case.offsets, mine, own, *arguments)

    eager, eager_states = [c.clone() for c in cores], [s.clone() for s in states]
    step([c.clone() for c in cores], [s.clone() for s in states])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(cores, states)
    for at in range(3):
        rates[0] = 0.1 * (at + 1)
        graph.replay()
        step(eager, eager_states)
    torch.cuda.synchronize()
    assert all(map(torch.equal, cores, eager))


def test_the_callers_stream():
    case = one_table(5000)
    want = case.results(ops.tt_embedding_bag)
    stream = torch.cuda.Stream()
    ids = case.indices.clone()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        case.indices.zero_()
        torch.cuda._sleep(20_000_000)
        case.indices.copy_(ids)
        got = case.results(ops.tt_embedding_bag)
    stream.synchronize()
    assert all(map(torch.equal, want, got))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_tensors_device_not_the_current_one():
    case = one_table(1000)
    want = case.results(ops.tt_embedding_bag)
    got = on_gpu(case, "cuda:1").results(ops.tt_embedding_bag)
    assert torch.cuda.current_device() == 0
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(want, got, strict=True))


def test_tensors_of_two_devices_are_refused():
    case = one_table(100)
    case.offsets = case.offsets.cpu()
    with pytest.raises(RuntimeError, match=r"tt_embedding_bag: offsets is on cpu, cores\[0\] on cuda:0"):
        case.call(ops.tt_embedding_bag)


def test_threads_that_need_more_and_less_shared_memory():
    """The attribute is the kernel's: what one thread sets must do for the other's launch."""
    ops.tt_direct_lookups(0)
    large, small = one_table(300, ranks=(96, 96)), one_table(300, ranks=(48, 48))
    wants = [case.results(ops.tt_embedding_bag) for case in (large, small)]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(50):
            for want, got in zip(
                wants, pool.map(lambda c: c.results(ops.tt_embedding_bag), (large, small)), strict=True
            ):
                assert all(map(torch.equal, want, got))


def test_memory_follows_what_each_table_needs():
    """A wide table of few prefixes beside one of many lookups."""
    narrow = one_table(60_000, (40, 30, 20), (1, 1, 2), (2, 2))
    wide = one_table(60_000, (2, 2, 5), (4, 4, 4), (64, 64))
    both = Case(
        torch.cat([narrow.indices, wide.indices]),
        torch.arange(120_001, device="cuda"),
        [*narrow.cores, *wide.cores],
        {name: narrow.options[name] + wide.options[name] for name in OPTIONS},
        upstream=torch.cat([narrow.upstream, wide.upstream], dim=1),
    )
    both.results(ops.tt_embedding_bag)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    both.results(ops.tt_embedding_bag)
    torch.cuda.synchronize()
    widest = 4 * (16 * 64 + 4 * 64)  # bytes of a node of the wide table
    assert torch.cuda.max_memory_allocated() - before < 120_000 * widest / 4


@pytest.mark.parametrize("weighted", [False, True])
def test_opcheck(weighted):
    case = one_table(50, (4, 3, 5), (2, 3, 2), (3, 2), torch.float64)
    weights = torch.rand(50, dtype=torch.float64, device="cuda") if weighted else None
    rest = [case.options[name] for name in OPTIONS]
    op = torch.ops.recsys_opt.tt_embedding_bag.default
    torch.library.opcheck(op, (case.indices, case.offsets, case.cores, *rest, weights))
    plain = [core.detach() for core in case.cores]
    torch.library.opcheck(
        torch.ops.recsys_opt.tt_embedding_bag_backward.default,
        (case.upstream, case.indices, case.offsets, plain, *rest, weights, weighted),
    )


def test_compiles_to_one_graph():
    bag = TTEmbeddingBag(1000, 16, 8, device="cuda")
    ids, offsets = torch.randint(0, 1000, (300,), device="cuda"), torch.arange(0, 300, 3, device="cuda")
    compiled = torch.compile(bag, fullgraph=True)
    torch.testing.assert_close(compiled(ids, offsets), bag(ids, offsets))
    bag(ids, offsets).sum().backward()
    want = [core.grad.clone() for core in bag.cores]
    bag.zero_grad()
    compiled(ids, offsets).sum().backward()
    torch.testing.assert_close([core.grad for core in bag.cores], want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_trains(dtype):
    """The table's output goes through a layer in half precision, and its gradient comes back."""
    torch.manual_seed(0)
    bag = TTEmbeddingBag(1000, 16, 8, device="cuda")
    model = nn.Sequential(bag, nn.Linear(16, 1, device="cuda"))
    ids = torch.randint(0, 1000, (64, 3), device="cuda")
    with torch.autocast("cuda", dtype=dtype):
        loss = model(ids).float().square().mean()
    loss.backward()
    exact = model(ids).square().mean()
    assert abs(loss.item() - exact.item()) < 0.05 * abs(exact.item()) + 1e-6
    assert all(core.grad is not None and core.grad.isfinite().all() for core in bag.cores)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_updates_in_the_backward_pass(algorithm, dtype):
    case = one_table(4000, dtype=dtype)
    cores = [core.detach() for core in case.cores]
    states = make_states(algorithm, [c.cpu() for c in cores], 1.0)
    options = [case.options[name] for name in OPTIONS]
    tail = (None, False, ops.TT_ALGORITHMS[algorithm])
    mine, own = [c.clone() for c in cores], [s.cuda() for s in states]
    torch.ops.recsys_opt.tt_embedding_bag_backward_update(
        case.upstream, case.indices, case.offsets, mine, own, *options, *tail, numbers().cuda()
    )
    exact, exact_states = [c.double().cpu() for c in cores], [s.double() for s in states]
    reference.tt_embedding_bag_backward_update(
        case.upstream.double().cpu(),
        case.indices.cpu(),
        case.offsets.cpu(),
        exact,
        exact_states,
        *options,
        *tail,
        numbers(),
    )
    limit = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 2e-2}[dtype]
    for got, want in zip((*mine, *own), (*exact, *exact_states), strict=True):
        assert (got.double().cpu() - want).norm() <= limit * want.norm()


# --- ids and offsets out of range ---

BAD = [
    ([0, 60, 5], [0, 1, 2, 3], r"indices\[1\] = 60, outside the table's 60 rows"),
    ([-1, 3], [0, 1, 2], r"indices\[0\] = -1, outside"),
    ([1, 2], [0, 2, 1], r"offsets\[2\] = 1, less than offsets\[1\] = 2"),
    ([1, 2], [0, 10**12, 2], r"offsets\[1\] = 1000000000000, outside the 2 indices"),
    ([1, 2], [1, 1, 2], r"offsets\[0\] = 1, where the first bag must start at 0"),
]


@pytest.mark.parametrize("direct", [0, FAR], ids=["planned", "direct"])
@pytest.mark.parametrize(("indices", "offsets", "message"), BAD)
def test_bad_values_are_raised_by_the_next_call(indices, offsets, message, direct):
    ops.tt_direct_lookups(direct)
    case = one_table(20, (4, 3, 5), (2, 3, 2), (3, 2), torch.float64)
    good = one_table(20, (4, 3, 5), (2, 3, 2), (3, 2), torch.float64)
    case.indices, case.offsets = (torch.tensor(x, device="cuda") for x in (indices, offsets))
    case.call(ops.tt_embedding_bag)
    torch.cuda.synchronize()
    with pytest.raises(RuntimeError, match=message):
        good.call(ops.tt_embedding_bag)
    assert max(relative_errors(good)) < 1e-12, "the context is as good as before"


def test_clamped_values_count_for_nothing_and_are_counted():
    ops.tt_bounds_check("clamp")
    case = one_table(300, (4, 3, 5), (2, 3, 2), (3, 2), torch.float64)
    case.indices[::2] += 60
    out, *grads = case.results(ops.tt_embedding_bag)
    assert ops.tt_bounds_report().errors == 2 * 150
    assert not out[::2].any()
    kept = Case(case.indices[1::2], torch.arange(151), case.cores, case.options, None, case.upstream[1::2])
    torch.testing.assert_close([out.detach()[1::2], *grads], on_gpu(kept).results(ops.tt_embedding_bag))


def test_trusted_values_give_the_same_results():
    case = one_table(3000)
    want = case.results(ops.tt_embedding_bag)
    ops.tt_bounds_check("trust")
    assert all(map(torch.equal, want, case.results(ops.tt_embedding_bag)))
