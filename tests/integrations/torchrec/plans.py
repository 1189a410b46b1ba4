"""Plans of every kind over small tables, batches for them, and the unsharded tables that they must equal."""

import numpy as np
import torch
from torch import Tensor
from torchrec import EmbeddingBagCollection, KeyedJaggedTensor
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType

from recsys_opt.plan import Plan, TablePlan, stripe_rows

PER_NODE = 2
"""Devices of a node."""
BATCH = 6
"""Samples of one process."""


def table(name: str, rows: int, dim: int, devices, hot_share, **options) -> TablePlan:
    """A table whose pieces hold a share of their rows in the fast tier; a share of each, or one for all."""
    k = options.get("row_shards", 1)
    shares = [hot_share] * len(devices) if isinstance(hot_share, float) else hot_share
    hot = [int(share * stripe_rows(rows, at % k, k)) for at, share in enumerate(shares)]
    return TablePlan(name, rows, dim, tuple(devices), tuple(hot), **options)


def plan_of_all_kinds(world: int, other: bool = False) -> Plan:
    """Tables cut in every way that `world` devices allow; `other`: the same tables, placed otherwise."""
    last, every = world - 1, tuple(range(world))
    some = (0.3, 0.9, 0.0, 1.0)[:world]
    if other:
        kinds = [
            table("whole", 40, 8, every, 0.1, row_shards=world, pooling="mean"),
            table("columns", 30, 16, [0], 0.7),
            table("rows", 53, 8, [last, 0], [0.5, 0.2], column_shards=2, pooling="mean"),
            table("hot", 9, 4, [last], 0.5, feature_names=("h0", "h1")),
            table("cold", 11, 4, every, 1.0, replicated=True),
            table("everywhere", 7, 4, [0], 0.4),
            table("shared", 12, 8, [0, last], 0.5, row_shards=2, feature_names=("whole",)),
        ]
    else:
        kinds = [
            table("whole", 40, 8, [last], 0.4, pooling="mean"),
            table("columns", 30, 16, [0, last], [0.2, 0.6], column_shards=2),
            table("rows", 53, 8, every, some, row_shards=world, pooling="mean"),
            table("hot", 9, 4, [0], 1.0, feature_names=("h0", "h1")),
            table("cold", 11, 4, [last], 0.0),
            table("everywhere", 7, 4, every, 1.0, replicated=True),
            table("shared", 12, 8, [last, 0], 0.5, column_shards=2, feature_names=("whole",)),
        ]
    if world == 4:  # two nodes of two; node_0, node_1 and both are summed in their nodes
        cut = {"row_shards": 2, "column_shards": 2}
        turn = -1 if other else 1
        kinds += [
            table("node_1", 23, 4, [3, 2], 0.3, row_shards=2, feature_names=("n0", "n1")),
            table("grid", 31, 8, [3, 1, 0, 2][::turn], [0.1, 0.5, 0.1, 0.8], **cut),
            table("both", 17, 16, [3, 2, 0, 1][::turn], [1.0, 0.5, 0.0, 0.5], pooling="mean", **cut),
            table("node_0", 19, 4, [1, 0] if not other else [1, 2], 0.5, row_shards=2),
        ]
    return Plan(tuple(kinds), world, BATCH * world, hardware={"devices_per_node": PER_NODE})


