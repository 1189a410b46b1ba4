import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_opt.access import TableAccess
from recsys_opt.embeddings.registry import build_embedding
from recsys_opt.embeddings.tt_budget import (
    RANKS,
    TTOption,
    choose_tables,
    expected_loss,
    tt_options,
)
from recsys_opt.errors import InfeasibleError, InputError
from recsys_opt.tables import TableConfig

TABLES = [TableConfig("a", 40_000, 8), TableConfig("b", 900, 8), TableConfig("c", 5, 8)]


def access(name, rows, *, seen=None, lookups=100_000, skew=1.1):
    seen = min(rows, 2_000) if seen is None else seen
    weights = np.arange(1, seen + 1) ** -skew
    counts = np.zeros(rows, dtype=np.int64)
    counts[:seen] = np.maximum(lookups * weights / weights.sum(), 1)
    return TableAccess.from_counts(name, counts)


ACCESS = [access(t.name, t.num_embeddings) for t in TABLES]


@pytest.mark.parametrize("rows", [2, 5, 97, 4_000, 2_000_003])
@pytest.mark.parametrize("dim", [4, 16, 17])
def test_every_option_can_be_built_and_counts_its_bytes(rows, dim):
    options = tt_options(TableConfig("t", rows, dim), cores=(2, 3, 4))
    assert rows < 97 or options
    kept = [o.rows_kept for o in options]
    assert kept == sorted(set(kept))
    assert [o.parameters for o in options] == sorted(o.parameters for o in options)
    for option in options[:: max(1, len(options) // 6)]:
        bag = build_embedding(
            TableConfig("t", rows, dim, representation="tt", options=option.to_json()), device="meta"
        )
        assert bag.storage_bytes() == 4 * option.parameters < 4 * rows * dim


def test_freedom_is_the_rank_of_the_map_from_cores_to_table():
    """The Jacobian's rank at random cores: parameters less those that cancel."""
    import torch

    from recsys_opt.reference import tt_rows

    for ranks in ((1, 1), (2, 3), (3, 2)):
        option = TTOption((4, 4, 4), (2, 2, 2), ranks)
        torch.manual_seed(0)
        r = (1, *ranks, 1)
        shapes = [(option.p[k], option.q[k], r[k], r[k + 1]) for k in range(3)]
        cores = [torch.randn(s, dtype=torch.float64) for s in shapes]
        ids = torch.arange(int(np.prod(option.p)))

        def table(*cores, ids=ids):
            return tt_rows(ids, list(cores)).reshape(-1)

        parts = torch.autograd.functional.jacobian(table, tuple(cores))
        jacobian = torch.cat([part.flatten(1) for part in parts], dim=1)
        assert int(torch.linalg.matrix_rank(jacobian)) == option.freedom


@settings(max_examples=15)
@given(st.integers(0, 2**32), st.floats(0.02, 0.9))
def test_no_choice_has_a_lower_expected_loss(seed, share):
    random = np.random.default_rng(seed)
    tables = [TableConfig(f"t{i}", int(random.integers(30, 3000)), 4) for i in range(3)]
    counts = {
        t.name: TableAccess.from_counts(t.name, random.geometric(0.1, t.num_embeddings)) for t in tables
    }
    options = [tt_options(t, cores=(2,)) for t in tables]
    menus = [
        [(t.dense_bytes, 0.0)] + [(4 * o.parameters, expected_loss(counts[t.name], o)) for o in own]
        for t, own in zip(tables, options, strict=True)
    ]
    least, most = (sum(f(size for size, _ in menu) for menu in menus) for f in (min, max))
    budget = int(least + share * (most - least))
    best = min(
        sum(loss for _, loss in choice)
        for choice in itertools.product(*menus)
        if sum(size for size, _ in choice) <= budget
    )
    found = choose_tables(tables, counts, budget, cores=(2,))
    assert found.bytes <= budget
    assert found.loss == pytest.approx(best, rel=1e-9, abs=1e-15)
    assert found.loss_bound == pytest.approx(best, rel=1e-9, abs=1e-15)


def test_larger_budgets_lose_less_until_all_is_dense():
    choices = [choose_tables(TABLES, ACCESS, b) for b in (3_000, 10_000, 100_000, 1_000_000, 10_000_000)]
    losses = [c.loss for c in choices]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > losses[-1] == 0
    assert choices[-1].bytes == choices[-1].dense_bytes
    assert choices[-1].binds is None
    assert choices[-1].tt_options() == {}
    assert all(c.binds for c in choices[:-1])
    assert choices[0].loss_per_mb > choices[2].loss_per_mb > 0


def test_bytes_go_where_lookups_are():
    tables = [TableConfig(name, 1_000_000, 16) for name in ("busy", "idle")]
    counts = [access("busy", 1_000_000, seen=50_000, lookups=10**6), access("idle", 1_000_000, seen=40)]
    found = choose_tables(tables, counts, 300_000)
    busy, idle = found.tables
    assert busy.bytes > 2 * idle.bytes
    assert (busy.seen, idle.seen) == (50_000, 40)


def test_columns_that_tell_the_label_get_more():
    random = np.random.default_rng(0)
    counts = random.integers(1, 60, 20_000)
    rates = {"tells": np.clip(random.normal(0.3, 0.15, 20_000), 0, 1), "noise": np.full(20_000, 0.3)}
    tables = [TableConfig(name, 20_000, 16) for name in rates]
    found = choose_tables(
        tables,
        [
            TableAccess.from_counts(name, counts, random.binomial(counts, rate))
            for name, rate in rates.items()
        ],
        200_000,
    )
    assert found.tables[0].bytes > 3 * found.tables[1].bytes


def test_the_choice_is_what_training_needs():
    found = choose_tables(TABLES, ACCESS, 30_000, state_per_parameter=4, state_per_dense_row=4)
    assert [t.config.num_embeddings for t in found.tables] == [40_000, 900, 5]
    stored = sum(build_embedding(t.config).storage_bytes() for t in found.tables)
    assert stored == found.bytes == sum(t.bytes for t in found.tables) <= 30_000
    a, _, c = found.tables
    assert a.optimizer_bytes == a.bytes
    assert c.config.representation == "dense"
    assert c.optimizer_bytes == 4 * 5
    assert set(a.config.options["tt_ranks"]) <= set(RANKS)


def test_too_small_a_budget_names_the_least_and_the_table():
    with pytest.raises(InfeasibleError, match=r"give at least ([\d,]+) bytes") as refused:
        choose_tables(TABLES, ACCESS, 100)
    assert "table a with 40,000 rows" in str(refused.value)
    least = int(str(refused.value).rpartition("at least ")[2].split(" ")[0].replace(",", ""))
    assert choose_tables(TABLES, ACCESS, least).bytes == least
    with pytest.raises(InfeasibleError):
        choose_tables(TABLES, ACCESS, least - 1)


def test_tables_without_counts_are_named():
    with pytest.raises(InputError, match="no counts of the tables b"):
        choose_tables(TABLES, [ACCESS[0], ACCESS[2]], 10**6)


def test_several_hundred_tables():
    random = np.random.default_rng(0)
    tables = [TableConfig(f"t{i}", int(10 ** random.uniform(1, 7)), 16) for i in range(300)]
    kinds = [access("", 20_000, skew=skew) for skew in (0.5, 0.8, 1.1, 1.4)]
    counts = {t.name: kinds[i % 4] for i, t in enumerate(tables)}
    found = choose_tables(tables, counts, 40_000_000)
    assert found.bytes <= 40_000_000
    assert found.loss - found.loss_bound <= 1e-3 * found.loss
