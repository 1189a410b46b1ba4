"""The greedy baselines, on cases that can be worked out by hand and on drawn ones."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_opt.errors import InfeasibleError, InputError
from recsys_opt.plan import Plan
from recsys_opt.planner.baselines import BASELINES, greedy_plan, least_slow_reads
from recsys_opt.planner.hardware import Hardware
from recsys_opt.planner.problem import PlannedTable
from recsys_opt.tables import TableConfig


def hardware(devices: int, hbm: int, uvm: int) -> Hardware:
    return Hardware.load(f"h100:devices={devices},hbm={hbm},uvm={uvm}")


def plan(baseline: str, sizes: list[tuple[int, int, float]], on: Hardware) -> Plan:
    """sizes  (rows, columns, lookups a sample) of each table; 4 bytes a number, no optimizer state"""
    tables = [TableConfig(f"t{i}", rows, dim) for i, (rows, dim, _) in enumerate(sizes)]
    return greedy_plan(
        baseline, tables, [n for *_, n in sizes], [4 * dim for _, dim, _ in sizes], on, batch_size=64
    )


CASE = [(1000, 4, 1.0), (100, 4, 30.0), (400, 8, 2.0), (10, 4, 70.0)]


@pytest.mark.parametrize(
    ("baseline", "devices"),
    [
        # 4000, 3200, 400, 40 numbers: t0 | t2, then t1 to the smaller, t3 to the one then smaller
        ("size", [0, 1, 1, 1]),
        # 280, 120, 16, 4: t3 | t1, t2, t0
        ("lookup", [1, 1, 1, 0]),
        # 280 x 1, 120 x 2, 16 x 2.6, 4 x 3: t3 | t1; 41.6 and then 12 to t1's 240, which passes 280
        ("size-lookup", [0, 1, 1, 0]),
    ],
)
def test_the_least_cost_so_far_gets_the_next_table(baseline: str, devices: list[int]) -> None:
    made = plan(baseline, CASE, hardware(2, 1 << 20, 1 << 20))
    assert [t.devices[0] for t in made.tables] == devices
    assert all(t.hot_rows == (t.num_embeddings,) for t in made.tables)
    assert made.settings["planner"] == baseline


def test_whole_tables_fill_the_fast_tiers_first() -> None:
    # 16000, 12800, 1600 and 160 bytes; each HBM holds 13000
    made = plan("size", CASE, hardware(2, 13_000, 20_000))
    where = {t.name: (t.devices[0], t.hot_rows[0]) for t in made.tables}
    assert where["t0"] == (0, 0)  # nowhere in HBM
    assert where["t2"] == (1, 400)
    assert where["t1"] == (0, 100)  # its device is full, the other has room
    assert where["t3"] == (1, 10)


def test_a_table_that_fits_nowhere_is_named() -> None:
    with pytest.raises(InfeasibleError, match=r"t0 needs 16,000 bytes .* 9,000 are left in hbm and 10,000"):
        plan("lookup", CASE[:1], hardware(3, 9_000, 10_000))


def test_arguments_that_are_refused() -> None:
    with pytest.raises(InputError, match="no baseline is called 'biggest'"):
        plan("biggest", CASE, hardware(2, 1000, 1000))
    with pytest.raises(InputError, match="lookups_per_sample = nan"):
        plan("lookup", [(10, 4, float("nan"))], hardware(2, 1000, 1000))
    with pytest.raises(InputError, match="1 tables, 0 lookups_per_sample"):
        greedy_plan("size", [TableConfig("t", 1, 1)], [], [4], hardware(1, 9, 9), batch_size=1)


@given(
    st.sampled_from(BASELINES),
    st.lists(st.tuples(st.integers(1, 500), st.integers(1, 16), st.floats(0, 50)), min_size=1, max_size=12),
    st.integers(1, 5),
    st.integers(1, 40_000),
)
def test_no_tier_holds_more_than_it_can(
    baseline: str, sizes: list[tuple[int, int, float]], devices: int, hbm: int
) -> None:
    on = hardware(devices, hbm, 500_000)
    made = plan(baseline, sizes, on)
    held = [[0, 0] for _ in range(devices)]
    for table in made.tables:
        (piece,) = table.pieces()
        held[piece.device][0 if piece.hot_rows else 1] += piece.rows * piece.width * 4
        assert piece.hot_rows in (0, piece.rows)
    assert all(fast <= hbm and slow <= 500_000 for fast, slow in held)
    assert Plan.from_json(made.to_json()) == made


def test_the_fewest_slow_reads_take_rows_by_lookups_per_byte() -> None:
    # Lookups of a row per sample: a 1, .1; b 2, .2, of rows twice as large.
    a = PlannedTable(TableConfig("a", 110, 4), 20.0, np.array([10.0, 100.0]), np.array([0.5, 0.5]))
    b = PlannedTable(TableConfig("b", 60, 8), 20.0, np.array([10.0, 50.0]), np.array([0.5, 0.5]))

    def hot(fast_bytes: int) -> list[int]:
        made = least_slow_reads([a, b], [16, 40], fast_bytes, batch_size=8)
        return [t.hot_rows[0] for t in made.tables]

    assert hot(0) == [0, 0]
    assert hot(10 * 16 + 3 * 40 + 39) == [10, 3]  # 1/16 before 1/20 (a byte's share of a row of b: 1/40 x 1)
    assert hot(10 * 16 + 10 * 40 + 5 * 16) == [15, 10]
    assert hot(1 << 20) == [110, 60]
