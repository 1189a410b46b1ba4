import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_opt.errors import BatchError, InputError

pytest.importorskip("torchrec")

from torchrec import KeyedJaggedTensor

from recsys_opt.integrations.plan_layout import PlanLayout
from recsys_opt.integrations.torchrec import (
    PlannedEmbeddingBagCollection,
    PlanRemap,
    sharding_plan,
    tier_parameters,
)
from recsys_opt.integrations.torchrec.sharding import SlotSum, summed_slots
from recsys_opt.plan import Plan, TablePlan, stripe_rows
from tests.integrations.torchrec.plans import batch, plan_of_all_kinds, rankings_of, table, unsharded

pytestmark = pytest.mark.usefixtures("one_thread")


def fill(ours: PlannedEmbeddingBagCollection, weights: dict[str, torch.Tensor]) -> None:
    """Copies unsharded tables, row by row, as plan.json's definition says where a row is."""
    for t in ours.layout.plan.tables:
        ranked = list(ours.rankings.get(t.name, ()))
        order = ranked + sorted(set(range(t.num_embeddings)) - set(ranked))
        weight = weights[t.name]
        if t.replicated:
            ours.tiers.embedding_bags[t.name].weight.data.copy_(weight)
            continue
        for at, piece in enumerate(t.pieces()):
            name = t.name if len(t.devices) == 1 else f"{t.name}__{at}"
            stripe, stripes = piece.stripe
            for rank in range(stripe, t.num_embeddings, stripes):
                place = rank // stripes
                hot = place < piece.hot_rows
                target = ours.tiers.embedding_bags[f"{name}__{'hot' if hot else 'cold'}"].weight.data
                target[place if hot else place - piece.hot_rows] = weight[order[rank], slice(*piece.columns)]


