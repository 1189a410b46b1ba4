import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_opt.plan import TablePlan
from recsys_opt.planner.compare import table_move
from recsys_opt.planner.overlap import overlap
from recsys_opt.ranks import rank_order


def homes(plan: TablePlan) -> np.ndarray:
    """[rows, columns, 2]: device and tier of every number of the table, by rank."""
    found = np.full((plan.num_embeddings, plan.embedding_dim, 2), -1)
    for piece in plan.pieces():
        s, k = piece.stripe
        ranks = np.arange(s, plan.num_embeddings, k)
        found[ranks, piece.columns[0] : piece.columns[1], 0] = piece.device
        found[ranks, piece.columns[0] : piece.columns[1], 1] = (np.arange(len(ranks)) < piece.hot_rows)[
            :, None
        ]
    return found


@st.composite
def table_plans(draw, rows=23, columns=4):
    column_shards = draw(st.sampled_from([1, 2, 4]))
    row_shards = draw(st.sampled_from([1, 1, 2, 3]))
    devices = draw(st.permutations(range(12)))[: column_shards * row_shards]
    plan = TablePlan("t", rows, columns, devices, (0,) * len(devices), column_shards, row_shards)
    hot = tuple(draw(st.integers(0, p.rows)) for p in plan.pieces())
    return TablePlan("t", rows, columns, devices, hot, column_shards, row_shards)


@settings(max_examples=150)
@given(table_plans(), table_plans())
def test_moves_are_those_of_every_number(before, after):
    row_bytes = 4 * 4  # one byte for each number would do; 4 as in fp32
    old, new = homes(before), homes(after)
    other = old[..., 0] != new[..., 0]
    tier = ~other & (old[..., 1] != new[..., 1])
    move = table_move(before, after, row_bytes)
    assert move.between_devices_bytes == 4 * other.sum()
    assert move.between_tiers_bytes == 4 * tier.sum()
    assert move.rows == (other | tier).any(axis=1).sum()


def test_replicas():
    whole = TablePlan("t", 10, 4, (1,), (6,))
    replica = TablePlan("t", 10, 4, (0, 1, 2), (10, 10, 10), replicated=True)
    assert table_move(whole, replica, 16).between_devices_bytes == 2 * 160
    back = table_move(replica, whole, 16)
    assert (back.between_devices_bytes, back.between_tiers_bytes, back.rows) == (0, 4 * 16, 4)
    assert not table_move(replica, replica, 16).changed


@settings(max_examples=150)
@given(table_plans(), table_plans(), st.integers(0, 23), st.randoms(use_true_random=False))
def test_moves_between_plans_that_rank_rows_otherwise(before, after, ranked, random):
    rankings = tuple(np.array(random.sample(range(23), ranked), dtype=int) for _ in range(2))
    orders = [rank_order(ranking, 23) for ranking in rankings]
    old, new = np.empty((23, 4, 2)), np.empty((23, 4, 2))
    old[orders[0]], new[orders[1]] = homes(before), homes(after)  # by id
    other = old[..., 0] != new[..., 0]
    tier = ~other & (old[..., 1] != new[..., 1])
    move = table_move(before, after, 16, rankings)
    assert move.between_devices_bytes == 4 * other.sum()
    assert move.between_tiers_bytes == 4 * tier.sum()
    assert move.rows == (other | tier).any(axis=1).sum()


@settings(max_examples=60)
@given(table_plans(), table_plans(), st.booleans(), st.randoms(use_true_random=False))
def test_what_pieces_have_in_common(before, after, reranked, random):
    orders = tuple(np.array(random.sample(range(23), 23)) for _ in range(2)) if reranked else None
    old, new = np.empty((23, 4, 2)), np.empty((23, 4, 2))
    old[orders[0] if orders else slice(None)], new[orders[1] if orders else slice(None)] = (
        homes(before),
        homes(after),
    )
    kept = overlap(before, after, orders).kept(16)
    for i, device in enumerate(after.devices):
        for j, other in enumerate(before.devices):
            both = (new[..., 0] == device) & (old[..., 0] == other)
            assert kept[i, j] == 4 * both.sum()
