"""A dense table for serving: what a compressed table becomes at `freeze("dense")`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys_opt.embeddings.bag_arguments import check_weighted, to_bags
from recsys_opt.embeddings.base import split_group
from recsys_opt.embeddings.dense import DenseEmbeddingBag
from recsys_opt.embeddings.fused_update import FusedUpdate
from recsys_opt.errors import InputError
from recsys_opt.tables import Pooling


class FrozenEmbeddingBag(DenseEmbeddingBag):
    """A dense table without gradients, in any floating-point type, with all of nn.EmbeddingBag's pooling.

    The output has the table's type, as nn.EmbeddingBag's.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        mode: Pooling = "sum",
        padding_idx: int | None = None,
        include_last_offset: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, mode=mode, dtype=dtype, device=device)
        self.padding_idx, self.include_last_offset = padding_idx, include_last_offset
        self.weight.requires_grad_(False)

    @classmethod
    def of_rows(cls, rows: Tensor, **options: Any) -> Self:
        """The table of these rows, without a copy, in evaluation mode; options: __init__'s."""
        bag = cls(rows.shape[0], rows.shape[1], device="meta", **options)
        bag.weight = nn.Parameter(rows.detach(), requires_grad=False)
        return bag.eval()

    def forward(
        self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        """Pooled rows; see `EmbeddingRepresentation.forward`."""
        # Starts of bags go on as they are: F.embedding_bag does not need the end of the last.
        starts = not self.include_last_offset and offsets is not None and offsets.shape[0] > 0
        ids, bounds, weights = to_bags(input, offsets, per_sample_weights, starts or self.include_last_offset)
        return self._pooled(ids, bounds, weights, last=not starts)

    @classmethod
    def forward_group(
        cls,
        bags: Sequence[Self],
        indices: Tensor,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        """Pooled rows of several tables; see `EmbeddingRepresentation.forward_group`."""
        outputs = [
            bag._pooled(ids, bounds, weights)
            for bag, ids, bounds, weights in split_group(bags, indices, offsets, per_sample_weights)
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)

    def fuse_update(self, update: FusedUpdate | None) -> None:
        """Refused: the table is for serving."""
        raise InputError("a frozen table is not trained; fuse updates before freeze")

    def _pooled(self, ids: Tensor, bounds: Tensor, weights: Tensor | None, last: bool = True) -> Tensor:
        if weights is not None:
            check_weighted([self.mode])
        return F.embedding_bag(
            ids,
            self.weight,
            bounds.to(ids.dtype),
            mode=self.mode,
            per_sample_weights=None if weights is None else weights.to(self.weight.dtype),
            include_last_offset=last,
            padding_idx=self.padding_idx,
        )

    def extra_repr(self) -> str:
        """Shape, pooling and type."""
        return f"{super().extra_repr()}, {self.weight.dtype}"
