"""recsys_opt's tables inside torchrec's models: KeyedJaggedTensor in, KeyedTensor out.

`with_tensor_trains` turns tables of an EmbeddingBagCollection into tensor trains, `keyed_collection` starts
from its configs. What either returns goes where torchrec's models take an EmbeddingBagCollection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingBagCollectionInterface
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from recsys_opt.embeddings.collection import EmbeddingCollection
from recsys_opt.embeddings.dense import DenseEmbeddingBag
from recsys_opt.embeddings.tt import TTEmbeddingBag
from recsys_opt.errors import BatchError, InputError
from recsys_opt.tables import TableConfig


class KeyedEmbeddingCollection(EmbeddingBagCollectionInterface):  # type: ignore[misc]
    """An `EmbeddingCollection` in the place of torchrec's EmbeddingBagCollection, whose interface it has.

    collection   the tables
    is_weighted  whether the KeyedJaggedTensor's weights multiply the rows, as torchrec's option of that name

    Parameters are named as torchrec names them, so that states of dense tables go both ways:
    `embedding_bags.<table>.weight` of a dense table, `embedding_bags.<table>.cores.<k>` of a tensor train.
    The gradients of dense tables are sparse: SGD, Adagrad and SparseAdam take them, Adam does not.
    torchrec.fx traces a model that holds one with leaf_modules=["KeyedEmbeddingCollection"].
    """

    def __init__(self, collection: EmbeddingCollection, *, is_weighted: bool = False) -> None:
        super().__init__()
        self.embedding_bags = collection.tables
        self._is_weighted = is_weighted
        # Not a submodule: its tables are this module's already, under torchrec's name.
        self.__dict__["collection"] = collection

    collection: EmbeddingCollection

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Pooled rows of the collection's features, under their names and in their order.

        The values go in without a copy where the features' keys are the collection's, in its order; other
        orders and further keys cost a permutation.
        """
        wanted = list(self.collection.feature_names)
        keys = list(features.keys())
        if features.variable_stride_per_key():
            raise BatchError(
                "the KeyedJaggedTensor has a batch size for each key; give every key the same batch size"
            )
        if keys != wanted:
            missing = [name for name in wanted if name not in keys]
            if missing:
                raise BatchError(
                    f"the KeyedJaggedTensor lacks {', '.join(missing)}; its keys are {', '.join(keys)}"
                )
            features = features.permute([keys.index(name) for name in wanted])
        weights = features.weights_or_none() if self._is_weighted else None
        if self._is_weighted and weights is None:
            raise BatchError(
                "the collection is weighted, but the KeyedJaggedTensor has no weights; give it weights, or "
                "build the collection with is_weighted=False"
            )
        values = self.collection(features.values(), features.offsets(), weights)
        return KeyedTensor(
            keys=wanted, length_per_key=list(self.collection.feature_dims), values=values, key_dim=1
        )

    def embedding_bag_configs(self) -> list[EmbeddingBagConfig]:
        """The tables as torchrec describes them."""
        return [
            EmbeddingBagConfig(
                name=config.name,
                num_embeddings=config.num_embeddings,
                embedding_dim=config.embedding_dim,
                feature_names=list(config.feature_names),
                pooling=PoolingType.SUM if config.pooling == "sum" else PoolingType.MEAN,
            )
            for config in self.collection.configs
        ]

    def is_weighted(self) -> bool:
        """Whether the KeyedJaggedTensor's weights multiply the rows."""
        return self._is_weighted

    @property
    def device(self) -> torch.device:
        """Where the tables are."""
        return next(self.embedding_bags.parameters()).device


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


def with_tensor_trains(
    source: EmbeddingBagCollection, tables: Mapping[str, Mapping[str, Any]], *, fit: bool = True
) -> KeyedEmbeddingCollection:
    """`source` with some of its tables as tensor trains; the others keep their very parameters.

    tables  table name -> options of its `TTEmbeddingBag`: tt_ranks, and shapes other than the defaults
    fit     the cores are fitted to the table's rows (TT-SVD); otherwise they start anew

    Example::

        model = torchrec.models.dlrm.DLRM(EmbeddingBagCollection(configs), 13, [512, 16], [512, 1])
        arch = model.sparse_arch
        arch.embedding_bag_collection = with_tensor_trains(
            arch.embedding_bag_collection, {"t_cat_2": {"tt_ranks": 32}, "t_cat_11": {"tt_ranks": 16}}
        )
        for table in ("t_cat_2", "t_cat_11"):
            print(table, arch.embedding_bag_collection.collection.table(table).fit_error)
    """
    result = keyed_collection(
        source.embedding_bag_configs(),
        is_weighted=source.is_weighted(),
        representations={name: ("tt", options) for name, options in tables.items()},
        device="meta",
    )
    for config in result.collection.configs:
        weight, table = source.embedding_bags[config.name].weight, result.collection.table(config.name)
        if isinstance(table, DenseEmbeddingBag):
            table.weight = weight
            continue
        assert isinstance(table, TTEmbeddingBag)
        if not fit:
            table.to_empty(device=weight.device)
            table.reset_parameters()
            continue
        if weight.is_meta:
            raise InputError(
                f"table {config.name} is on the meta device: it has no rows to fit cores to; use fit=False"
            )
        fitted = TTEmbeddingBag.from_pretrained(
            weight.detach(),
            table.tt_ranks[1:-1],
            tt_p_shapes=table.tt_p_shapes,
            tt_q_shapes=table.tt_q_shapes,
            mode=config.pooling,
        )
        result.embedding_bags.add(config.name, fitted)
    return result
