import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_opt import TTEmbeddingBag
from recsys_opt.embeddings.tt_round import round_cores, table_distance, table_inner, table_norm
from recsys_opt.errors import InputError


def random_cores(p, q, ranks, seed) -> list[torch.Tensor]:
    generator, full = torch.Generator().manual_seed(seed), [1, *ranks, 1]
    return [
        torch.randn(p[k], q[k], full[k], full[k + 1], dtype=torch.float64, generator=generator)
        for k in range(len(p))
    ]


def table(cores, rows) -> torch.Tensor:
    from recsys_opt.reference import tt_rows

    return tt_rows(torch.arange(rows), cores)


@settings(max_examples=80)
@given(data=st.data())
def test_norm_inner_product_and_distance_are_the_tables(data):
    d = data.draw(st.integers(2, 4))
    p = data.draw(st.lists(st.integers(1, 5), min_size=d, max_size=d))
    q = data.draw(st.lists(st.integers(1, 3), min_size=d, max_size=d))
    ranks = [data.draw(st.lists(st.integers(1, 4), min_size=d - 1, max_size=d - 1)) for _ in range(2)]
    rows = data.draw(st.integers(0, math.prod(p)))
    a, b = (random_cores(p, q, r, seed) for seed, r in enumerate(ranks))
    x, y = table(a, rows), table(b, rows)
    assert table_norm(a, rows) == pytest.approx(float(x.norm()), rel=1e-12)
    assert table_inner(a, b, rows) == pytest.approx(float((x * y).sum()), rel=1e-9, abs=1e-9)
    assert table_distance(a, b, rows) == pytest.approx(float((x - y).norm()), rel=1e-12)


def test_a_small_distance_is_exact():
    """From inner products, 1e-11 would drown in rounding errors of 1e-8."""
    cores = random_cores([5, 6, 7], [2, 2, 2], [3, 3], 0)
    moved = [cores[0], cores[1].clone(), cores[2]]
    moved[1][2, 1] += 1e-11
    want = float((table(cores, 200) - table(moved, 200)).norm())
    assert table_distance(cores, moved, 200) == pytest.approx(want, rel=1e-3)


def test_rounding_finds_the_rank_that_is_there():
    cores = random_cores([5, 6, 7], [2, 2, 4], [3, 4], 0)
    both = []  # the same table, with twice the ranks
    for k, core in enumerate(cores):
        parts = [core / 2, core / 2] if k == 0 else [core, core]
        if k in (0, 2):
            both.append(torch.cat(parts, 3 if k == 0 else 2))
        else:
            wide = core.new_zeros(6, 2, 6, 8)
            wide[:, :, :3, :4], wide[:, :, 3:, 4:] = core, core
            both.append(wide)
    assert [core.shape[3] for core in both] == [6, 8, 1]
    rounded, report = round_cores(both, 210, tolerance=1e-10)
    assert report.tt_ranks == (3, 4)
    assert report.error < 1e-14
    torch.testing.assert_close(table(rounded, 210), table(cores, 210))


