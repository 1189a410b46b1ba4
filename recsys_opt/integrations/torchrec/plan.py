"""A plan on stock TorchRec: the module, its sharding, and what DistributedModelParallel needs of both."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import reduce
from typing import Any

import torch
import torch.fx
from torch import Tensor, distributed, nn
from torch.distributed.remote_device import _remote_device
from torchrec.distributed.comm import get_local_size
from torchrec.distributed.types import (
    EmbeddingModuleShardingPlan,
    EnumerableShardingSpec,
    ParameterSharding,
    ShardingPlan,
    ShardMetadata,
)
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollectionInterface
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from recsys_opt.errors import BatchError, InputError
from recsys_opt.integrations.plan_layout import PlanLayout, check_widths, features_of
from recsys_opt.integrations.torchrec.rankings import Rankings, check_rankings
from recsys_opt.integrations.torchrec.sharding import ShardedTierTables, TierTables
from recsys_opt.plan import Plan


class PlannedEmbeddingBagCollection(EmbeddingBagCollectionInterface):  # type: ignore[misc]
    """A plan's tables in the place of an EmbeddingBagCollection.

    plan         plan.json
    rankings     table -> its rows in the order in which the plan counts them (`plan_ranking`)
    is_weighted  whether the KeyedJaggedTensor's weights multiply the rows; of tables with sum pooling only
    device       of the tables until DistributedModelParallel makes the sharded ones: "meta" spares the memory

    Takes a KeyedJaggedTensor that `PlanRemap` has remapped, gives the KeyedTensor that the unsharded tables
    would give of the ids before: the same keys, in the order of the plan's tables. Tables have sum pooling
    inside; a mean is the sum divided by the bag's length.

    Example, under torchrun::

        plan = Plan.load("plan.json")
        ranking = plan_ranking(plan, AccessStatistics.load("stats.npz"))
        rankings = {t.name: ranking(t.name) for t in plan.tables}
        remap = PlanRemap(plan, rankings)                   # in the data loader
        model = MyModel(PlannedEmbeddingBagCollection(plan, rankings, device=torch.device("meta")))
        apply_optimizer_in_backward(RowWiseAdagrad, tier_parameters(model), {"lr": 0.02})
        model = DistributedModelParallel(
            model, device=device, plan=sharding_plan(model, device), sharders=[TierTablesSharder()]
        )
        load_weights(model, unsharded_state_dict)           # it keeps no weights of the module it is given
        model(dense, remap(sparse_features))
        save_tables(model, "tables.safetensors")
    """

    def __init__(
        self, plan: Plan, rankings: Rankings, *, is_weighted: bool = False, device: torch.device | None = None
    ) -> None:
        super().__init__()
        check_widths(plan)
        check_rankings(plan, rankings)
        means = [t.name for t in plan.tables if t.pooling == "mean"]
        if is_weighted and means:
            raise InputError(
                f"tables {', '.join(means)} have mean pooling, of which there is no weighted form; give them "
                "sum pooling, or is_weighted=False"
            )
        self.layout = layout = PlanLayout(plan)
        self.rankings = dict(rankings)
        # Weights start in the range that the whole table's would.
        bounds = {t.name: 1.0 / math.sqrt(t.num_embeddings) for t in plan.tables}
        tables = [
            _config(t.name, t.rows, t.piece.width, t.keys, bounds[t.piece.table]) for t in layout.tables
        ] + [
            _config(t.name, t.num_embeddings, t.embedding_dim, features_of(t), bounds[t.name])
            for t in layout.copies
        ]
        self.tiers = TierTables(layout, tables, is_weighted=is_weighted, device=device)
        self._names = [output.name for output in layout.outputs]
        self._dims = [output.table.embedding_dim for output in layout.outputs]
        self._keys = list(layout.keys)
        self._shards = [[list(stripes) for stripes in output.shards] for output in layout.outputs]
        # Of features with mean pooling: which of the lengths, key by key, add up to those of its bags.
        position = {key: at for at, key in enumerate(layout.keys)}
        self._means = [
            (at, [position[key] for key in output.length_keys])
            for at, output in enumerate(layout.outputs)
            if output.table.pooling == "mean"
        ]

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Pooled rows of the plan's features."""
        _check_keys(features, self._keys)
        pooled = self.tiers(features)
        return _whole_features(pooled, features, self._shards, self._names, self._dims, self._means)

    def embedding_bag_configs(self) -> list[EmbeddingBagConfig]:
        """The tables as they would be unsharded."""
        return [
            EmbeddingBagConfig(
                name=t.name,
                num_embeddings=t.num_embeddings,
                embedding_dim=t.embedding_dim,
                feature_names=list(features_of(t)),
                pooling=PoolingType.SUM if t.pooling == "sum" else PoolingType.MEAN,
            )
            for t in self.layout.plan.tables
        ]

    def is_weighted(self) -> bool:
        """Whether the KeyedJaggedTensor's weights multiply the rows."""
        return bool(self.tiers.is_weighted())

    @property
    def device(self) -> torch.device:
        """Where the tables are."""
        device: torch.device = self.tiers.device
        return device


