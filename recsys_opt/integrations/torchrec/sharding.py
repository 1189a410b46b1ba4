"""Hot and cold tables looked up side by side and summed where they are, before the output exchange.

TorchRec's table-wise sharding with one change: a piece's hot and cold tables, which are on one device and in
one launch of FBGEMM's fused lookup, give one output together. Exchanged as two, they would double the
all-to-all. Everything else (input exchange, kernels, fused optimizers, states) is TorchRec's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchrec.distributed.embedding_lookup import GroupedPooledEmbeddingsLookup
from torchrec.distributed.embedding_sharding import EmbeddingShardingInfo
from torchrec.distributed.embedding_types import GroupedEmbeddingConfig
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder, ShardedEmbeddingBagCollection
from torchrec.distributed.sharding.tw_sharding import TwPooledEmbeddingSharding
from torchrec.distributed.types import ParameterSharding, ShardingEnv, ShardingType
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from recsys_opt.integrations.plan_layout import PlanLayout, piece_output


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
        sums = [parts[t[0]] if len(t) == 1 else parts[t[0]] + parts[t[1]] for t in self._terms]
        return sums[0] if len(sums) == 1 else torch.cat(sums, 1)


class TierTables(EmbeddingBagCollection):  # type: ignore[misc]
    """A plan's tier tables as an EmbeddingBagCollection whose outputs are sums over the tiers.

    Takes what `PlanRemap` gives; the KeyedTensor has the columns of each piece under `piece_output` names.
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
                (output_name(layout, config.name, at), config.embedding_dim)
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


def output_name(layout: PlanLayout, table: str, feature: int) -> str:
    """Tier tables of one piece have the same output; a replicated table has its own."""
    piece = layout.piece_names.get(table)
    return layout.copy_outputs[table][feature] if piece is None else piece_output(piece, feature)


class _SummedLookup(GroupedPooledEmbeddingsLookup):  # type: ignore[misc]
    """TorchRec's lookup, its outputs summed over the tiers."""

    def __init__(self, slots: Sequence[Slot], **options: Any) -> None:
        super().__init__(**options)
        self._sum = SlotSum(slots)

    def forward(self, sparse_features: KeyedJaggedTensor) -> Tensor:
        """[B of all ranks, columns of this rank's slots]"""
        summed: Tensor = self._sum(super().forward(sparse_features))
        return summed


class SummedTableWiseSharding(TwPooledEmbeddingSharding):  # type: ignore[misc]
    """Table-wise sharding of pieces instead of tables."""

    def __init__(self, layout: PlanLayout, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._slots_per_rank = [
            summed_slots(
                [
                    (output_name(layout, table.name, at), table.local_cols)
                    for group in groups
                    for table in group.embedding_tables
                    for at in range(len(table.feature_names))
                ]
            )
            for groups in cast("list[list[GroupedEmbeddingConfig]]", self._grouped_embedding_configs_per_rank)
        ]

    def create_lookup(
        self, device: torch.device | None = None, fused_params: Any = None, feature_processor: Any = None
    ) -> _SummedLookup:
        """The lookup of this rank's tables."""
        return _SummedLookup(
            self._slots_per_rank[self._rank],
            grouped_configs=self._grouped_embedding_configs,
            pg=self._pg,
            device=device if device is not None else self._device,
            feature_processor=feature_processor,
            env=self._env,
        )

    def _dim_sum_per_rank(self) -> list[int]:
        return [sum(slot.width for slot in slots) for slots in self._slots_per_rank]

    def _emb_dim_per_rank_per_feature(self) -> list[list[int]]:
        return [[slot.width for slot in slots] for slots in self._slots_per_rank]

    def embedding_dims(self) -> list[int]:
        """Columns of all slots, rank by rank."""
        return [slot.width for slots in self._slots_per_rank for slot in slots]

    def embedding_names(self) -> list[str]:
        """Names of all slots, rank by rank."""
        return [slot.name for slots in self._slots_per_rank for slot in slots]

    def embedding_names_per_rank(self) -> list[list[str]]:
        """Names of each rank's slots."""
        return [[slot.name for slot in slots] for slots in self._slots_per_rank]

    def embedding_shard_metadata(self) -> list[None]:
        """Slots are whole: no column of theirs is elsewhere."""
        return [None for slots in self._slots_per_rank for _ in slots]


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