@st.composite
def plans(draw) -> Plan:
    devices = draw(st.integers(1, 5))
    tables = []
    for at in range(draw(st.integers(1, 4))):
        rows = draw(st.integers(1, 30))
        columns = draw(st.integers(1, 2 if devices > 1 else 1))
        stripes = draw(st.integers(1, min(rows, devices // columns)))
        on = draw(st.permutations(range(devices)))[: columns * stripes]
        hot = [draw(st.integers(0, stripe_rows(rows, p % stripes, stripes))) for p in range(len(on))]
        features = (f"f{at}", "both") if draw(st.booleans()) else ()
        if draw(st.integers(0, 4)) == 0:
            every = tuple(range(devices))
            tables.append(
                TablePlan(
                    f"t{at}", rows, 8, every, (rows,) * devices, replicated=True, feature_names=features
                )
            )
            continue
        pooling = draw(st.sampled_from(["sum", "mean"]))
        tables.append(TablePlan(f"t{at}", rows, 8, on, hot, columns, stripes, False, features, pooling))
    per_node = draw(st.sampled_from([n for n in range(1, devices + 1) if devices % n == 0]))
    return Plan(tuple(tables), devices, 6 * devices, hardware={"devices_per_node": per_node})


@settings(max_examples=40)
@given(plan=plans(), seed=st.integers(0, 3), weighted=st.booleans())
def test_any_plan_gives_what_the_unsharded_tables_give(plan: Plan, seed: int, weighted: bool):
    weighted = weighted and all(t.pooling == "sum" for t in plan.tables)
    theirs = unsharded(plan, weighted)
    rankings = rankings_of(plan)
    ours = PlannedEmbeddingBagCollection(plan, rankings, is_weighted=weighted)
    fill(ours, {name: bag.weight.detach() for name, bag in theirs.embedding_bags.items()})
    part = batch(plan, seed, weighted)[0]
    moved = PlanRemap(plan, rankings)(part)
    got, want = ours(moved), theirs(part)
    assert got.keys() == want.keys()
    torch.testing.assert_close(got.values(), want.values())
    assert [c.name for c in ours.embedding_bag_configs()] == [t.name for t in plan.tables]
    for lengths, key in zip(moved.lengths().view(len(moved.keys()), -1), moved.keys(), strict=True):
        assert lengths.sum() == moved[key].values().numel()


def test_the_plan_of_torchrec():
    plan = plan_of_all_kinds(2)
    ours = PlannedEmbeddingBagCollection(plan, {}, device=torch.device("meta"))
    model = torch.nn.ModuleDict({"sparse": ours})
    (tables,) = sharding_plan(model, "cuda", devices_per_node=1).plan.values()
    assert list(sharding_plan(model).plan) == ["sparse.tiers"]
    described = {
        name: (s.compute_kernel, s.ranks, [(m.shard_sizes, str(m.placement)) for m in s.sharding_spec.shards])
        for name, s in tables.items()
        if s.sharding_type == "table_wise"
    }
    assert described["whole__hot"] == ("fused", [1], [([16, 8], "rank:1/cuda:0")])
    assert described["whole__cold"] == ("fused_uvm", [1], [([24, 8], "rank:1/cuda:0")])
    assert described["rows__1__cold"] == ("fused_uvm", [1], [([3, 8], "rank:1/cuda:0")])
    assert described["columns__1__hot"] == ("fused", [1], [([18, 8], "rank:1/cuda:0")])
    assert "hot__cold" not in described
    assert "cold__hot" not in described
    assert tables["everywhere"].sharding_type == "data_parallel"
    assert sum(p.numel() for p in tier_parameters(ours)) == sum(
        t.num_embeddings * t.embedding_dim for t in plan.tables if not t.replicated
    )


def test_ids_keep_their_order_and_their_type():
    plan = Plan((table("t", 10, 4, [0], 0.4),), 1, 2)
    remap = PlanRemap(plan, {"t": np.array([7, 3, 9])})  # ranks: 7 3 9 0 | 1 2 4 5 6 8
    ids = torch.tensor([8, 3, 0, 7, 7, 1], dtype=torch.int32)
    moved = remap(KeyedJaggedTensor(["t"], ids, lengths=torch.tensor([4, 0, 2])))
    assert moved.keys() == ["t/t__hot", "t/t__cold"]
    assert moved.values().tolist() == [1, 3, 0, 0, 5, 0]
    assert moved.lengths().tolist() == [3, 0, 1, 1, 0, 1]
    assert moved.values().dtype == torch.int32
    again = pickle.loads(pickle.dumps(remap))  # as it goes to the processes of a DataLoader
    assert torch.equal(
        again(KeyedJaggedTensor(["t"], ids, lengths=torch.tensor([4, 0, 2]))).values(), moved.values()
    )


def test_a_batch_without_ids_and_a_plan_of_copies_alone():
    plan = Plan((table("t", 10, 4, [0, 1], 1.0, replicated=True),), 2, 2)
    part = KeyedJaggedTensor(["t"], torch.tensor([9, 1]), lengths=torch.tensor([1, 0, 1]))
    assert PlanRemap(plan, {})(part).values().tolist() == [9, 1]
    split = Plan((table("t", 10, 4, [0, 1], 0.5, row_shards=2),), 2, 2)
    empty = KeyedJaggedTensor(
        ["t"], torch.empty(0, dtype=torch.int64), lengths=torch.zeros(3, dtype=torch.int64)
    )
    assert PlanRemap(split, {})(empty).lengths().tolist() == [0] * 12
    ours = PlannedEmbeddingBagCollection(split, {})
    assert ours(PlanRemap(split, {})(empty)).values().count_nonzero() == 0


def test_sums_of_blocks_cut_once():
    slots = summed_slots([("a", 4), ("b", 2), ("c", 1), ("a", 4), ("b", 2), ("d", 3)])
    assert [(s.name, s.starts) for s in slots] == [("a", (0, 7)), ("b", (4, 11)), ("c", (6,)), ("d", (13,))]
    summed = SlotSum(slots)
    x = torch.arange(32.0).view(2, 16)
    want = torch.cat([x[:, :6] + x[:, 7:13], x[:, 6:7], x[:, 13:]], 1)
    assert torch.equal(summed(x), want)
    assert len(summed._splits) == 4
    assert torch.equal(SlotSum(summed_slots([("a", 16)]))(x), x)
    mixed = summed_slots([("a", 1), ("b", 2), ("b", 2), ("a", 1), ("c", 10)])
    want = torch.cat([x[:, :1] + x[:, 5:6], x[:, 1:3] + x[:, 3:5], x[:, 6:]], 1)
    assert torch.equal(SlotSum(mixed)(x), want)


def test_stripes_on_the_devices_of_a_node_are_summed_there():
    def nodes(devices, per_node: int, columns: int = 1) -> list[list[str]]:
        t = table("t", 20, 8, devices, 0.5, row_shards=len(devices) // columns, column_shards=columns)
        return PlanLayout(Plan((t,), 4, 4, hardware={"devices_per_node": per_node})).node_outputs

    assert nodes([3, 2], 2) == [[], ["t__node0:0"]]
    assert nodes([0, 1, 3, 2], 2, columns=2) == [["t__node0:0"], ["t__node1:0"]]
    assert nodes([2, 1], 2) == [[], []]
    assert nodes([0, 1, 2, 3], 2) == [[], []]
    assert nodes([0, 1, 2, 3], 4) == [[]]
    assert nodes([1, 0], 4) == [[]]
    with pytest.raises(InputError, match=r"3 devices in a node, which do not divide its 4 devices"):
        nodes([0, 1], 3)


def test_bad_input_is_named():
    plan = plan_of_all_kinds(2)
    remap = PlanRemap(plan, rankings_of(plan))
    part = batch(plan, 1)[0]
    with pytest.raises(
        BatchError, match=r"lacks columns, h1; its keys are whole, rows, h0, cold, everywhere"
    ):
        remap(part.permute([0, 2, 3, 5, 6]))
    for wrong in (-1, 53):
        ids = part.values().clone()
        ids[int(part.offset_per_key()[2])] = wrong
        with pytest.raises(
            BatchError, match=f"feature rows has the id {wrong}, outside the 53 rows of table"
        ):
            remap(KeyedJaggedTensor(part.keys(), ids, lengths=part.lengths()))
    uneven = KeyedJaggedTensor(
        ["a"], torch.tensor([1]), lengths=torch.tensor([1]), stride_per_key_per_rank=[[1]]
    )
    with pytest.raises(BatchError, match="has a batch size for each key"):
        PlanRemap(Plan((table("a", 4, 4, [0], 0.5),), 1, 1), {})(uneven)
    with pytest.raises(InputError, match="rankings are given for x, which the plan does not have"):
        PlanRemap(plan, {"x": np.array([1])})
    for broken in ([1, 1], [40], [-1]):
        with pytest.raises(InputError, match="table whole: the ranking names row"):
            PlanRemap(plan, {"whole": np.array(broken)})
    with pytest.raises(
        InputError, match="pieces have 6 columns, but FBGEMM's fused tables need a multiple of 4"
    ):
        PlannedEmbeddingBagCollection(Plan((table("t", 9, 12, [0, 1], 0.5, column_shards=2),), 2, 2), {})
    with pytest.raises(
        InputError, match=r"tables whole, rows have mean pooling, of which there is no weighted"
    ):
        PlannedEmbeddingBagCollection(plan, {}, is_weighted=True)
    clash = (table("t", 9, 4, [0, 1], 0.5, row_shards=2), table("t__0", 9, 4, [0], 0.5))
    with pytest.raises(InputError, match="would make two tables called 't__0__hot'; rename"):
        PlanRemap(Plan(clash, 2, 2), {})
    with pytest.raises(InputError, match="has no PlannedEmbeddingBagCollection"):
        sharding_plan(torch.nn.Linear(1, 1))
