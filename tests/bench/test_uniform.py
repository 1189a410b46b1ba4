import pytest

from recsys_opt.bench.uniform import LEAST_RANK, uniform_options
from recsys_opt.data.dataset import SparseColumn
from recsys_opt.embeddings.registry import build_embedding
from recsys_opt.errors import InfeasibleError
from recsys_opt.tables import TableConfig

COLUMNS = [SparseColumn("a", 50_000), SparseColumn("b", 700), SparseColumn("c", 4_000)]


def stored(options):
    return sum(
        build_embedding(
            TableConfig(
                c.name,
                c.num_embeddings,
                8,
                representation="tt" if c.name in options else "dense",
                options=options.get(c.name, {}),
            ),
            device="meta",
        ).storage_bytes()
        for c in COLUMNS
    )


@pytest.mark.parametrize("budget", [40_000, 60_000, 200_000, 600_000])
def test_the_budget_is_used_up_by_the_largest_rank(budget):
    options = uniform_options(COLUMNS, 8, budget)
    assert stored(options) <= budget
    (rank,) = {max(o["tt_ranks"]) for o in options.values()}
    assert rank >= LEAST_RANK
    larger = {name: {**o, "tt_ranks": [r + 1 for r in o["tt_ranks"]]} for name, o in options.items()}
    assert stored(larger) > budget


def test_as_few_tables_as_possible():
    assert set(uniform_options(COLUMNS, 8, 600_000)) == {"a"}
    assert set(uniform_options(COLUMNS, 8, 60_000)) == {"a", "c"}
    assert uniform_options(COLUMNS, 8, 10**7) == {}


def test_too_small_a_budget():
    with pytest.raises(InfeasibleError, match="rank of at least 8"):
        uniform_options(COLUMNS, 8, 5_000)
