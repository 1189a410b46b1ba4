"""FBGEMM's fused dense tables on the CPU, as the representation "fbgemm".

One SplitTableBatchedEmbeddingBagsCodegen holds the rows of all tables that are looked up together and updates
them in the backward pass (exact SGD or exact row-wise Adagrad). The only import of fbgemm_gpu.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from recsys_opt.embeddings.base import EmbeddingRepresentation
from recsys_opt.embeddings.fused_update import FusedUpdate, FusesUpdate
from recsys_opt.errors import InputError
from recsys_opt.tables import Pooling, TableConfig

try:
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import (
        BoundsCheckMode,
        EmbeddingLocation,
        PoolingMode,
    )
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )
except (ImportError, OSError) as error:
    raise InputError(
        "the representation 'fbgemm' needs the package fbgemm-gpu-cpu, which does not import here "
        f"({' '.join(str(error).split())[:200]}); run scripts/setup.sh, or choose 'dense'"
    ) from error


@dataclass
class _Fused:
    """Tables in one FBGEMM module. Not an nn.Module: the weights belong to the tables' own modules."""

    features: tuple[FBGEMMEmbeddingBag, ...]
    module: Any
    learning_rate: float


class FBGEMMEmbeddingBag(EmbeddingRepresentation, FusesUpdate):
    """A dense fp32 table whose rows FBGEMM looks up and updates; starts as `DenseEmbeddingBag` does.

    `weight` [num_embeddings, embedding_dim] is a buffer, not a parameter: the backward pass changes it. The
    first lookup moves it into the storage that all tables of its group share.
    """

    stores_rows = True
    weight: Tensor

    _update: FusedUpdate

    def __init__(self, num_embeddings: int, embedding_dim: int, *, mode: Pooling = "sum") -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.mode = num_embeddings, embedding_dim, mode
        self.register_buffer("weight", torch.empty(num_embeddings, embedding_dim))
        bound = 1.0 / math.sqrt(num_embeddings)
        nn.init.uniform_(self.weight, -bound, bound)
        self._update = FusedUpdate("sgd", 0.0)  # until fuse_update
        self._fused: _Fused | None = None

    @classmethod
    def from_config(
        cls,
        config: TableConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """The module for a table; fp32 on the CPU, embedding_dim a multiple of 4, no options."""
        where = f"table {config.name}: the representation 'fbgemm'"
        if config.options:
            raise InputError(f"{where} has no options, but got {', '.join(config.options)}; remove them")
        if config.embedding_dim % 4:
            raise InputError(f"{where} needs an embedding_dim that 4 divides, not {config.embedding_dim}")
        if torch.device(device or "cpu").type != "cpu" or dtype not in (None, torch.float32):
            raise InputError(f"{where} is fp32 on the CPU, not {dtype or 'fp32'} on {device or 'cpu'}")
        return cls(config.num_embeddings, config.embedding_dim, mode=config.pooling)

    def forward(
        self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        """Pooled rows; see `EmbeddingRepresentation.forward`."""
        if (input.dim() == 2) == (offsets is not None) or input.dim() not in (1, 2):
            raise InputError("the ids must be [N] with offsets, or [B, L] without")
        fixed = torch.arange(input.shape[0]) * input.shape[-1]
        starts = fixed if offsets is None else offsets.to(torch.int64)
        weights = None if per_sample_weights is None else per_sample_weights.reshape(-1)
        features = self._fused.features if self._fused else (self,)
        # In the fused module the other tables' bags are empty.
        before = features.index(self)
        bounds = torch.cat(
            [
                starts.new_zeros(before * len(starts)),
                starts,
                starts.new_full(((len(features) - before - 1) * len(starts) + 1,), input.numel()),
            ]
        )
        output = self.forward_group(features, input.reshape(-1), bounds, weights)
        first = sum(bag.embedding_dim for bag in features[:before])
        return output[:, first : first + self.embedding_dim]

    @classmethod
    def forward_group(
        cls,
        bags: Sequence[FBGEMMEmbeddingBag],
        indices: Tensor,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        """Pooled rows of many tables in one launch; see `EmbeddingRepresentation.forward_group`."""
        if offsets is None:
            offsets = torch.arange(indices.numel() + 1)
        if torch.is_inference_mode_enabled():
            # FBGEMM's operators have no kernel there, and what it made would not take updates afterwards.
            with torch.inference_mode(False), torch.no_grad():
                return cls.forward_group(bags, indices, offsets, per_sample_weights)
        for bag in bags:
            bag.refuse_lost_updates()
        fused = bags[0]._fused
        if fused is None or fused.features != tuple(bags):
            fused = _fuse(tuple(bags))
        if (rate := bags[0]._update.learning_rate) != fused.learning_rate:
            fused.module.set_learning_rate(rate)
            fused.learning_rate = rate
        output: Tensor = fused.module(
            indices.to(torch.int64), offsets.to(torch.int64), per_sample_weights=per_sample_weights
        )
        return output

    @property
    def learns(self) -> bool:
        """Always: FBGEMM's backward pass is an update."""
        return True

    def fuse_update(self, update: FusedUpdate | None) -> None:
        """Chooses the update rule, "sgd" or "rowwise_adagrad"; see `FusesUpdate.fuse_update`."""
        if update is None or update.algorithm not in ("sgd", "rowwise_adagrad") or update.weight_decay:
            raise InputError(
                "an fbgemm table updates itself by 'sgd' or 'rowwise_adagrad' without weight decay, not by "
                f"{update}"
            )
        old = (self._update.algorithm, self._update.eps)
        if self._fused is not None and (update.algorithm, update.eps) != old:
            raise InputError("the update rule of an fbgemm table is chosen before its first lookup")
        self._update = update

    def update_state(self) -> dict[str, Tensor]:
        """Row-wise Adagrad's sums of squares, [num_embeddings], as "weight"; empty for SGD."""
        if self._update.algorithm == "sgd":
            return {}
        fused = self._fused or _fuse((self,))
        return {"weight": fused.module.split_optimizer_states()[_tables(fused.features).index(self)][0]}

    def materialize(self) -> Tensor:
        """The whole table, [num_embeddings, embedding_dim]."""
        return self.weight

    def storage_bytes(self) -> int:
        """Bytes of the stored rows."""
        return self.weight.numel() * self.weight.element_size()

    def flops_per_lookup(self) -> int:
        """Additions to pool one row."""
        return self.embedding_dim

    def extra_repr(self) -> str:
        """Shape and pooling."""
        return f"{self.num_embeddings}, {self.embedding_dim}, mode={self.mode!r}"


def _tables(features: tuple[FBGEMMEmbeddingBag, ...]) -> list[FBGEMMEmbeddingBag]:
    """The features' tables, each once."""
    return list(dict.fromkeys(features))


def _alike(a: FusedUpdate, b: FusedUpdate) -> bool:
    return (a.algorithm, a.learning_rate, a.eps) == (b.algorithm, b.learning_rate, b.eps)


def _fuse(features: tuple[FBGEMMEmbeddingBag, ...]) -> _Fused:
    """Moves the features' tables, with their state, into one FBGEMM module; the rows keep their values."""
    tables = _tables(features)
    update, mode = tables[0]._update, tables[0].mode
    if any(t.mode != mode or not _alike(t._update, update) for t in tables):
        raise InputError("fbgemm tables that are looked up together need one pooling and one update rule")
    states = [t.update_state() if t._fused else {} for t in tables]
    adagrad = update.algorithm == "rowwise_adagrad"
    module = SplitTableBatchedEmbeddingBagsCodegen(
        [(t.num_embeddings, t.embedding_dim, EmbeddingLocation.HOST, ComputeDevice.CPU) for t in tables],
        feature_table_map=[tables.index(f) for f in features],
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD if adagrad else EmbOptimType.EXACT_SGD,
        learning_rate=update.learning_rate,
        eps=update.eps,
        pooling_mode=PoolingMode.SUM if mode == "sum" else PoolingMode.MEAN,
        bounds_check_mode=BoundsCheckMode.FATAL,
        device=torch.device("cpu"),
    )
    fused = _Fused(features, module, update.learning_rate)
    for k, table in enumerate(tables):
        rows = module.split_embedding_weights()[k]
        rows.copy_(table.weight)
        if states[k]:
            module.split_optimizer_states()[k][0].copy_(states[k]["weight"])
        table.weight, table._fused = rows, fused
    return fused
