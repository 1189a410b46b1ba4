import copy
import math
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_opt import TTEmbeddingBag
from recsys_opt.embeddings.tt_svd import RankRule, balance, padded, split
from recsys_opt.errors import InputError

METHODS = ["exact", "streaming", "randomised"]
SHAPES = [
    dict(rows=72 * 40, dim=8, tt_p_shapes=[72, 40], tt_q_shapes=[2, 4]),
    dict(rows=2880, dim=16, tt_p_shapes=[12, 15, 16], tt_q_shapes=[2, 2, 4]),
    dict(rows=2800, dim=16, tt_p_shapes=[12, 15, 16], tt_q_shapes=[4, 2, 2]),
    dict(rows=2520, dim=16, tt_p_shapes=[6, 7, 6, 10], tt_q_shapes=[2, 2, 2, 2]),
]


def planted(shape, rank, noise, dtype=torch.float32, seed=0) -> torch.Tensor:
    """A table of TT rank `rank`, with entries of variance 1, and Gaussian noise."""
    torch.manual_seed(seed)
    factors = {k: v for k, v in shape.items() if k.startswith("tt_")}
    bag = TTEmbeddingBag(shape["rows"], shape["dim"], rank, dtype=torch.float64, **factors)
    bag.reset_parameters(1.0)
    table = bag.materialize().detach()
    return (table + noise * torch.randn_like(table)).to(dtype)


def fit(table, *args, shape=None, **options) -> TTEmbeddingBag:
    factors = {k: v for k, v in (shape or {}).items() if k.startswith("tt_")}
    return TTEmbeddingBag.from_pretrained(table, *args, **factors, **options)


def relative_error(bag, table) -> float:
    with torch.no_grad():
        return float((bag.materialize().double() - table.double()).norm() / table.double().norm())


def least_error(table, shape, rank) -> float:
    """No cores of these ranks are closer than the worst unfolding's best approximation of that rank."""
    p, q = shape["tt_p_shapes"], shape["tt_q_shapes"]
    d, padded_rows = len(p), math.prod(p) - shape["rows"]
    assert padded_rows == 0
    tensor = table.double().view(*p, *q).permute([a for k in range(d) for a in (k, d + k)])
    tails = []
    for k in range(1, d):
        unfolding = tensor.reshape(math.prod(p[:k]) * math.prod(q[:k]), -1)
        tails.append(float(torch.linalg.svdvals(unfolding)[rank:].norm()))
    return max(tails) / float(table.double().norm())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_table_of_that_rank_is_recovered(method, shape):
    table = planted(shape, 5, 0.0)
    bag = fit(table, 5, shape=shape, method=method, work_bytes=16 << 20)
    assert bag.fit_error == pytest.approx(relative_error(bag, table), abs=1e-6)
    assert bag.fit_error < 2e-6
    assert bag.fit_report.method == method


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_double_precision_is_kept(shape):
    table = planted(shape, 5, 0.0, torch.float64)
    assert fit(table, 5, shape=shape, method="exact").fit_error < 1e-13
    # The square root of the precision is what a Gram matrix leaves of directions that are not there.
    assert fit(table, 8, shape=shape, method="streaming").fit_error < 1e-13


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("noise", [0.01, 0.3, 3.0])
@pytest.mark.parametrize("shape", [s for s in SHAPES if s["rows"] == math.prod(s["tt_p_shapes"])], ids=str)
def test_the_error_is_within_the_bound_of_tt_svd(method, noise, shape):
    table, rank = planted(shape, 4, noise), 6
    least = least_error(table, shape, rank)
    bag = fit(table, rank, shape=shape, method=method)
    bound = math.sqrt(len(shape["tt_p_shapes"]) - 1) * least
    slack = 1.02 if method == "randomised" else 1 + 1e-6
    assert least * (1 - 1e-6) <= bag.fit_error <= bound * slack
    assert bag.fit_error == pytest.approx(relative_error(bag, table), rel=1e-4)
    assert bag.fit_report.error_range == (bag.fit_error, bag.fit_error)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("tolerance", [0.6, 0.1, 0.004])
