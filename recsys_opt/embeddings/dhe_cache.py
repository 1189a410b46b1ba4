"""A cache for serving deep hash embeddings, in two tiers as MP-Rec's.

exact        the rows of ids that are looked up often, stored: `CachedDHEBag`
approximate  in place of computing the others, the stored row of the nearest of a few centroids in the space
             of the encodings: `CentroidBag`. Encodings of different ids are as good as independent, so that
             a centroid is near nothing: `bench dhe-tiers` has what it loses. It is here to be measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys_opt import ops
from recsys_opt.embeddings.bag_arguments import check_weighted, padding_indices
from recsys_opt.embeddings.base import EmbeddingRepresentation, GroupedRepresentation, split_group
from recsys_opt.embeddings.dhe import DHEEmbeddingBag
from recsys_opt.embeddings.mixed import look_up_mixed
from recsys_opt.errors import InputError
from recsys_opt.ops.hot_rows import COLD, hot_rows_bag, hot_rows_directory_, hot_rows_split
from recsys_opt.tables import Pooling, TableConfig

_ROUNDS = 8
"""Of Lloyd's algorithm."""


class _Frozen(GroupedRepresentation):
    """A table that is made from a trained one, not configured."""

    @classmethod
    def from_config(
        cls,
        config: TableConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """Refused: such a table is made from a trained one."""
        raise InputError(f"table {config.name}: a {cls.__name__} is made from a DHEEmbeddingBag by `of`")


class CentroidBag(_Frozen):
    """A deep hash embedding answered approximately: the row of the centroid nearest to an id's encoding."""

    hashes: Tensor

    def __init__(self, dhe: DHEEmbeddingBag, centroids: Tensor) -> None:
        """centroids  [C, k] encodings"""
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.mode = dhe.num_embeddings, dhe.embedding_dim, dhe.mode
        self._encode = {
            "num_embeddings": dhe.num_embeddings,
            "prime": dhe.prime,
            "buckets": dhe.buckets,
            "encoding": ops.DHE_ENCODINGS[dhe.encoding],
        }
        self.register_buffer("hashes", dhe.hashes.clone())
        rows = decoded(dhe, centroids)
        for name, tensor in (("centroids", centroids), ("rows_of", rows)):
            self.register_parameter(name, nn.Parameter(tensor.detach().clone(), requires_grad=False))
        self.register_buffer("half_squares", 0.5 * centroids.square().sum(1))
        self.centroids: nn.Parameter
        self.rows_of: nn.Parameter
        self.half_squares: Tensor
        self.eval()

    @classmethod
    @torch.no_grad()
    def of(cls, dhe: DHEEmbeddingBag, count: int, ids: Tensor, *, seed: int = 0) -> Self:
        """Centroids by Lloyd's algorithm over the encodings of some ids, an id as often as it occurs.

        ids  [N] those that will be answered so, or a sample of them
        """
        if not 1 <= count <= len(ids):
            raise InputError(f"count = {count} centroids of {len(ids)} ids; it must be 1 to the ids' number")
        options = {"prime": dhe.prime, "buckets": dhe.buckets, "num_embeddings": dhe.num_embeddings}
        encoding, like = ops.DHE_ENCODINGS[dhe.encoding], dhe.weights[0]
        points = ops.dhe_encode(ids.long(), dhe.hashes, encoding=encoding, like=like, **options)
        generator = torch.Generator().manual_seed(seed)
        centroids = points[torch.randperm(len(points), generator=generator)[:count]]
        for _ in range(_ROUNDS):
            nearest = _nearest(points, centroids, 0.5 * centroids.square().sum(1))
            sums = torch.zeros_like(centroids).index_add(0, nearest, points)
            sizes = torch.bincount(nearest, minlength=count)
            centroids = torch.where(sizes[:, None] > 0, sums / sizes.clamp(min=1)[:, None], centroids)
        return cls(dhe, centroids)

    def rows(self, ids: Tensor) -> Tensor:
        """The rows of ids [N], [N, embedding_dim]."""
        return self.rows_of[self._slots(ids)]

    def _slots(self, ids: Tensor) -> Tensor:
        points = ops.dhe_encode(ids.long(), self.hashes, like=self.centroids, **self._encode)
        return _nearest(points, self.centroids, self.half_squares)

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
            F.embedding_bag(
                bag._slots(ids),
                bag.rows_of,
                bounds.long(),
                mode=bag.mode,
                per_sample_weights=weights,
                include_last_offset=True,
            )
            for bag, ids, bounds, weights in split_group(bags, indices, offsets, per_sample_weights)
        ]
        return torch.cat(outputs, dim=1)

    def materialize(self) -> Tensor:
        """The whole table, [num_embeddings, embedding_dim]."""
        return self.rows(torch.arange(self.num_embeddings, device=self.hashes.device))

    def storage_bytes(self) -> int:
        """Bytes of the centroids, their rows and the hash functions."""
        return sum(t.numel() * t.element_size() for t in (*self.parameters(), *self.buffers()))

    def flops_per_lookup(self) -> int:
        """Of the distances to all centroids."""
        return 2 * self.centroids.numel()


