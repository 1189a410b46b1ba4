"""torchrec's data types on recsys_opt's tables: KeyedJaggedTensor in, KeyedTensor out.

The only import of torchrec.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from recsys_opt.embeddings.collection import EmbeddingCollection
from recsys_opt.errors import InputError
from recsys_opt.tables import TableConfig

try:
    from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, PoolingType
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor
except (ImportError, OSError) as error:
    raise InputError(
        "recsys_opt.integrations.torchrec needs the package torchrec, which does not import here "
        f"({' '.join(str(error).split())[:200]}); run scripts/setup.sh"
    ) from error


class KeyedEmbeddingCollection(nn.Module):
    """An `EmbeddingCollection` in the place of torchrec's EmbeddingBagCollection.

    collection   the tables
    is_weighted  whether the KeyedJaggedTensor's weights multiply the rows, as torchrec's option of that name
    """

    def __init__(self, collection: EmbeddingCollection, *, is_weighted: bool = False) -> None:
        super().__init__()
        self.collection = collection
        self.is_weighted = is_weighted

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Pooled rows of the collection's features, under their names and in their order.

        The values go in without a copy where the features' keys are the collection's, in its order; other
        orders and further keys cost a permutation.
        """
        wanted = list(self.collection.feature_names)
        keys = list(features.keys())
        if keys != wanted:
            missing = [name for name in wanted if name not in keys]
            if missing:
                raise InputError(
                    f"the KeyedJaggedTensor lacks {', '.join(missing)}; its keys are {', '.join(keys)}"
                )
            features = features.permute([keys.index(name) for name in wanted])
        weights = features.weights_or_none() if self.is_weighted else None
        if self.is_weighted and weights is None:
            raise InputError("is_weighted is set, but the KeyedJaggedTensor has no weights")
        values = self.collection(features.values(), features.offsets(), weights)
        return KeyedTensor(
            keys=wanted, length_per_key=list(self.collection.feature_dims), values=values, key_dim=1
        )


def table_config(
    config: EmbeddingBagConfig, representation: str = "dense", options: Mapping[str, Any] | None = None
) -> TableConfig:
    """A table from torchrec's config, in the representation of your choice."""
    if config.data_type != DataType.FP32:
        raise InputError(f"table {config.name}: data_type is {config.data_type}; only FP32 is supported")
    if config.pooling not in (PoolingType.SUM, PoolingType.MEAN):
        raise InputError(f"table {config.name}: pooling is {config.pooling}; it must be SUM or MEAN")
    return TableConfig(
        config.name,
        config.num_embeddings,
        config.embedding_dim,
        tuple(config.feature_names),
        pooling="sum" if config.pooling == PoolingType.SUM else "mean",
        representation=representation,
        options=dict(options or {}),
    )


def keyed_collection(
    configs: Sequence[EmbeddingBagConfig],
    *,
    is_weighted: bool = False,
    representations: Mapping[str, tuple[str, Mapping[str, Any]]] | None = None,
    device: torch.device | str | None = None,
) -> KeyedEmbeddingCollection:
    """The module for torchrec's configs.

    representations  table name -> (representation, its options); dense for the others
    """
    chosen = dict(representations or {})
    unknown = sorted(set(chosen) - {config.name for config in configs})
    if unknown:
        names = ", ".join(config.name for config in configs)
        raise InputError(f"representations names {', '.join(unknown)}, but the tables are {names}")
    tables = [table_config(config, *chosen.get(config.name, ("dense", {}))) for config in configs]
    return KeyedEmbeddingCollection(EmbeddingCollection(tables, device=device), is_weighted=is_weighted)