@pytest.mark.parametrize("rows", [210, 173])
@pytest.mark.parametrize("tolerance", [0.9, 0.5, 0.1, 0.01])
@pytest.mark.parametrize("d", [2, 3, 4])
def test_error_within_bound_within_tolerance(rows, tolerance, d):
    p, q = {2: [14, 15], 3: [5, 6, 7], 4: [5, 6, 1, 7]}[d], [2] * d
    cores = random_cores(p, q, [7] * (d - 1), 1)
    rounded, report = round_cores(cores, rows, tolerance=tolerance)
    before, after = table(cores, rows), table(rounded, rows)
    error = float((after - before).norm() / before.norm())
    assert report.error == pytest.approx(error, rel=1e-9)
    assert error <= report.bound * (1 + 1e-9) + 1e-14
    assert report.bound <= tolerance
    assert report.tt_ranks == tuple(core.shape[3] for core in rounded[:-1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_tolerance_counts_the_rounding_of_the_cores(dtype):
    cores = [core.to(dtype) for core in random_cores([5, 6, 7], [2, 2, 4], [9, 9], 2)]
    before = table([core.double() for core in cores], 210)
    for tolerance in (0.5, 0.01):
        rounded, report = round_cores(cores, 210, tolerance=tolerance)
        after = table([core.double() for core in rounded], 210)
        assert rounded[0].dtype == dtype
        assert report.error == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-6)
        assert report.error <= tolerance
    with pytest.raises(InputError, match="tolerance = 1e-05 is out of reach"):
        round_cores(cores, 210, tolerance=1e-5)


def test_given_ranks_are_as_good_as_tt_svd():
    cores = random_cores([5, 6, 7], [2, 2, 4], [9, 9], 2)
    before = table(cores, 210)
    _, report = round_cores(cores, 210, ranks=[3, 20])
    assert report.tt_ranks == (3, 9)  # what has less keeps it
    svd = TTEmbeddingBag.from_pretrained(
        before, [3, 9], tt_p_shapes=[5, 6, 7], tt_q_shapes=[2, 2, 4], method="exact"
    )
    assert report.error == pytest.approx(svd.fit_error, rel=1e-6)


def test_multiples():
    cores = random_cores([50, 60, 70], [2, 2, 4], [40, 40], 3)
    cores[1] *= torch.logspace(0, -8, 40, dtype=torch.float64)
    free = round_cores(cores, 210_000, tolerance=0.05)[1]
    held = round_cores(cores, 210_000, tolerance=0.05, rank_multiple=16)[1]
    assert all(h == min(-(-f // 16) * 16, 40) for f, h in zip(free.tt_ranks, held.tt_ranks, strict=True))
    assert held.error <= free.error


def test_a_bag_rounds_to_a_bag():
    torch.manual_seed(0)
    bag = TTEmbeddingBag(
        57, 8, 16, tt_p_shapes=[4, 3, 5], mode="mean", padding_idx=3, include_last_offset=True
    )
    small = bag.round(0.3)
    assert (small.mode, small.padding_idx, small.include_last_offset) == ("mean", 3, True)
    assert small.storage_bytes() < bag.storage_bytes()
    assert all(core.requires_grad and core.is_leaf for core in small.parameters())
    assert small.cores[0].dtype == torch.float32
    with torch.no_grad():
        error = float((small.materialize() - bag.materialize()).norm() / bag.materialize().norm())
    assert small.round_report.error == pytest.approx(error, rel=1e-4)
    assert error <= 0.3
    ids, offsets = torch.tensor([1, 3, 50]), torch.tensor([0, 2, 3])
    same = bag.round(1e-6)
    torch.testing.assert_close(same(ids, offsets), bag(ids, offsets), rtol=1e-4, atol=1e-5)
    small(ids, offsets).sum().backward()
    assert small.cores[0].grad is not None
    assert bag.round(tt_ranks=2).tt_ranks == (1, 2, 2, 1)


def test_zeros_round_to_rank_one():
    bag = TTEmbeddingBag(60, 8, 4)
    bag.load_state_dict({key: torch.zeros_like(v) for key, v in bag.state_dict().items()})
    small = bag.round(0.1)
    assert small.tt_ranks == (1, 1, 1, 1)
    assert (small.round_report.error, small.round_report.bound) == (0.0, 0.0)


def test_refusals():
    bag = TTEmbeddingBag(60, 8, 4)
    for call, message in [
        (lambda: bag.round(), "give either tt_ranks or tolerance"),
        (lambda: bag.round(0.1, tt_ranks=3), "give either tt_ranks or tolerance"),
        (lambda: bag.round(1.5), "tolerance = 1.5"),
        (lambda: bag.round(tt_ranks=[3]), r"tt_ranks = \[3\]; it must be 2 numbers"),
        (lambda: bag.round(tt_ranks=0), "tt_ranks = 0"),
        (lambda: table_norm(list(bag.cores), 10_000), "rows = 10000; the cores have"),
        (
            lambda: table_distance(list(bag.cores), list(TTEmbeddingBag(90, 8, 4).cores), 60),
            "different factors",
        ),
    ]:
        with pytest.raises(InputError, match=message):
            call()