# torch.fx does not look into these two: TorchRec's pipelines trace a model to find its sharded modules.
@torch.fx.wrap
def _check_keys(features: KeyedJaggedTensor, keys: list[str]) -> None:
    if list(features.keys()) != keys:
        raise BatchError(
            "the KeyedJaggedTensor does not have the keys of the plan's tier tables; remap it first: "
            f"PlanRemap(plan, rankings)(features). Its keys start with {', '.join(features.keys()[:4])}"
        )


@torch.fx.wrap
def _whole_features(
    pooled: KeyedTensor,
    features: KeyedJaggedTensor,
    shards: list[list[list[str]]],
    names: list[str],
    dims: list[int],
    means: list[tuple[int, list[int]]],
) -> KeyedTensor:
    """Stripes added up, column shards side by side, sums divided by the lengths of bags."""
    parts = pooled.to_dict()
    whole = [_added([parts[name] for name in stripes]) for output in shards for stripes in output]
    values = torch.cat(whole, 1)
    if means:
        lengths = features.lengths().view(len(features.keys()), -1)
        columns = list(values.split(dims, 1))
        for at, rows in means:
            length = lengths[rows].sum(0).clamp(min=1).to(values.dtype)  # an empty bag's sum stays 0
            columns[at] = columns[at] / length[:, None]
        values = torch.cat(columns, 1)
    return KeyedTensor(keys=names, length_per_key=dims, values=values, key_dim=1)


def _added(stripes: list[Tensor]) -> Tensor:
    return reduce(torch.add, stripes)


def _config(name: str, rows: int, width: int, keys: tuple[str, ...], bound: float) -> EmbeddingBagConfig:
    return EmbeddingBagConfig(
        name=name,
        num_embeddings=rows,
        embedding_dim=width,
        feature_names=list(keys),
        pooling=PoolingType.SUM,
        weight_init_max=bound,
        weight_init_min=-bound,
    )


def planned_collections(model: nn.Module) -> Iterator[tuple[str, PlannedEmbeddingBagCollection]]:
    """The model's planned collections, sharded or not, by their names."""
    for name, module in model.named_modules():
        if isinstance(module, PlannedEmbeddingBagCollection):
            yield name, module


def tier_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Parameters of the tier tables (replicated ones not), for `apply_optimizer_in_backward`.

    Replicated tables have plain gradients: give them to the optimizer of the model's dense parameters.
    """
    for _, module in planned_collections(model):
        for table in module.layout.tables:
            yield module.tiers.embedding_bags[table.name].weight


def sharding_plan(
    model: nn.Module, device: torch.device | str = "cpu", *, devices_per_node: int | None = None
) -> ShardingPlan:
    """TorchRec's ShardingPlan for a model's planned collections: give it to DistributedModelParallel.

    device            the kind that the processes have; a rank is a device of the plan
    devices_per_node  default: as torchrun's environment says
    """
    kind = torch.device(device).type
    found: dict[str, EmbeddingModuleShardingPlan] = {}
    for name, module in planned_collections(model):
        if isinstance(module.tiers, ShardedTierTables):
            raise InputError(f"{name} is sharded already; ask for the plan before DistributedModelParallel")
        path = f"{name}.tiers" if name else "tiers"
        plan = module.layout.plan
        if distributed.is_initialized() and distributed.get_world_size() != plan.num_devices:
            raise InputError(
                f"the plan is for {plan.num_devices} devices, but {distributed.get_world_size()} processes "
                "run; start as many, or make a plan for as many"
            )
        per_node = devices_per_node or get_local_size(plan.num_devices)
        found[path] = EmbeddingModuleShardingPlan(
            {
                table: parameter_sharding(content, kind, per_node)
                for table, content in module.layout.sharding().items()
            }
        )
    if not found:
        raise InputError("the model has no PlannedEmbeddingBagCollection; put one where its tables are")
    return ShardingPlan(plan=found)


def parameter_sharding(content: dict[str, Any], kind: str, per_node: int) -> ParameterSharding:
    """TorchRec's object for an entry of `PlanLayout.sharding`."""

    def placement(rank: int) -> _remote_device:
        return _remote_device(f"rank:{rank}/{kind}" + ("" if kind == "cpu" else f":{rank % per_node}"))

    shards = [
        ShardMetadata(shard_offsets=s["offsets"], shard_sizes=s["sizes"], placement=placement(s["rank"]))
        for s in content["shards"]
    ]
    return ParameterSharding(
        sharding_type=content["sharding_type"],
        compute_kernel=content["compute_kernel"],
        ranks=content["ranks"],
        sharding_spec=EnumerableShardingSpec(shards) if shards else None,
    )
