"""The plain embedding table: one stored row per id."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from recsys_opt import ops
from recsys_opt.embeddings.bag_arguments import to_bags
from recsys_opt.embeddings.base import EmbeddingRepresentation
from recsys_opt.errors import InputError
from recsys_opt.tables import Pooling, TableConfig


class DenseEmbeddingBag(EmbeddingRepresentation, nn.EmbeddingBag):
    """A dense table with the rows of a bag summed or averaged.

    Initialised uniformly in +-1/sqrt(num_embeddings), as the DLRM repository does. The gradient of `weight`
    is a sparse COO tensor with one entry per looked-up id: its size follows the batch, not the table. It is
    an nn.EmbeddingBag with sparse=True, by which DistributedDataParallel knows that its gradient is sparse.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        mode: Pooling = "sum",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if mode not in ("sum", "mean"):
            raise InputError(f"mode = {mode!r}; it must be 'sum' or 'mean'")
        if num_embeddings < 1 or embedding_dim < 1:
            raise InputError(
                f"num_embeddings = {num_embeddings}, embedding_dim = {embedding_dim}; both must be at least 1"
            )
        nn.EmbeddingBag.__init__(
            self, num_embeddings, embedding_dim, mode=mode, sparse=True, dtype=dtype, device=device
        )

    def reset_parameters(self) -> None:
        """Draws the table anew, from torch's global generator."""
        bound = 1.0 / math.sqrt(self.num_embeddings)
        nn.init.uniform_(self.weight, -bound, bound)

    @classmethod
    def from_config(
        cls,
        config: TableConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """The module for a table."""
        if config.options:
            raise InputError(
                f"table {config.name}: a dense table has no options, but got {', '.join(config.options)}; "
                "remove them, or choose another representation"
            )
        return cls(
            config.num_embeddings, config.embedding_dim, mode=config.pooling, dtype=dtype, device=device
        )

    def forward(
        self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        """Pooled rows; see `EmbeddingRepresentation.forward`."""
        indices, bounds, weights = to_bags(input, offsets, per_sample_weights)
        return DenseEmbeddingBag.forward_group([self], indices, bounds, weights)

    @classmethod
    def forward_group(
        cls,
        bags: Sequence[Self],
        indices: Tensor,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        """Pooled rows of many tables in one launch; see `EmbeddingRepresentation.forward_group`."""
        bounds = None if offsets is None else offsets.to(torch.int64)
        return ops.dense_bag(
            [bag.weight for bag in bags],
            indices,
            bounds,
            per_sample_weights,
            [bag.mode == "mean" for bag in bags],
        )

    def materialize(self) -> Tensor:
        """The whole table, [num_embeddings, embedding_dim]."""
        return self.weight.detach()

    def storage_bytes(self) -> int:
        """Bytes of the stored rows."""
        return self.weight.numel() * self.weight.element_size()

    def flops_per_lookup(self) -> int:
        """Additions to pool one row."""
        return self.embedding_dim

    def extra_repr(self) -> str:
        """Shape and pooling."""
        return f"{self.num_embeddings}, {self.embedding_dim}, mode={self.mode!r}"