def random_plan(seed: int, world: int) -> Plan:
    """Few tables, some of a row or two, on some of the devices; pieces often without one of the tiers."""
    g = np.random.default_rng(seed)

    def one(name: str) -> TablePlan:
        rows, dim = int(g.choice([1, 2, 3, 7, 40, 200])), int(g.choice([4, 8, 16, 32]))
        features = () if g.random() < 0.6 else (f"{name}a", f"{name}b", "shared")[: int(g.integers(1, 4))]
        pooling = str(g.choice(["sum", "mean"]))
        if g.random() < 0.15:
            return table(name, rows, dim, range(world), 1.0, replicated=True, feature_names=features)
        columns = int(g.choice([c for c in (1, 2, 4) if dim % (4 * c) == 0 and c <= world]))
        stripes = int(g.integers(1, min(rows, world // columns) + 1))
        devices = g.permutation(world)[: columns * stripes]
        if stripes == PER_NODE and g.random() < 0.7:  # each column shard on a node
            nodes = g.permutation(world // PER_NODE)[:columns]
            devices = np.concatenate([g.permutation(PER_NODE) + PER_NODE * node for node in nodes])
        shares = [float(g.choice([0.0, 1.0, g.random()])) for _ in devices]
        cut = {"column_shards": columns, "row_shards": stripes}
        return table(
            name, rows, dim, devices.tolist(), shares, feature_names=features, pooling=pooling, **cut
        )

    tables = tuple(one(f"t{at}") for at in range(int(g.integers(1, 6))))
    return Plan(tables, world, BATCH * world, hardware={"devices_per_node": PER_NODE})


def rankings_of(plan: Plan, seed: int = 1) -> dict[str, np.ndarray]:
    """Half of each table's rows, in a random order; none of one table."""
    g = np.random.default_rng(seed)
    return {t.name: g.permutation(t.num_embeddings)[: t.num_embeddings // 2] for t in plan.tables[1:]}


def features_of(plan: Plan) -> dict[str, int]:
    """Feature -> ids that every table of it has."""
    sizes: dict[str, int] = {}
    for t in plan.tables:
        for feature in t.feature_names or (t.name,):
            sizes[feature] = min(sizes.get(feature, t.num_embeddings), t.num_embeddings)
    return sizes


def batch(plan: Plan, step: int, weighted: bool = False) -> list[KeyedJaggedTensor]:
    """One for each process; a third of the bags are empty, ids repeat, one feature has none in some steps."""
    g = torch.Generator().manual_seed(step)
    parts = []
    for _ in range(plan.num_devices):
        sizes = features_of(plan)
        lengths = torch.randint(0, 3, (len(sizes), BATCH), generator=g) * torch.randint(
            1, 3, (1,), generator=g
        )
        lengths[step % len(sizes)] = 0
        counts = lengths.sum(1).tolist()
        ids = [torch.randint(0, n, (k,), generator=g) for n, k in zip(sizes.values(), counts, strict=True)]
        weights = torch.rand(sum(counts), generator=g) if weighted else None
        parts.append(KeyedJaggedTensor(list(sizes), torch.cat(ids), weights, lengths=lengths.reshape(-1)))
    return parts


def unsharded(plan: Plan, weighted: bool = False) -> EmbeddingBagCollection:
    """Torchrec's own tables."""
    torch.manual_seed(0)
    configs = [
        EmbeddingBagConfig(
            num_embeddings=t.num_embeddings,
            embedding_dim=t.embedding_dim,
            name=t.name,
            feature_names=list(t.feature_names or (t.name,)),
            pooling=PoolingType.MEAN if t.pooling == "mean" else PoolingType.SUM,
        )
        for t in plan.tables
    ]
    return EmbeddingBagCollection(tables=configs, is_weighted=weighted)


class Reference:
    """Unsharded tables trained by definition, in one process, on the batches of all."""

    def __init__(self, plan: Plan, algorithm: str, rate: float, eps: float) -> None:
        self.plan, self.algorithm, self.rate, self.eps = plan, algorithm, rate, eps
        self.tables = unsharded(plan)
        self.squares = {
            t.name: torch.zeros(t.num_embeddings, t.column_shards) for t in plan.tables if not t.replicated
        }

    def forward(self, parts: list[KeyedJaggedTensor]) -> list[Tensor]:
        return [self.tables(part).values() for part in parts]

    def step(self, parts: list[KeyedJaggedTensor]) -> None:
        """Row-wise Adagrad has one state for the columns of a shard; a replicated table is trained by SGD."""
        self.tables.zero_grad()
        torch.stack([loss(out) for out in self.forward(parts)]).mean().backward()
        with torch.no_grad():
            for t in self.plan.tables:
                weight = self.tables.embedding_bags[t.name].weight
                gradient = weight.grad
                if self.algorithm == "adagrad" and not t.replicated:
                    cut = gradient.view(t.num_embeddings, t.column_shards, -1)
                    self.squares[t.name] += cut.square().mean(2)
                    gradient = cut / (self.squares[t.name].sqrt() + self.eps)[:, :, None]
                weight -= self.rate * gradient.reshape(weight.shape)


def loss(pooled: Tensor) -> Tensor:
    return pooled.sin().sum(1).mean()