def test_a_tolerance_is_kept_with_ranks_no_larger_than_needed(method, shape, tolerance):
    table = planted(shape, 4, 0.003)
    bag = fit(table, tolerance=tolerance, shape=shape, method=method)
    assert relative_error(bag, table) <= tolerance * (1 + 1e-5)
    if tolerance > 0.01:
        assert max(bag.tt_ranks) <= 4
    exact = fit(table, tolerance=tolerance, shape=shape, method="exact")
    assert bag.tt_ranks == exact.tt_ranks


def test_a_tolerance_counts_the_rounding_of_the_cores():
    table = planted(SHAPES[2], 4, 0.0)
    bag = fit(iter(table.split(99)), tolerance=0.01, num_embeddings=2800, dtype=torch.bfloat16)
    assert bag.fit_error <= 0.01


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_tolerance_near_what_half_precision_can_keep(dtype):
    """Truncation gets what rounding leaves of the tolerance; less than the rounding is refused."""
    table = planted(SHAPES[1], 4, 0.0)
    at_best = fit(table, 4, shape=SHAPES[1], dtype=dtype).fit_error
    table += at_best * table.std() * torch.randn(table.shape, generator=torch.Generator().manual_seed(3))
    bag = fit(table, tolerance=1.3 * at_best, shape=SHAPES[1], dtype=dtype)
    assert relative_error(copy.deepcopy(bag).double(), table) == pytest.approx(bag.fit_error, rel=1e-3)
    assert bag.fit_error <= 1.3 * at_best
    assert max(bag.tt_ranks) > 4  # the rank alone that was planted is farther off
    with pytest.raises(
        InputError, match=rf"tolerance = 0.0001 is out of reach: cores of {dtype} are .* wider"
    ):
        fit(table, tolerance=1e-4, shape=SHAPES[1], dtype=dtype)


def test_ranks_go_up_to_multiples():
    table = planted(SHAPES[1], 4, 0.003)
    bag = fit(table, tolerance=0.1, rank_multiple=16, shape=SHAPES[1])
    assert bag.tt_ranks == (1, 16, 16, 1)
    assert bag.fit_error < 0.01


