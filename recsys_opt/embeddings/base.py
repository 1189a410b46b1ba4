"""The one interface that every representation of an embedding table has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from recsys_opt.tables import TableConfig


class EmbeddingRepresentation(nn.Module, ABC):
    """How one table's rows are made. A subclass is one file, named in `recsys_opt.embeddings.registry`."""

    num_embeddings: int
    embedding_dim: int

    @classmethod
    @abstractmethod
    def from_config(
        cls,
        config: TableConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """The module for a table; raises InputError when `config.options` does not fit."""

    @abstractmethod
    def forward(
        self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        """Pooled rows, with the arguments and meaning of `nn.EmbeddingBag.forward`.

        input               [N] or [B, L] int32 or int64 ids
        offsets             [B] starts of the bags, with a 1-D input
        per_sample_weights  same shape as `input`; sum pooling only
        returns             [B, embedding_dim]
        """

    @classmethod
    def forward_group(
        cls,
        bags: Sequence[Self],
        indices: Tensor,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        """Pooled rows of several tables of this representation at once, in torchrec's memory order.

        bags                T modules (one may occur twice, when features share a table)
        indices             [N] ids, feature-major
        offsets             [T * B + 1] bag t * B + b is indices[offsets[t * B + b] : offsets[t * B + b + 1]];
                            None: one id per bag, N = T * B
        per_sample_weights  [N]
        returns             [B, sum of the bags' embedding_dim]

        A representation with a kernel for many tables overrides this with one launch.
        """
        if offsets is None:
            offsets = torch.arange(indices.numel() + 1, dtype=indices.dtype, device=indices.device)
        batch = (offsets.numel() - 1) // len(bags)
        outputs = []
        for t, bag in enumerate(bags):
            bounds = offsets[t * batch : (t + 1) * batch + 1]
            start, stop = int(bounds[0]), int(bounds[-1])
            weights = None if per_sample_weights is None else per_sample_weights[start:stop]
            outputs.append(bag(indices[start:stop], bounds[:-1] - bounds[0], weights))
        return torch.cat(outputs, dim=1)

    def settled_options(self) -> dict[str, Any]:
        """Options that the module chose itself; a saved model names them, so that defaults may change."""
        return {}

    @abstractmethod
    def materialize(self) -> Tensor:
        """The whole table, [num_embeddings, embedding_dim]."""

    @abstractmethod
    def storage_bytes(self) -> int:
        """Bytes of the parameters that make the rows."""

    @abstractmethod
    def flops_per_lookup(self) -> int:
        """Floating-point operations (a multiply-add is 2) to make one row, without reuse between rows."""
