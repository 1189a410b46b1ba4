"""A tensor train for serving, most of a lookup's work done beforehand: what `freeze("prefix")` makes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from recsys_opt import ops
from recsys_opt.allocator import empty_in_huge_pages
from recsys_opt.embeddings.bag_arguments import (
    POOLING_MODES,
    check_call,
    check_mode,
    check_weighted,
    padding_indices,
)
from recsys_opt.embeddings.base import EmbeddingRepresentation
from recsys_opt.embeddings.tt_rows import table_rows
from recsys_opt.errors import BatchError, InputError
from recsys_opt.ops.bags import bounds_of_bags
from recsys_opt.tables import Pooling, TableConfig

_TILE = 16


def tile_of(left: int, right: int) -> tuple[int, int]:
    """The tile of a row of left x right columns: of 16 numbers where that divides them, else the row."""
    for t in (16, 8, 4, 2, 1):
        if right % t == 0 and left % (_TILE // t) == 0:
            return _TILE // t, t
    return left, right


def steps_per_lane(dtype: torch.dtype) -> int:
    """Numbers of a bond that lie side by side: dot products of bf16 take two at once."""
    return 2 if dtype == torch.bfloat16 else 1


def packed(core: Tensor, tile: int, dtype: torch.dtype) -> Tensor:
    """A core [n, q, r] as the kernels take it: [n, q / tile, r / s, tile, s]; r is filled up with zeros."""
    n, q, r = core.shape
    s = steps_per_lane(dtype)
    core = nn.functional.pad(core, (0, -r % s))
    order = core.reshape(n, q // tile, tile, core.shape[2] // s, s).permute(0, 1, 3, 2, 4)
    return empty_in_huge_pages(order.shape, dtype, order.device).copy_(order)


def unpacked(core: Tensor) -> Tensor:
    """What `packed` was made of, [n, q, r]."""
    n, tiles, steps, tile, s = core.shape
    return core.permute(0, 1, 3, 2, 4).reshape(n, tiles * tile, steps * s)


class FrozenPrefixBag(EmbeddingRepresentation):
    """A tensor train of two cores, laid out for lookups: no gradients, and nothing to train.

    num_embeddings, embedding_dim  rows and columns
    rank                           of the bond between the cores
    p_shapes, q_shapes             row and column factors of the cores, two each; p_shapes[0] is large
    mode                           "sum" or "mean"
    padding_idx                    an id that counts for nothing
    include_last_offset            offsets has one more entry, the end of the last bag

    Sums are float32 for tables of bfloat16 and float16, and each result is rounded once.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        rank: int,
        *,
        p_shapes: tuple[int, int],
        q_shapes: tuple[int, int],
        mode: Pooling = "sum",
        padding_idx: int | None = None,
        include_last_offset: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        check_mode(mode)
        if not 0 < num_embeddings <= p_shapes[0] * p_shapes[1]:
            raise InputError(f"num_embeddings = {num_embeddings}; p_shapes {p_shapes} make fewer rows")
        if embedding_dim != q_shapes[0] * q_shapes[1]:
            raise InputError(f"embedding_dim = {embedding_dim}; q_shapes {q_shapes} make other columns")
        dtype = torch.get_default_dtype() if dtype is None else dtype
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.p_shapes, self.q_shapes, self.rank = p_shapes, q_shapes, rank
        self.mode, self.padding_idx, self.include_last_offset = mode, padding_idx, include_last_offset
        s = steps_per_lane(dtype)
        for name, n, q, tile in zip(("prefix", "last"), p_shapes, q_shapes, tile_of(*q_shapes), strict=True):
            core = torch.zeros(n, q // tile, -(-rank // s), tile, s, dtype=dtype, device=device)
            self.register_parameter(name, nn.Parameter(core, requires_grad=False))
        self.prefix: nn.Parameter
        self.last: nn.Parameter
        self._options = (
            [num_embeddings],
            [POOLING_MODES[mode]],
            [-1 if padding_idx is None else padding_idx],
        )

    @classmethod
    def of_cores(cls, cores: Sequence[Tensor], dtype: torch.dtype, **options: Any) -> Self:
        """The bag with the rows of two cores, [n_0, q_0, 1, r] and [n_1, q_1, r, 1]; options: __init__'s."""
        prefix, last = cores[0].squeeze(2), cores[1].squeeze(3)
        p, q = (prefix.shape[0], last.shape[0]), (prefix.shape[1], last.shape[1])
        bag = cls(rank=prefix.shape[2], p_shapes=p, q_shapes=q, dtype=dtype, device="meta", **options)
        for name, core, tile in zip(("prefix", "last"), (prefix, last), tile_of(*q), strict=True):
            setattr(bag, name, nn.Parameter(packed(core.detach(), tile, dtype), requires_grad=False))
        return bag

    @classmethod
    def from_config(
        cls,
        config: TableConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """Refused: such a table is made by freezing a tensor train."""
        raise InputError(
            f"table {config.name}: a frozen prefix is made by TTEmbeddingBag.freeze('prefix'); configure 'tt'"
        )

    def forward(
        self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        """Pooled rows; see `EmbeddingRepresentation.forward`."""
        last = self.include_last_offset
        if per_sample_weights is not None:
            check_weighted([self.mode])
        check_call(input, offsets, per_sample_weights, last)
        if offsets is None:
            input, offsets = bounds_of_bags(input, offsets, last)
            last = True
            per_sample_weights = None if per_sample_weights is None else per_sample_weights.reshape(-1)
        num_embeddings, pooling_modes, padding_idx = self._options
        # As self.prefix and self.last, each of which takes Python 1 us to find.
        cores = cast(dict[str, Tensor], self._parameters)
        return ops.tt_prefix_bag(
            input,
            offsets,
            [cores["prefix"]],
            [cores["last"]],
            num_embeddings=num_embeddings,
            pooling_modes=pooling_modes,
            padding_idx=padding_idx,
            per_sample_weights=self._weights(per_sample_weights),
            include_last_offset=last,
        )

    @classmethod
    def forward_group(
        cls,
        bags: Sequence[Self],
        indices: Tensor,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        """Pooled rows of several tables in one launch; see `EmbeddingRepresentation.forward_group`."""
        if per_sample_weights is not None:
            check_weighted(bag.mode for bag in bags)
        return ops.tt_prefix_bag(
            indices,
            offsets,
            [bag.prefix for bag in bags],
            [bag.last for bag in bags],
            num_embeddings=[bag.num_embeddings for bag in bags],
            pooling_modes=[POOLING_MODES[bag.mode] for bag in bags],
            padding_idx=padding_indices(bags),
            per_sample_weights=bags[0]._weights(per_sample_weights),
        )

    def _weights(self, per_sample_weights: Tensor | None) -> Tensor | None:
        if per_sample_weights is None:
            return None
        if per_sample_weights.requires_grad and torch.is_grad_enabled():
            raise BatchError(
                "per_sample_weights require a gradient, which a frozen table has not; detach() them, or look "
                "up in freeze('cores')"
            )
        return per_sample_weights.to(self.prefix.dtype)

    def core_tensors(self) -> list[Tensor]:
        """The two cores, [n_0, q_0, 1, r] and [n_1, q_1, r, 1]."""
        prefix, last = unpacked(self.prefix), unpacked(self.last)
        return [prefix[..., : self.rank].unsqueeze(2), last[..., : self.rank].unsqueeze(3)]

    def materialize(
        self, rows: range | None = None, *, out: Tensor | None = None, work_bytes: int = 64 << 20
    ) -> Tensor:
        """The table, [num_embeddings, embedding_dim], or a range of its rows; as `TTEmbeddingBag`'s."""
        rows = range(self.num_embeddings) if rows is None else rows
        return table_rows(self.core_tensors(), self.num_embeddings, rows, out, work_bytes)

    def storage_bytes(self) -> int:
        """Bytes of the two cores."""
        return sum(core.numel() * core.element_size() for core in (self.prefix, self.last))

    def flops_per_lookup(self) -> int:
        """Floating-point operations of one row: its columns are dot products over the bond."""
        return 2 * self.embedding_dim * self.rank

    def extra_repr(self) -> str:
        """Shape, factors, rank, pooling and type."""
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        last = ", include_last_offset=True" if self.include_last_offset else ""
        return (
            f"{self.num_embeddings}, {self.embedding_dim}, rank={self.rank}, p_shapes={self.p_shapes}, "
            f"q_shapes={self.q_shapes}, mode={self.mode!r}{padding}{last}, {self.prefix.dtype}"
        )
