"""Rows on the move in a model that is being trained: nothing is lost, whoever holds the optimizer's state."""

import numpy as np
import pytest
import torch
from torch import nn

from recsys_opt import DLRM, FusedUpdate, TableConfig, TieredEmbeddingBag
from recsys_opt.embeddings.collection import EmbeddingCollection
from recsys_opt.embeddings.tiered_plan import move_to_plan, retier_with_optimizer
from recsys_opt.errors import InputError
from recsys_opt.plan import Plan, TablePlan

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = {"a": 40, "b": 70, "c": 9}
RANKINGS = [
    {name: np.random.default_rng([seed, rows]).permutation(rows)[: rows // 2] for name, rows in ROWS.items()}
    for seed in (0, 1)
]


def plan(*hot_rows: int, **changes) -> Plan:
    tables = [TablePlan(n, ROWS[n], 4, (0,), (h,)) for n, h in zip(ROWS, hot_rows, strict=True)]
    return Plan(tuple(tables), **{"num_devices": 1, "batch_size": 8, **changes})


def model() -> DLRM:
    torch.manual_seed(0)
    tables = [TableConfig(n, r, 4, representation="tiered", options={"hot_rows": 5}) for n, r in ROWS.items()]
    return DLRM(tables, dense_features=3, bottom_mlp=(4,), top_mlp=(1,))


def step(dlrm: DLRM, k: int, optimizer: torch.optim.Optimizer | None) -> None:
    generator = torch.Generator().manual_seed(k)
    ids = torch.cat([torch.randint(0, rows, (16,), generator=generator) for rows in ROWS.values()])
    out = dlrm(torch.rand(16, 3, generator=generator), ids)
    (out - 1).square().mean().backward()
    if optimizer:
        optimizer.step()
        optimizer.zero_grad()


def weights(dlrm: DLRM) -> list[torch.Tensor]:
    return [dlrm.embeddings.table(name).materialize() for name in ROWS]


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1),
    "momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.1),
    "sparse_adam": lambda p: torch.optim.SparseAdam(p, 0.1),
}


@pytest.mark.parametrize("kind", [*OPTIMIZERS, "fused"])
def test_training_goes_on_with_the_same_bits(kind):
    still, moving = model(), model()
    optimizers = []
    for dlrm in (still, moving):
        tables = list(dlrm.embeddings.parameters())
        update = FusedUpdate("rowwise_adagrad", 0.1)
        for name in ROWS if kind == "fused" else ():
            dlrm.embeddings.table(name).fuse_update(update)
        optimizers.append(OPTIMIZERS[kind](tables) if kind in OPTIMIZERS else None)
    plans = [plan(12, 70, 0), plan(1, 30, 9), plan(0, 69, 4)]
    for k, new in enumerate(plans):
        for dlrm, optimizer in zip((still, moving), optimizers, strict=True):
            step(dlrm, k, optimizer)
        moved = move_to_plan(moving.embeddings, new, RANKINGS[k % 2].__getitem__, optimizers[1])
        assert moved.rows == sum(ROWS.values())
        assert moved.bytes >= 16 * moved.rows
        assert [moving.embeddings.table(n).hot_rows for n in ROWS] == [t.hot_rows[0] for t in new.tables]
    for dlrm, optimizer in zip((still, moving), optimizers, strict=True):
        step(dlrm, 9, optimizer)
    # A sparse momentum becomes a dense one, whose sums are rounded in another order.
    exact = {} if kind == "momentum" else {"rtol": 0, "atol": 0}
    for a, b in zip(weights(still), weights(moving), strict=True):
        torch.testing.assert_close(a, b, **exact)
    if kind != "fused":  # and the optimizer holds what the model has, and nothing else
        held = [id(p) for group in optimizers[1].param_groups for p in group["params"]]
        assert held == [id(p) for p in moving.embeddings.parameters()]
        assert {id(p) for p in optimizers[1].state} <= set(held)
    hottest = RANKINGS[0]["b"][0]
    assert moving.embeddings.table("b").remap[hottest] == 0


def test_a_tier_without_a_state_gets_zeros():
    """SparseAdam makes a state at the first gradient; here the cold rows have had none."""
    table = TieredEmbeddingBag(10, 2, 5)
    optimizer = torch.optim.SparseAdam(table.parameters(), 0.1)
    optimizer.state[table.hot] = {"step": 3, "exp_avg": torch.ones(5, 2)}
    retier_with_optimizer(table, optimizer, hot_rows=8)
    assert optimizer.state[table.hot]["exp_avg"].sum(1).tolist() == [2.0] * 5 + [0.0] * 3
    assert optimizer.state[table.cold]["exp_avg"].tolist() == [[0, 0], [0, 0]]
    assert optimizer.state[table.cold]["step"] == 3
    before = table.hot
    retier_with_optimizer(table, optimizer, hot_rows=8)  # nothing to do
    assert table.hot is before


@pytest.mark.parametrize(
    ("tables", "new", "message"),
    [
        (None, plan(1, 1, 1, num_devices=2), "for 2 devices"),
        (None, Plan(plan(1, 1, 1).tables[1:], 1, 8), "table a is 40 x 4, but the plan lacks it"),
        (None, Plan((TablePlan("a", 41, 4, (0,), (1,)),), 1, 8), "has it as 41 x 4"),
        ([TableConfig("a", 40, 4)], plan(1, 1, 1), "table a is dense"),
    ],
)
def test_plans_that_do_not_fit_are_refused(tables, new, message):
    found = model().embeddings if tables is None else EmbeddingCollection(tables)
    before = [p.clone() for p in found.parameters()]
    with pytest.raises(InputError, match=message):
        move_to_plan(found, new, RANKINGS[0].__getitem__)
    assert all(torch.equal(a, b) for a, b in zip(before, found.parameters(), strict=True))
    assert all(isinstance(p, nn.Parameter) for p in found.parameters())
