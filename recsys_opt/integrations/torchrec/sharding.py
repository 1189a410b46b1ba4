"""Hot and cold tables looked up side by side and summed where they are, before the output exchange.

TorchRec's table-wise sharding with two changes. A piece's hot and cold tables, which are on one device and in
one launch of FBGEMM's fused lookup, give one output together: exchanged as two, they would double the
all-to-all. And the stripes of a table that are the devices of one node are summed in the node, by the output
exchange of TorchRec's table-row-wise sharding. Everything else (input exchange, kernels, fused optimizers,
states) is TorchRec's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed import ProcessGroup
from torchrec.distributed.comm import intra_and_cross_node_pg
from torchrec.distributed.embedding_lookup import GroupedPooledEmbeddingsLookup
from torchrec.distributed.embedding_sharding import (
    BaseEmbeddingDist,
    EmbeddingShardingContext,
    EmbeddingShardingInfo,
)
from torchrec.distributed.embedding_types import GroupedEmbeddingConfig
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder, ShardedEmbeddingBagCollection
from torchrec.distributed.sharding.tw_sharding import TwPooledEmbeddingSharding
from torchrec.distributed.sharding.twrw_sharding import TwRwPooledEmbeddingDist
from torchrec.distributed.types import Awaitable, ParameterSharding, ShardingEnv, ShardingType
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from recsys_opt.errors import InputError
from recsys_opt.integrations.plan_layout import PlanLayout, output_name


@dataclass(frozen=True)
class Slot:
    """A summed output: its name, its columns, and where the columns of each tier start in the lookup's."""

    name: str
    width: int
    starts: tuple[int, ...]


def summed_slots(outputs: Sequence[tuple[str, int]]) -> list[Slot]:
    """Slots in the order of first appearance; equal names are summed."""
    starts: dict[str, list[int]] = {}
    widths: dict[str, int] = {}
    at = 0
    for name, width in outputs:
        starts.setdefault(name, []).append(at)
        widths[name] = width
        at += width
    return [Slot(name, widths[name], tuple(s)) for name, s in starts.items()]


class SlotSum(nn.Module):
    """[B, columns of all tiers] -> [B, columns of all slots], in as few pieces as their order allows."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        super().__init__()
        runs: list[tuple[list[int], int]] = []  # starts of each term, width
        for slot in slots:
            before = runs[-1] if runs else None
            if before and [s + before[1] for s in before[0]] == list(slot.starts):
                runs[-1] = (before[0], before[1] + slot.width)
            else:
                runs.append((list(slot.starts), slot.width))
        # Where to cut the input: every run's terms, in the order in which they lie there.
        terms = sorted((s, width, at) for at, (starts, width) in enumerate(runs) for s in starts)
        self._splits = [width for _, width, _ in terms]
        self._terms = [[i for i, term in enumerate(terms) if term[2] == at] for at in range(len(runs))]

    def forward(self, values: Tensor) -> Tensor:
        """The sums."""
        if len(self._splits) < 2:
            return values
        parts = values.split(self._splits, 1)
        sums = [reduce(torch.add, (parts[i] for i in terms)) for terms in self._terms]
        return sums[0] if len(sums) == 1 else torch.cat(sums, 1)


class TierTables(EmbeddingBagCollection):  # type: ignore[misc]
    """A plan's tier tables as an EmbeddingBagCollection whose outputs are sums over the tiers.

    Takes what `PlanRemap` gives; the KeyedTensor has the columns of each piece, or of the pieces that a node
    sums, under `output_name` names.
    """

    def __init__(
        self,
        layout: PlanLayout,
        tables: list[EmbeddingBagConfig],
        *,
        is_weighted: bool = False,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(tables=tables, is_weighted=is_weighted, device=device)
        self.layout = layout
        self._slots = summed_slots(
            [
                (summed_name(layout, config.name, at), config.embedding_dim)
                for config in tables
                for at in range(len(config.feature_names))
            ]
        )
        self._sum = SlotSum(self._slots)

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Pooled and summed rows, on one device (sharded, `ShardedTierTables` does this)."""
        return KeyedTensor(
            keys=[slot.name for slot in self._slots],
            length_per_key=[slot.width for slot in self._slots],
            values=self._sum(super().forward(features).values()),
        )


def summed_name(layout: PlanLayout, table: str, feature: int) -> str:
    """Tables that are summed have the same output; a replicated table has its own."""
    summed_as = layout.summed_as.get(table)
    return layout.copy_outputs[table][feature] if summed_as is None else output_name(summed_as, feature)


