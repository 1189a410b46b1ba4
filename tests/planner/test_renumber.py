import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import recsys_opt._planner as _planner
from recsys_opt.plan import Plan
from recsys_opt.planner.check import problems
from recsys_opt.planner.compare import compare_plans
from recsys_opt.planner.renumber import numbering, renumbered, with_numbers
from recsys_opt.planner.solve import make_plan
from tests.planner.cases import small_problem


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(0, 2))
def test_assignment_is_the_best_of_all(seed, rows, more):
    weight = np.random.default_rng(seed).integers(-9, 9, (rows, rows + more)).astype(float)
    found = _planner.assign(weight)
    assert len(set(found)) == rows
    best = max(
        sum(weight[r, c] for r, c in enumerate(columns))
        for columns in itertools.permutations(range(rows + more), rows)
    )
    assert sum(weight[r, c] for r, c in enumerate(found)) == best


def test_assignment_refuses_what_it_cannot_solve():
    with pytest.raises(ValueError, match="rows <= columns"):
        _planner.assign(np.ones((3, 2)))
    with pytest.raises(ValueError, match="finite"):
        _planner.assign(np.array([[1.0, np.nan]]))


def numberings(nodes: int, per_node: int) -> list[list[int]]:
    """Every permutation of the nodes, and of the devices within each."""
    found = []
    for order in itertools.permutations(range(nodes)):
        for within in itertools.product(itertools.permutations(range(per_node)), repeat=nodes):
            found.append(
                [
                    order[d // per_node] * per_node + within[d // per_node][d % per_node]
                    for d in range(nodes * per_node)
                ]
            )
    return found


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from([(1, 4), (2, 2), (3, 1), (2, 3)]))
def test_numbering_is_the_best_of_all(seed, shape):
    nodes, per_node = shape
    n = nodes * per_node
    random = np.random.default_rng(seed)
    kept, forbidden = random.integers(0, 50, (n, n)).astype(float), random.random((n, n)) < 0.2
    np.fill_diagonal(forbidden, False)  # the plan as it is keeps its pins
    found = numbering(kept, forbidden, per_node)
    allowed = [m for m in numberings(nodes, per_node) if not any(forbidden[d, m[d]] for d in range(n))]
    assert found in allowed
    assert sum(kept[d, found[d]] for d in range(n)) == max(
        sum(kept[d, m[d]] for d in range(n)) for m in allowed
    )


def moved_bytes(before: Plan, after: Plan, setting) -> int:
    sizes = {t.name: setting.row_bytes(t.embedding_dim) for t in before.tables}
    return sum(m.between_devices_bytes for m in compare_plans(before, after, sizes))


@pytest.mark.parametrize(("seed", "tables", "devices", "nodes"), [(1, 12, 6, 2), (2, 30, 8, 2), (3, 9, 4, 1)])
def test_a_permuted_plan_is_found_to_be_the_same(seed, tables, devices, nodes):
    made, hardware, setting = small_problem(seed, tables, devices, nodes=nodes, hbm_share=0.3)
    setting = replace(setting, effort=0.02)
    plan = make_plan(made, hardware, setting)
    sizes = {t.name: setting.row_bytes(t.embedding_dim) for t in plan.tables}
    for number in numberings(nodes, devices // nodes)[7::5][:5]:
        other = with_numbers(plan, number)
        assert problems(other, made, hardware, setting) == []
        assert moved_bytes(plan, other, setting) > 0
        back = renumbered(plan, other, sizes)
        assert moved_bytes(plan, back, setting) == 0
        assert back == plan


def test_pinned_tables_stay_where_they_are_pinned():
    made, hardware, setting = small_problem(5, 8, 4, hbm_share=0.3)
    setting = replace(setting, effort=0.02, shardings=("table_wise",))
    before = make_plan(made, hardware, setting)
    sizes = {t.name: setting.row_bytes(t.embedding_dim) for t in before.tables}
    # The new plan has the old one's devices in the order 1, 2, 3, 0, and a pin says that one must stay.
    pinned = before.tables[0]
    moved = with_numbers(before, [1, 2, 3, 0])
    home = moved.table(pinned.name).devices[0]
    held = replace(moved, settings={**moved.settings, "pins": {pinned.name: {"devices": [home]}}})
    found = renumbered(before, held, sizes)
    assert found.table(pinned.name).devices == (home,)
    assert moved_bytes(before, found, setting) < moved_bytes(before, moved, setting)


def test_other_numbers_of_devices():
    made, hardware, setting = small_problem(8, 20, 4, hbm_share=0.3)
    setting = replace(setting, effort=0.02)
    small = make_plan(made, hardware, setting)
    sizes = {t.name: setting.row_bytes(t.embedding_dim) for t in small.tables}
    large = make_plan(made, replace(hardware, nodes=2), setting)
    for before, after in ((small, large), (large, small)):
        found = renumbered(before, after, sizes)
        assert found.num_devices == after.num_devices
        assert moved_bytes(before, found, setting) <= moved_bytes(before, after, setting)
        assert sorted(d.seconds for d in found.devices) == sorted(d.seconds for d in after.devices)