class CachedDHEBag(_Frozen):
    """A deep hash embedding for serving with the rows of some ids stored; the others are computed.

    With a `CentroidBag` as `cold` the others are answered approximately instead.
    """

    keys: Tensor
    directory: Tensor

    def __init__(
        self,
        hot_ids: Tensor,
        rows: Tensor,
        cold: EmbeddingRepresentation,
        *,
        mode: Pooling = "sum",
        padding_idx: int | None = None,
        include_last_offset: bool = False,
    ) -> None:
        """The bag of its tiers.

        hot_ids  [K] int64, no id twice
        rows     [K, embedding_dim] theirs
        cold     the other ids' representation, with sum pooling and no padding
        """
        super().__init__()
        self.num_embeddings, self.embedding_dim = cold.num_embeddings, cold.embedding_dim
        self.mode, self.padding_idx, self.include_last_offset = mode, padding_idx, include_last_offset
        self.cold = cold
        self.weight = nn.Parameter(rows.detach(), requires_grad=False)
        self.register_buffer("keys", hot_ids)
        cells = max(2, 1 << (4 * max(len(hot_ids), 1) - 1).bit_length())
        directory = torch.full((cells,), -1, dtype=torch.int32, device=hot_ids.device)
        hot_rows_directory_(directory, hot_ids)
        self.register_buffer("directory", directory)
        self.eval()

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        dhe: DHEEmbeddingBag,
        hot_ids: Tensor,
        *,
        centroids: int = 0,
        cold_ids: Tensor | None = None,
        seed: int = 0,
    ) -> Self:
        """A trained bag with the rows of `hot_ids` stored.

        hot_ids    no id twice; `hot_ids(counts, rows)` picks the most frequent
        centroids  for the approximate tier; 0: the others are computed
        cold_ids   lookups of the others, from which centroids come; default: ids spread evenly
        """
        hot = hot_ids.long()
        if len(hot.unique()) != len(hot):
            raise InputError("hot_ids has an id twice; each row is stored once")
        plain = dhe.freeze("decoder")
        assert isinstance(plain, DHEEmbeddingBag)
        rows = plain.rows(hot)
        plain = plain.pooling_by_sum()
        cold: EmbeddingRepresentation = plain
        if centroids:
            if cold_ids is None:
                step = max(1, dhe.num_embeddings // max(16 * centroids, 1))
                cold_ids = torch.arange(0, dhe.num_embeddings, step)
            cold = CentroidBag.of(plain, centroids, cold_ids, seed=seed)
        return cls(
            hot,
            rows,
            cold,
            mode=dhe.mode,
            padding_idx=dhe.padding_idx,
            include_last_offset=dhe.include_last_offset,
        )

    @classmethod
    def forward_group(
        cls,
        bags: Sequence[Self],
        indices: Tensor,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        """Pooled rows of several tables, each kernel launched once; see `EmbeddingRepresentation`."""
        if offsets is not None:
            offsets = offsets.to(torch.int64)
        slots, cold, cold_offsets, positions = hot_rows_split(
            indices,
            offsets,
            [bag.keys for bag in bags],
            [bag.directory for bag in bags],
            [bag.num_embeddings for bag in bags],
            padding_indices(bags),
        )
        cold_weights = None
        if per_sample_weights is not None:
            check_weighted(bag.mode for bag in bags)
            per_sample_weights = per_sample_weights.to(bags[0].weight.dtype)
            cold_weights = per_sample_weights.index_select(0, positions)
        computed = look_up_mixed([bag.cold for bag in bags], cold, cold_offsets, cold_weights)
        return hot_rows_bag(
            computed[0] if len(computed) == 1 else torch.cat(computed, dim=1),
            [bag.weight for bag in bags],
            slots,
            offsets,
            per_sample_weights,
            [bag.mode == "mean" for bag in bags],
        )

    def slots(self, ids: Tensor) -> Tensor:
        """Where the rows of ids [N] are stored; COLD: nowhere."""
        return hot_rows_split(ids, None, [self.keys], [self.directory], [self.num_embeddings], [-1])[0]

    def hot_share(self, ids: Tensor) -> float:
        """The share of lookups whose row is stored."""
        return _share(self.slots(ids) != COLD)

    def materialize(self) -> Tensor:
        """The whole table, [num_embeddings, embedding_dim]."""
        return self.cold.materialize().index_copy(0, self.keys, self.weight)

    def storage_bytes(self) -> int:
        """Bytes of the stored rows, what finds them, and the other ids' representation."""
        own = (self.weight, self.keys, self.directory)
        return self.cold.storage_bytes() + sum(t.numel() * t.element_size() for t in own)

    def flops_per_lookup(self) -> int:
        """Those of a row that is not stored."""
        return self.cold.flops_per_lookup()


@dataclass(frozen=True)
class TierReport:
    """What a cache does with some lookups."""

    exact_share: float
    """Of the lookups: answered from stored rows."""
    approximate_share: float
    """Answered from a centroid."""
    computed_share: float
    rms_error: float
    """Of the approximate answers: the root of the mean square error over that of the exact rows' deviation
    from their mean, so that 1 is what one and the same row for all would do."""
    max_error: float
    """The largest distance of an answer to the exact row, in units of the exact rows' mean norm."""
    bytes: int

    def to_json(self) -> dict[str, Any]:
        """JSON values only."""
        return asdict(self)


@torch.no_grad()
def tier_report(bag: CachedDHEBag, dhe: DHEEmbeddingBag, ids: Tensor) -> TierReport:
    """What a cache of `dhe` does with the lookups `ids`, [N]."""
    slots = bag.slots(ids)
    exact_share = _share(slots != COLD)
    rest = 1.0 - exact_share
    approximate = isinstance(bag.cold, CentroidBag)
    rms = largest = 0.0
    if isinstance(bag.cold, CentroidBag):
        cold = ids[slots == COLD]
        if len(cold):
            want = dhe.rows(cold)
            error = bag.cold.rows(cold) - want
            spread = (want - want.mean(0)).square().mean()
            rms = float((error.square().mean() / spread.clamp(min=1e-30)).sqrt())
            largest = float(error.norm(dim=1).max() / want.norm(dim=1).mean().clamp(min=1e-30))
    return TierReport(
        exact_share=exact_share,
        approximate_share=rest if approximate else 0.0,
        computed_share=0.0 if approximate else rest,
        rms_error=rms,
        max_error=largest,
        bytes=bag.storage_bytes(),
    )


def most_frequent(ids: Tensor, rows: int) -> Tensor:
    """The at most `rows` ids that occur most often among lookups [N], at least twice; ties go by id."""
    found, counts = ids.unique(return_counts=True)
    order = torch.argsort(counts, descending=True, stable=True)
    frequent: Tensor = found[order[counts[order] > 1][:rows]]
    return frequent


def _share(chosen: Tensor) -> float:
    return float(chosen.double().mean())


def decoded(dhe: DHEEmbeddingBag, encodings: Tensor) -> Tensor:
    """The rows that a bag's network makes of encodings [N, k]."""
    x = encodings
    for layer, (weight, bias) in enumerate(zip(dhe.weights, dhe.biases, strict=True)):
        x = torch.addmm(bias, x.relu() if layer else x, weight)
    return x


def _nearest(points: Tensor, centroids: Tensor, half_squares: Tensor) -> Tensor:
    found: Tensor = torch.addmm(half_squares, points, centroids.t(), alpha=-1).argmin(1)
    return found
