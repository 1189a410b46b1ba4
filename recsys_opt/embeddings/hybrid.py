"""`HybridEmbeddingBag`: a stored table, or a tensor train, beside a deep hash embedding (MP-Rec)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import torch
from torch import Tensor

from recsys_opt.embeddings.bag_arguments import check_mode, check_padding
from recsys_opt.embeddings.base import EmbeddingRepresentation, GroupedRepresentation
from recsys_opt.embeddings.dense import DenseEmbeddingBag
from recsys_opt.embeddings.dhe import BUCKETS, DHE_OPTIONS, STORED_BYTES, DHEEmbeddingBag, Encoding
from recsys_opt.embeddings.dhe_cache import CachedDHEBag
from recsys_opt.embeddings.frozen import FrozenEmbeddingBag
from recsys_opt.embeddings.mixed import bounds_of, look_up_mixed
from recsys_opt.embeddings.tt import TTEmbeddingBag
from recsys_opt.errors import InputError
from recsys_opt.tables import Pooling, TableConfig

TableKind = Literal["dense", "tt"]
_TT_OPTIONS = frozenset({"tt_ranks", "tt_p_shapes", "tt_q_shapes"})


class HybridEmbeddingBag(GroupedRepresentation):
    """A drop-in for `nn.EmbeddingBag` whose rows have two parts: one looked up, one computed.

    Row x is [table row of x | deep hash row of x]: what is frequent the table remembers, and every id has a
    row of its own that shares what the network has learnt from the others.

    num_embeddings  rows
    embedding_dim   columns of both parts together
    dhe_dim         columns of the computed part; default: half of them
    table           "dense", or "tt" for a tensor train
    table_options   of a tensor train: tt_ranks, tt_p_shapes, tt_q_shapes
    hashes, widths, buckets, prime, encoding  as `DHEEmbeddingBag`'s
    mode, padding_idx, include_last_offset    as nn.EmbeddingBag's, "sum" by default

    In a DLRM a table with twice the model's dimension is two vectors, each of which the dot interaction
    crosses with all others: MP-Rec's hybrid, whose parts are features of their own. With the model's
    dimension the parts are halves of one vector: its products are the sums of the table's and of the
    network's, and interaction and top MLP stay as small as without.
    """

    table: EmbeddingRepresentation
    dhe: EmbeddingRepresentation

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        dhe_dim: int | None = None,
        table: TableKind = "dense",
        table_options: Mapping[str, Any] | None = None,
        hashes: int = 1024,
        widths: Sequence[int] = (128,),
        buckets: int = BUCKETS,
        prime: int | None = None,
        encoding: Encoding = "uniform",
        mode: Pooling = "sum",
        padding_idx: int | None = None,
        include_last_offset: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        check_mode(mode)
        dhe_dim = embedding_dim // 2 if dhe_dim is None else dhe_dim
        if not 0 < dhe_dim < embedding_dim:
            raise InputError(
                f"dhe_dim = {dhe_dim} of embedding_dim = {embedding_dim}; both parts need a column or more"
            )
        own = dict(table_options or {})
        _check_table(table, own)
        placed: dict[str, Any] = {"mode": mode, "dtype": dtype, "device": device}
        columns = embedding_dim - dhe_dim
        if table == "tt":
            self.table = TTEmbeddingBag(num_embeddings, columns, own.pop("tt_ranks"), **placed, **own)
        else:
            self.table = DenseEmbeddingBag(num_embeddings, columns, **placed)
        self.dhe = DHEEmbeddingBag(
            num_embeddings,
            dhe_dim,
            hashes=hashes,
            widths=widths,
            buckets=buckets,
            prime=prime,
            encoding=encoding,
            **placed,
        )
        self._settle(num_embeddings, embedding_dim, mode, padding_idx, include_last_offset)

    def _settle(
        self,
        num_embeddings: int,
        embedding_dim: int,
        mode: Pooling,
        padding_idx: int | None,
        include_last_offset: bool,
    ) -> None:
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.mode, self.include_last_offset = mode, include_last_offset
        self.padding_idx = check_padding(padding_idx, num_embeddings)

    @classmethod
    def of_parts(
        cls,
        table: EmbeddingRepresentation,
        dhe: EmbeddingRepresentation,
        *,
        mode: Pooling = "sum",
        padding_idx: int | None = None,
        include_last_offset: bool = False,
    ) -> Self:
        """The bag of two that there are, without a copy; each pools by `mode`, and has no padding_idx."""
        bag = cls.__new__(cls)
        super(HybridEmbeddingBag, bag).__init__()
        bag.table, bag.dhe = table, dhe
        dim = table.embedding_dim + dhe.embedding_dim
        bag._settle(table.num_embeddings, dim, mode, padding_idx, include_last_offset)
        return bag

    @classmethod
    def from_config(
        cls,
        config: TableConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """The module for a table; its options are dhe_dim, table, table_options and those of "dhe"."""
        known = {"dhe_dim", "table", "table_options", *DHE_OPTIONS}
        return cls._configured(config, "hybrid", known, {}, device=device, dtype=dtype)

    @classmethod
    def forward_group(
        cls,
        bags: Sequence[Self],
        indices: Tensor,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        """Pooled rows of several tables, each kind of part in one launch."""
        if any(bag.padding_idx is not None for bag in bags):
            indices, offsets, per_sample_weights = _without_padding(
                bags, indices, offsets, per_sample_weights
            )
        sides = [
            look_up_mixed([bag.table for bag in bags], indices, offsets, per_sample_weights),
            look_up_mixed([bag.dhe for bag in bags], indices, offsets, per_sample_weights),
        ]
        return torch.cat([part for pair in zip(*sides, strict=True) for part in pair], dim=1)

    def materialize(self) -> Tensor:
        """The whole table, [num_embeddings, embedding_dim]."""
        return torch.cat([self.table.materialize(), self.dhe.materialize()], dim=1)

    def freeze(
        self,
        *,
        dtype: torch.dtype | None = None,
        max_bytes: int = STORED_BYTES,
    ) -> HybridEmbeddingBag | FrozenEmbeddingBag:
        """A copy for serving, in evaluation mode and without gradients, that computes what this does.

        One stored table where its rows fit into `max_bytes`; else the computed part stays computed beside the
        stored one, which is not copied unless its type changes.

        dtype  of stored rows, e.g. torch.bfloat16; default: as they are
        """
        table, dhe = self.table, self.dhe
        if isinstance(dhe, CachedDHEBag):  # which is for serving
            return self.eval()
        if not isinstance(table, (DenseEmbeddingBag, TTEmbeddingBag)) or not isinstance(dhe, DHEEmbeddingBag):
            raise InputError(
                f"only a table or a tensor train beside a deep hash embedding can be frozen, not "
                f"{type(table).__name__} beside {type(dhe).__name__}"
            )
        size = (self._dtype() if dtype is None else dtype).itemsize
        options: dict[str, Any] = {"mode": self.mode, "include_last_offset": self.include_last_offset}
        options["padding_idx"] = self.padding_idx
        if self.num_embeddings * self.embedding_dim * size <= max_bytes:
            with torch.no_grad():
                return FrozenEmbeddingBag.of_rows(self.materialize().to(dtype or self._dtype()), **options)
        kept: EmbeddingRepresentation
        if isinstance(table, TTEmbeddingBag):
            kept = table.freeze("cores", dtype=dtype)
        else:
            weight = table.weight.detach()
            kept = FrozenEmbeddingBag.of_rows(weight.to(dtype or weight.dtype), mode=self.mode)
        return type(self).of_parts(kept, dhe.freeze("decoder"), **options).eval()

    def _dtype(self) -> torch.dtype:
        return next(self.dhe.parameters()).dtype

    def settled_options(self) -> dict[str, Any]:
        """The parts' sizes and their own options."""
        found = {"dhe_dim": self.dhe.embedding_dim, **self.dhe.settled_options()}
        return {**found, "table_options": settled} if (settled := self.table.settled_options()) else found

    def storage_bytes(self) -> int:
        """Bytes of both parts."""
        return self.table.storage_bytes() + self.dhe.storage_bytes()

    def flops_per_lookup(self) -> int:
        """Floating-point operations of both parts for one id."""
        return self.table.flops_per_lookup() + self.dhe.flops_per_lookup()


