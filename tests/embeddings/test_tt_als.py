import itertools
import math

import pytest
import torch
from torch.func import jacrev

from recsys_opt.embeddings.tt_als import WeightedRows, fit_rows_, solve_core_
from recsys_opt.embeddings.tt_interfaces import left_gram, row_digits
from recsys_opt.progress import SilentProgress
from recsys_opt.reference import tt_rows

P, Q, RANKS = (4, 3, 5), (2, 1, 3), (1, 3, 2, 1)
DIM = math.prod(Q)


def problem(pull=0.0, seen=40, p=P, q=Q, ranks=RANKS) -> tuple[list[torch.Tensor], WeightedRows]:
    torch.manual_seed(0)
    cores = [
        torch.randn(n, c, ranks[k], ranks[k + 1], dtype=torch.float64)
        for k, (n, c) in enumerate(zip(p, q, strict=True))
    ]
    ids = torch.randperm(math.prod(p))[:seen].sort().values
    rows = torch.randn(seen, math.prod(q), dtype=torch.float64)
    return cores, WeightedRows(ids, rows, 0.1 + 5 * torch.rand(seen, dtype=torch.float64), pull)


def minimised(cores, seen: WeightedRows) -> float:
    missed = (tt_rows(seen.ids, cores) - seen.rows).square().sum(1)
    every = tt_rows(torch.arange(math.prod(c.shape[0] for c in cores)), cores)
    return float(seen.weights @ missed + seen.pull * every.square().sum(1).mean())


def dense_solution(cores, k: int, seen: WeightedRows) -> list[torch.Tensor]:
    """The same by a dense least-squares problem in all numbers of core k, with a row for each entry."""
    every = torch.arange(math.prod(c.shape[0] for c in cores))

    def rows(core, ids):
        return tt_rows(ids, [*cores[:k], core, *cores[k + 1 :]])

    weight = seen.weights.sqrt()[:, None, None]
    design = jacrev(rows)(cores[k], seen.ids).flatten(2) * weight
    zero = jacrev(rows)(cores[k], every).flatten(2) * math.sqrt(seen.pull / len(every))
    target = torch.cat([(seen.rows * weight[:, 0]).flatten(), torch.zeros(zero[:, :, 0].numel())])
    both = torch.cat([design.flatten(0, 1), zero.flatten(0, 1)])
    found = torch.linalg.lstsq(both, target[:, None], driver="gelsd").solution
    return [*cores[:k], found.view_as(cores[k]), *cores[k + 1 :]]


@pytest.mark.parametrize("pull", [0.0, 0.7])
@pytest.mark.parametrize("k", [0, 1, 2])
@pytest.mark.parametrize("chunk", [1000, 3])
def test_a_core_is_the_dense_weighted_least_squares_solution(k, pull, chunk):
    cores, seen = problem(pull)
    best = minimised(dense_solution(cores, k, seen), seen)
    assert minimised(cores, seen) > 1.5 * best
    digits = row_digits(seen.ids, cores)
    solve_core_(cores, k, seen, digits, torch.argsort(digits[k]), chunk)
    assert minimised(cores, seen) == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize(
    ("p", "q", "ranks"), [((9, 11), (2, 3), (1, 4, 1)), ((3, 4, 2, 5), (2, 1, 2, 2), (1, 3, 4, 2, 1))]
)
def test_the_sum_falls_with_every_sweep_of_any_number_of_cores(p, q, ranks):
    cores, seen = problem(0.5, 60, p, q, ranks)
    first = minimised(cores, seen)
    sums = fit_rows_(cores, seen, 1 << 24, SilentProgress())
    assert len(sums) > 2
    assert all(after <= before for before, after in itertools.pairwise(sums))
    assert (sums[0], sums[-1]) == pytest.approx((first, minimised(cores, seen)), rel=1e-9)
    assert sums[-1] < 0.2 * first


def test_slices_without_rows():
    """Without a pull they stay as they are, for nothing is known of them; with one they become 0."""
    for pull in (0.0, 0.5):
        cores, seen = problem(pull)
        without = row_digits(seen.ids, cores)[1] != 2
        seen = WeightedRows(seen.ids[without], seen.rows[without], seen.weights[without], pull)
        before = cores[1].clone()
        fit_rows_(cores, seen, 1 << 24, SilentProgress())
        assert torch.equal(cores[1][2], before[2] if pull == 0 else torch.zeros_like(before[2]))
        assert not torch.equal(cores[1][1], before[1])


def test_a_slice_with_fewer_rows_than_numbers():
    cores, seen = problem(0.0, 2)
    sums = fit_rows_(cores, seen, 1 << 24, SilentProgress())
    assert sums[-1] < 1e-15 * sums[0]
    assert all(bool(core.isfinite().all()) for core in cores)


def test_float32_follows_float64():
    cores, seen = problem(0.3, 50)
    narrow = [core.float() for core in cores]
    fit_rows_(cores, seen, 1 << 24, SilentProgress())
    half = WeightedRows(seen.ids, seen.rows.float(), seen.weights.float(), seen.pull)
    sums = fit_rows_(narrow, half, 1 << 24, SilentProgress())
    assert sums[-1] == pytest.approx(minimised(cores, seen), rel=2e-2)


def test_nothing_to_gain_is_left_alone():
    cores, seen = problem()
    exact = WeightedRows(seen.ids, tt_rows(seen.ids, cores), seen.weights, 0.0)
    before = [core.clone() for core in cores]
    assert len(fit_rows_(cores, exact, 1 << 24, SilentProgress())) == 1
    assert all(map(torch.equal, cores, before))


def test_the_pull_is_on_the_mean_of_all_rows():
    cores, _ = problem()
    every = tt_rows(torch.arange(math.prod(P)), cores)
    assert float(left_gram(cores)[0, 0]) == pytest.approx(float(every.square().sum(1).mean()))