class _SummedLookup(GroupedPooledEmbeddingsLookup):  # type: ignore[misc]
    """TorchRec's lookup, its outputs summed over the tiers."""

    def __init__(self, slots: Sequence[Slot], **options: Any) -> None:
        super().__init__(**options)
        self._sum = SlotSum(slots)

    def forward(self, sparse_features: KeyedJaggedTensor) -> Tensor:
        """[B of all ranks, columns of this rank's slots]"""
        summed: Tensor = self._sum(super().forward(sparse_features))
        return summed


class _Both(Awaitable[Tensor]):  # type: ignore[misc]
    """Columns of two exchanges side by side."""

    def __init__(self, parts: Sequence[Awaitable[Tensor]]) -> None:
        super().__init__()
        self._parts = parts

    def _wait_impl(self) -> Tensor:
        return torch.cat([part.wait() for part in self._parts], 1)


class SummedDist(BaseEmbeddingDist):  # type: ignore[misc]
    """Pooled rows to the ranks whose samples they are of.

    of_devices  of the first `columns` columns: TorchRec's all-to-all
    of_nodes    of the others, whose sums over a node's ranks are wanted: reduced in the node, then sent on
                between nodes
    """

    def __init__(
        self,
        of_devices: BaseEmbeddingDist,
        columns: int,
        of_nodes: BaseEmbeddingDist | None = None,
        per_node: int = 1,
    ) -> None:
        super().__init__()
        self._of_devices, self._of_nodes = of_devices, of_nodes
        self._columns, self._per_node = columns, per_node

    def forward(self, local_embs: Tensor, sharding_ctx: EmbeddingShardingContext) -> Awaitable[Tensor]:
        """[B of all ranks, columns of this rank] -> [B of this rank, columns of all ranks and nodes]"""
        if self._of_nodes is None:
            return self._of_devices(local_embs, sharding_ctx)
        mine, of_node = local_embs.split([self._columns, local_embs.shape[1] - self._columns], 1)
        # The reduction wants samples by the place of their rank in its node first, then by node.
        samples = of_node.split(sharding_ctx.batch_size_per_rank, 0)
        g = self._per_node
        of_node = torch.cat([part for place in range(g) for part in samples[place::g]], 0)
        return _Both(
            [self._of_devices(mine.contiguous(), sharding_ctx), self._of_nodes(of_node, sharding_ctx)]
        )