def test_a_rank_beyond_what_the_shapes_allow_is_filled_with_zeros():
    table = torch.randn(60, 8)
    bag = TTEmbeddingBag.from_pretrained(table, 50, tt_p_shapes=[4, 3, 5])
    assert bag.tt_ranks == (1, 50, 50, 1)
    torch.testing.assert_close(bag.materialize().detach(), table, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_single_pass_recovers_and_estimates(shape):
    table = planted(shape, 5, 0.0)
    bag = fit(iter(table.split(77)), 5, shape=shape, num_embeddings=shape["rows"], method="randomised")
    assert bag.fit_report.passes == 1
    assert relative_error(bag, table) < 1e-4
    assert bag.fit_error < 1e-4


def test_a_single_pass_says_where_its_error_lies():
    """The interval holds the true error in 95 % of cases; 40 draws, of which at most 6 may miss."""
    shape, inside, ratios = SHAPES[1], 0, []
    for seed in range(40):
        table = planted(shape, 5, 0.2, seed=seed)
        blocks = iter(table.split(100))
        bag = fit(blocks, 5, shape=shape, num_embeddings=shape["rows"], method="randomised", seed=seed)
        low, high = bag.fit_report.error_range
        true = relative_error(bag, table)
        assert low < bag.fit_error < high
        inside += low <= true <= high
        ratios.append((bag.fit_error / true) ** 2)
    assert inside >= 34
    assert abs(np.mean(ratios) - 1) < 5 * np.std(ratios) / math.sqrt(40)  # unbiased
    assert bag.fit_error < 2 * fit(table, 5, shape=shape).fit_error


def test_blocks_and_files_give_what_a_tensor_gives(tmp_path):
    shape = SHAPES[2]
    table = planted(shape, 4, 0.1)
    np.save(tmp_path / "t.npy", table.numpy())
    for method in ("streaming", "randomised"):
        want = fit(table, 6, shape=shape, method=method, work_bytes=2 << 20).materialize().detach()
        for weight in (tmp_path / "t.npy", np.load(tmp_path / "t.npy", mmap_mode="r"), table.split(99)):
            bag = fit(weight, 6, shape=shape, method=method, work_bytes=2 << 20, num_embeddings=shape["rows"])
            torch.testing.assert_close(bag.materialize().detach(), want, rtol=1e-4, atol=1e-4)


def test_the_seed_decides_the_sketches():
    table = planted(SHAPES[1], 4, 2.0)

    def cores(seed):
        return fit(table, 4, shape=SHAPES[1], method="randomised", seed=seed, power_iterations=1).cores[2]

    assert torch.equal(cores(1), cores(1))
    assert not torch.equal(cores(1), cores(2))


def test_more_power_iterations_and_directions_are_closer():
    table = planted(SHAPES[1], 4, 2.0)
    best = fit(table, 6, shape=SHAPES[1], method="exact").fit_error
    errors = [
        fit(table, 6, shape=SHAPES[1], method="randomised", power_iterations=k, oversampling=s).fit_error
        for k, s in ((1, 0), (4, 30))
    ]
    assert errors[0] > errors[1]
    assert errors[1] == pytest.approx(best, rel=3e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types(dtype):
    table = planted(SHAPES[1], 4, 0.0, dtype)
    for method in METHODS:
        bag = fit(table, 6, shape=SHAPES[1], method=method, dtype=torch.float32)
        assert bag.cores[0].dtype == torch.float32
        assert bag.fit_error < (1e-6 if dtype == torch.float64 else 1e-2)
    kept = fit(table, 6, shape=SHAPES[1])
    assert all(core.dtype == dtype for core in kept.cores)
    assert kept.fit_error < (1e-12 if dtype == torch.float64 else 3e-2)  # of the cores as stored


@settings(max_examples=30)
@given(data=st.data())
def test_any_shape_and_any_rank(data):
    d = data.draw(st.integers(2, 4))
    p = data.draw(st.lists(st.integers(1, 6), min_size=d, max_size=d))
    q = data.draw(st.lists(st.integers(1, 3), min_size=d, max_size=d))
    ranks = data.draw(st.lists(st.integers(1, 9), min_size=d - 1, max_size=d - 1))
    rows = data.draw(st.integers(1, math.prod(p)))
    torch.manual_seed(rows)
    table = torch.randn(rows, math.prod(q), dtype=torch.float64)
    errors = [
        fit(table, ranks, tt_p_shapes=p, tt_q_shapes=q, method=method, oversampling=50).fit_error
        for method in METHODS
    ]
    assert errors[1] == pytest.approx(errors[0], abs=1e-7)
    assert errors[2] == pytest.approx(errors[0], abs=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_a_table_of_zeros(method):
    bag = fit(torch.zeros(2880, 16), 4, shape=SHAPES[1], method=method)
    assert bag.fit_error == 0.0
    assert not bag.materialize().any()
    assert fit(torch.zeros(2880, 16), tolerance=0.1, method=method).tt_ranks == (1, 1, 1, 1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_named(method, value):
    table = torch.randn(2880, 16)
    table[2345, 6] = value
    with pytest.raises(InputError, match=rf"weight\[2345, 6\] = {value}; every entry must be finite"):
        fit(table, 4, shape=SHAPES[1], method=method, work_bytes=2 << 20)
    with pytest.raises(InputError, match=r"weight\[2345, 6\]"):
        fit(iter(table.split(10)), 4, shape=SHAPES[1], num_embeddings=2880, method="randomised")


def test_auto_chooses_by_size_and_source():
    small = planted(SHAPES[1], 4, 0.1)
    assert fit(small, 4).fit_report.method == "exact"
    assert fit(iter(small.split(9)), 4, num_embeddings=2880).fit_report.method == "exact"
    assert fit(small, 4, work_bytes=1 << 20).fit_report.method == "streaming"
    once = fit(iter(small.split(9)), 4, num_embeddings=2880, work_bytes=1 << 20)
    assert (once.fit_report.method, once.fit_report.passes) == ("randomised", 1)


def test_refusals():
    table = torch.randn(2880, 16)
    for call, message in [
        (lambda: fit(table), "give either tt_ranks or tolerance"),
        (lambda: fit(table, 4, tolerance=0.1), "give either tt_ranks or tolerance"),
        (lambda: fit(table, tolerance=0.0), "tolerance = 0.0; it must lie between 0 and 1"),
        (lambda: fit(table, tolerance=0.1, rank_multiple=0), "rank_multiple = 0"),
        (lambda: fit(table, 4, method="fast"), "method = 'fast'; choose one of auto, exact"),
        (lambda: fit(table, 4, work_bytes=1000), "work_bytes = 1000; it must be at least 1048576"),
        (lambda: fit(table, 4, power_iterations=0), "power_iterations = 0"),
        (lambda: fit(table.int(), 4), "torch.int32; it must be float32"),
        (
            lambda: fit(iter([table]), 4, num_embeddings=2880, method="streaming"),
            "reads the table twice",
        ),
        (
            lambda: fit(iter([table]), tolerance=0.5, num_embeddings=2880, method="randomised"),
            "a tolerance needs more than one pass",
        ),
        (
            lambda: fit(torch.zeros(400_000, 16), 64, method="streaming", work_bytes=1 << 20),
            r"work_bytes = 1,048,576 is too little for a 400000 x 16 table .* raise work_bytes",
        ),
        (
            lambda: fit(torch.randn(100_000, 16), tolerance=0.01, method="streaming", work_bytes=10 << 20),
            r"the tolerance needs a rank of \d+ or more",
        ),
    ]:
        with pytest.raises(InputError, match=message):
            call()


def test_cores_are_of_balanced_size():
    bag = fit(planted(SHAPES[1], 4, 0.1), 4, shape=SHAPES[1])
    for left, right in zip(bag.cores[:-1], bag.cores[1:], strict=True):
        sizes = left.detach().square().mean((0, 1, 2)), right.detach().square().mean((0, 1, 3))
        assert float((sizes[0] / sizes[1]).log().abs().max()) < 0.5
    cores = [core.detach().double() for core in bag.cores]
    scaled = [cores[0] * 1e6, cores[1], cores[2] * 1e-6]
    want = bag.with_cores(cores).materialize()
    torch.testing.assert_close(bag.with_cores(balance(scaled)).materialize(), want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(40, 9), (9, 40)])
def test_split_is_the_best_of_its_rank(dtype, size):
    matrix = torch.randn(*size, dtype=dtype)
    left, right = split(matrix, 0, RankRule(1, [4], None))
    torch.testing.assert_close(right @ right.T, torch.eye(4, dtype=dtype))
    want = torch.linalg.svdvals(matrix)[4:].norm()
    torch.testing.assert_close((matrix - left @ right).norm(), want)


def test_padded_leaves_the_product():
    cores = [torch.randn(3, 2, 1, 2), torch.randn(4, 2, 2, 1)]
    wide = padded(cores, [5])
    assert [tuple(core.shape) for core in wide] == [(3, 2, 1, 5), (4, 2, 5, 1)]
    want = torch.einsum("iars,jbst->ijabrt", *cores)
    torch.testing.assert_close(torch.einsum("iars,jbst->ijabrt", *wide), want)


PROGRAM = """
import resource, sys, torch
from recsys_opt import TTEmbeddingBag
torch.set_num_threads(1)
table = torch.randn(5000, 16)
TTEmbeddingBag.from_pretrained(table, 4, method="streaming", row_weights=torch.ones(5000))  # loads code
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
weights = torch.ones(1_500_000) if sys.argv[3] == "weighted" else None
bag = TTEmbeddingBag.from_pretrained(
    sys.argv[1], 8, method=sys.argv[2], work_bytes=48 << 20, row_weights=weights
)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(after - before, bag.fit_error)
"""


@pytest.fixture(scope="module")
def large_file(tmp_path_factory):
    """96 MB of rows, of rank 3 but for 1 %."""
    path = tmp_path_factory.mktemp("large") / "t.npy"
    np.save(path, planted(dict(rows=1_500_000, dim=16), 3, 0.01).numpy())
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "rows"), [("streaming", "alike"), ("randomised", "alike"), ("streaming", "weighted")]
)
def test_a_file_larger_than_the_working_memory(large_file, method, rows):
    """Within 48 MB beyond what the process has."""
    command = [sys.executable, "-c", PROGRAM, str(large_file), method, rows]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    unit = 1024 if sys.platform == "linux" else 1
    assert int(out[0]) * unit < 48 << 20
    assert float(out[1]) < 0.012
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss > 0