def _check_table(table: str, options: Mapping[str, Any]) -> None:
    if table not in ("dense", "tt"):
        raise InputError(f"table = {table!r}; it must be 'dense' or 'tt'")
    if table == "tt" and "tt_ranks" not in options:
        raise InputError("a tensor train needs table_options with tt_ranks, e.g. {'tt_ranks': 32}")
    unknown = sorted(set(options) - (_TT_OPTIONS if table == "tt" else set()))
    if unknown:
        known = ", ".join(sorted(_TT_OPTIONS)) if table == "tt" else "none"
        raise InputError(f"table_options has {unknown[0]!r}; a {table!r} table has {known}")


def _without_padding(
    bags: Sequence[HybridEmbeddingBag], indices: Tensor, offsets: Tensor | None, weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The lookups without those of the padding ids, which come behind the last bag."""
    tables = len(bags)
    if offsets is None:
        offsets = torch.arange(indices.shape[0] + 1, device=indices.device)
    bags_count = offsets.shape[0] - 1
    padding = [-1 if bag.padding_idx is None else bag.padding_idx for bag in bags]
    place = torch.arange(indices.shape[0], device=indices.device)
    bag_of = torch.bucketize(place, offsets[1:], right=True)  # bags_count: of no bag
    table_of = (bag_of // max(bags_count // tables, 1)).clamp(max=tables - 1)
    dropped = (indices == torch.tensor(padding, device=indices.device)[table_of]) | (bag_of == bags_count)
    order = torch.argsort(dropped.to(torch.int8), stable=True)
    lengths = torch.zeros(bags_count + 1, dtype=torch.int64, device=indices.device)
    lengths = lengths.index_add(0, bag_of, (~dropped).to(torch.int64))[:-1]
    return indices[order], bounds_of(lengths), None if weights is None else weights[order]
