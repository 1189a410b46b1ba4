import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_opt import knapsack
from recsys_opt.errors import InfeasibleError, InputError
from recsys_opt.knapsack import solve


def groups(draw, count, options):
    sizes, losses = [], []
    for _ in range(count):
        n = draw(st.integers(1, options))
        sizes.append(np.array(draw(st.lists(st.integers(0, 20), min_size=n, max_size=n))))
        losses.append(np.array(draw(st.lists(st.integers(0, 30), min_size=n, max_size=n)), dtype=float))
    return sizes, losses


@st.composite
def problems(draw):
    sizes, losses = groups(draw, draw(st.integers(1, 5)), 5)
    return sizes, losses, draw(st.integers(0, 60))


def best_by_trying(sizes, losses, capacity):
    totals = [
        sum(v[i] for v, i in zip(losses, options, strict=True))
        for options in itertools.product(*(range(len(s)) for s in sizes))
        if sum(s[i] for s, i in zip(sizes, options, strict=True)) <= capacity
    ]
    return min(totals, default=None)


@settings(max_examples=150)
@given(problems())
def test_no_choice_is_better(problem):
    sizes, losses, capacity = problem
    best = best_by_trying(sizes, losses, capacity)
    if best is None:
        with pytest.raises(InfeasibleError, match="the capacity is"):
            solve(sizes, losses, capacity)
        return
    found = solve(sizes, losses, capacity)
    assert found.size == sum(s[i] for s, i in zip(sizes, found.options, strict=True)) <= capacity
    assert found.loss == sum(v[i] for v, i in zip(losses, found.options, strict=True)) == best
    assert found.gap == 0


@settings(max_examples=50)
@given(problems())
def test_the_bound_holds_where_states_are_dropped(problem):
    sizes, losses, capacity = problem
    best = best_by_trying(sizes, losses, capacity)
    if best is None:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knapsack, "MAX_STATES", 1)
        found = solve(sizes, losses, capacity)
    assert found.lower_bound <= best + 1e-9
    assert best <= found.loss
    assert found.size <= capacity


def test_many_groups_are_solved_to_a_small_gap():
    random = np.random.default_rng(0)
    sizes, losses = [], []
    for _ in range(400):
        size = np.sort(random.integers(1, 100_000, 40))
        sizes.append(size)
        losses.append(random.random() * 1000 / (1 + size / random.integers(100, 10_000)))
    found = solve(sizes, losses, 4_000_000)
    assert found.gap <= 1e-3 * found.loss
    assert found.size <= 4_000_000


def test_the_price_is_what_more_capacity_saves():
    sizes, losses = [np.array([0, 10, 20])], [np.array([9.0, 4.0, 2.0])]
    assert solve(sizes, losses, 12).price == pytest.approx(0.2)
    assert solve(sizes, losses, 100).price == 0


@pytest.mark.parametrize(
    ("size", "loss"), [([], []), ([-1], [0.0]), ([1], [np.inf]), ([1, 2], [0.0]), ([1], [np.nan])]
)
def test_what_is_no_group(size, loss):
    with pytest.raises(InputError, match="group 0"):
        solve([np.array(size)], [np.array(loss)], 5)