class SummedTableWiseSharding(TwPooledEmbeddingSharding):  # type: ignore[misc]
    """Table-wise sharding of pieces instead of tables."""

    def __init__(self, layout: PlanLayout, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._slots_per_rank: list[list[Slot]] = []  # without those that nodes sum
        self._node_slots_per_rank: list[list[Slot]] = []  # the same ones on all ranks of a node
        self._per_node = layout.devices_per_node
        grouped: list[list[GroupedEmbeddingConfig]] = self._grouped_embedding_configs_per_rank
        for rank, groups in enumerate(grouped):
            slots = summed_slots(
                [
                    (summed_name(layout, table.name, at), table.local_cols)
                    for group in groups
                    for table in group.embedding_tables
                    for at in range(len(table.feature_names))
                ]
            )
            named = {slot.name: slot for slot in slots}
            of_node = layout.node_outputs[rank // self._per_node]
            self._slots_per_rank.append([slot for slot in slots if slot.name not in of_node])
            self._node_slots_per_rank.append([named[name] for name in of_node])
        self._groups = self._node_groups() if any(self._node_slots_per_rank) else None

    def _node_groups(self) -> tuple[ProcessGroup, ProcessGroup]:
        """The processes of this node, and those of the other nodes with the same place in theirs."""
        within, across = intra_and_cross_node_pg(self._device, backend=distributed.get_backend(self._pg))
        if within is None or within.size() != self._per_node:
            raise InputError(
                f"the plan's hardware has {self._per_node} devices in a node, but {within and within.size()} "
                "processes run in each (LOCAL_WORLD_SIZE); start as many, or make a plan for as many"
            )
        return within, across

    @property
    def _slots_per_node(self) -> list[list[Slot]]:
        return self._node_slots_per_rank[:: self._per_node]

    def create_lookup(
        self, device: torch.device | None = None, fused_params: Any = None, feature_processor: Any = None
    ) -> _SummedLookup:
        """The lookup of this rank's tables."""
        return _SummedLookup(
            self._slots_per_rank[self._rank] + self._node_slots_per_rank[self._rank],
            grouped_configs=self._grouped_embedding_configs,
            pg=self._pg,
            device=device if device is not None else self._device,
            feature_processor=feature_processor,
            env=self._env,
        )

    def create_output_dist(self, device: torch.device | None = None) -> SummedDist:
        """The output exchange."""
        of_devices = super().create_output_dist(device)
        if self._groups is None:
            return SummedDist(of_devices, sum(_widths(self._slots_per_rank[self._rank])))
        within, across = self._groups
        of_nodes = TwRwPooledEmbeddingDist(
            rank=self._rank,
            cross_pg=across,
            intra_pg=within,
            dim_sum_per_node=[sum(_widths(slots)) for slots in self._slots_per_node],
            emb_dim_per_node_per_feature=[_widths(slots) for slots in self._slots_per_node],
            device=device if device is not None else self._device,
            qcomm_codecs_registry=self.qcomm_codecs_registry,
        )
        columns = sum(_widths(self._slots_per_rank[self._rank]))
        return SummedDist(of_devices, columns, of_nodes, self._per_node)

    def _dim_sum_per_rank(self) -> list[int]:
        return [sum(_widths(slots)) for slots in self._slots_per_rank]

    def _emb_dim_per_rank_per_feature(self) -> list[list[int]]:
        return [_widths(slots) for slots in self._slots_per_rank]

    def _all_slots(self) -> list[Slot]:
        """In the order of `SummedDist`'s output: rank by rank, then node by node."""
        return [slot for slots in (*self._slots_per_rank, *self._slots_per_node) for slot in slots]

    def embedding_dims(self) -> list[int]:
        """Columns of all slots."""
        return _widths(self._all_slots())

    def embedding_names(self) -> list[str]:
        """Names of all slots."""
        return [slot.name for slot in self._all_slots()]

    def embedding_shard_metadata(self) -> list[None]:
        """Slots are whole: no column of theirs is elsewhere."""
        return [None for _ in self._all_slots()]


def _widths(slots: Sequence[Slot]) -> list[int]:
    return [slot.width for slot in slots]


class ShardedTierTables(ShardedEmbeddingBagCollection):  # type: ignore[misc]
    """TorchRec's sharded collection with `SummedTableWiseSharding` where it has table-wise sharding."""

    def __init__(self, module: TierTables, *arguments: Any, **options: Any) -> None:
        self.__dict__["layout"] = module.layout
        super().__init__(module, *arguments, **options)

    def create_embedding_bag_sharding(
        self,
        sharding_infos: list[EmbeddingShardingInfo],
        env: ShardingEnv,
        device: torch.device | None = None,
        permute_embeddings: bool = False,
        qcomm_codecs_registry: Any = None,
    ) -> Any:
        """The sharding of tables of one type."""
        kind = sharding_infos[0].param_sharding.sharding_type
        if kind != ShardingType.TABLE_WISE.value:
            return ShardedEmbeddingBagCollection.create_embedding_bag_sharding(
                sharding_infos, env, device, permute_embeddings, qcomm_codecs_registry
            )
        layout: PlanLayout = self.__dict__["layout"]
        return SummedTableWiseSharding(
            layout, sharding_infos, env, device, qcomm_codecs_registry=qcomm_codecs_registry
        )

    @property
    def device(self) -> torch.device:
        """Where the tables are, also on a process that has none."""
        return self._device or torch.device("cpu")

    @property
    def unsharded_module_type(self) -> type[TierTables]:
        """What this is the sharded form of."""
        return TierTables


class TierTablesSharder(EmbeddingBagCollectionSharder):  # type: ignore[misc]
    """Give it to DistributedModelParallel beside the sharders of the model's other tables."""

    def shard(
        self,
        module: TierTables,
        params: dict[str, ParameterSharding],
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> ShardedTierTables:
        """The sharded module."""
        return ShardedTierTables(
            module,
            params,
            env,
            fused_params=self.fused_params,
            device=device,
            qcomm_codecs_registry=self.qcomm_codecs_registry,
            module_fqn=module_fqn,
        )

    @property
    def module_type(self) -> type[TierTables]:
        """What it shards."""
        return TierTables

    @property
    def sharded_module_type(self) -> type[ShardedTierTables]:
        """What it makes."""
        return ShardedTierTables
