"""`CachedTTEmbeddingBag`: a tensor-train table whose frequent rows are held dense and trained in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from recsys_opt.embeddings.bag_arguments import check_mode, check_padding, check_weighted, padding_indices
from recsys_opt.embeddings.base import GroupedRepresentation
from recsys_opt.embeddings.fused_update import processes
from recsys_opt.embeddings.hot_store import COUNTED_LOOKUPS, MOST_LOOKUPS, HotRows
from recsys_opt.embeddings.tt import TTEmbeddingBag
from recsys_opt.embeddings.tt_init import Init
from recsys_opt.embeddings.tt_write_back import write_back_
from recsys_opt.errors import InputError
from recsys_opt.ops.hot_rows import hot_rows_bag, hot_rows_count_, hot_rows_split
from recsys_opt.tables import Pooling, TableConfig

_OPTIONS = {
    "tt_ranks",
    "tt_p_shapes",
    "tt_q_shapes",
    "init",
    "cache_rows",
    "refresh_every",
    "decay",
    "hysteresis",
    "write_back_limit",
}


@dataclass(frozen=True)
class Refresh:
    """What one refresh did."""

    held: int
    """Rows held afterwards."""
    slots: Tensor
    """Slots that got another row. An optimizer's state of these rows is another id's: zero it (ModelOptimizer
    does)."""
    populated: int
    """Rows that came in."""
    evicted: int
    """Rows that went out; their training was written back into the cores as far as the next lines say."""
    error_before: float
    """Norm of (evicted rows - what the cores made of them), relative to the evicted rows' norm."""
    error_after: float
    """The same after the write-back: training that was lost."""
    others_moved: float
    """Root mean square change of a row of the cores' table by the write-back, relative to its root mean
    square row. Held rows do not move."""


class CachedTTEmbeddingBag(GroupedRepresentation):
    """A `TTEmbeddingBag` with a bounded set of frequent rows held dense.

    A held row is the full row: its lookups read and train it alone and leave the cores out. (The other way, a
    dense difference added to the cores' row, was left: it costs the tensor train's whole work on every hit,
    1.3 to 1.4 of this one's step at 65,536 skewed ids, and ties the most trained rows to cores that the
    other rows move.) A held row is free of the ranks' limit, as CAFE (SIGMOD 2024) gives hot ids rows of
    their own. That is its use. It does not make the CPU faster: the tensor train's kernels do equal prefixes
    once, so that frequent ids are cheap there too. `recsys-opt bench tt-cache` shows steps that are even at
    65,536 ids of Zipf(1.2) and slower elsewhere (benchmarks/results/tt_cache_cpu.json).

    Every `refresh_every` training passes the set is chosen anew by decayed counts, see `HotRows`:

    populate  a row comes in as the cores make it, bit for bit, with no optimizer state
    evict     its training is written back into the one core whose change reaches the fewest other rows, by
              least squares weighed by counts (`write_back_`): a rank-r core cannot take up every row without
              moving thousands of others, and then most of the difference is given up, which is why a row
              only leaves for one that is `hysteresis` more frequent. `last_refresh` says what was lost.

    num_embeddings, embedding_dim, tt_ranks, tt_p_shapes, tt_q_shapes, mode, padding_idx, init,
    include_last_offset  as `TTEmbeddingBag`'s
    cache_rows        rows to hold; at most num_embeddings are
    refresh_every     training passes between two choices; None: only when `refresh` is called, as is needed
                      where several forward passes share a backward pass: a refresh changes parameters
    decay             factor on all counts at a refresh: lookups of 1 / (1 - decay) refreshes count
    hysteresis        how much more frequent a row must be to take another's place, chance aside
    write_back_limit  largest `Refresh.others_moved` of one refresh

    Lookups are counted in training mode only. Training in a group of several processes is refused, for their
    copies would hold different rows: take a `TTEmbeddingBag` there. In a compiled graph rows are looked up
    and counted, but the choice must be made outside it: call `advance` once per update.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        tt_ranks: int | Sequence[int],
        *,
        cache_rows: int,
        refresh_every: int | None = 100,
        decay: float = 0.9,
        hysteresis: float = 0.5,
        write_back_limit: float = 0.01,
        tt_p_shapes: Sequence[int] | None = None,
        tt_q_shapes: Sequence[int] | None = None,
        mode: Pooling = "sum",
        padding_idx: int | None = None,
        init: Init = "sampled_gaussian",
        include_last_offset: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        check_mode(mode)
        if cache_rows < 1:
            raise InputError(f"cache_rows = {cache_rows}; it must be at least 1 (TTEmbeddingBag holds none)")
        if refresh_every is not None and refresh_every < 1:
            raise InputError(f"refresh_every = {refresh_every}; it must be at least 1, or None")
        for name, value, limit in (
            ("decay", decay, 1.0),
            ("hysteresis", hysteresis, float("inf")),
            ("write_back_limit", write_back_limit, float("inf")),
        ):
            if not 0 <= value <= limit:
                raise InputError(f"{name} = {value}; it must be between 0 and {limit}")
        self.tt = TTEmbeddingBag(
            num_embeddings,
            embedding_dim,
            tt_ranks,
            tt_p_shapes=tt_p_shapes,
            tt_q_shapes=tt_q_shapes,
            init=init,
            dtype=dtype,
            device=device,
        )
        """The rows that are not held; sums only, without padding: those are dealt with before and after."""
        held = min(cache_rows, num_embeddings)
        self.hot = HotRows(num_embeddings, embedding_dim, held, dtype=dtype, device=device)
        self.num_embeddings, self.embedding_dim, self.mode = num_embeddings, embedding_dim, mode
        self.padding_idx = check_padding(padding_idx, num_embeddings)
        self.include_last_offset = include_last_offset
        self.refresh_every, self.decay = refresh_every, decay
        self.hysteresis, self.write_back_limit = hysteresis, write_back_limit
        self.last_refresh: Refresh | None = None
        """What the last refresh in this process did."""

    @classmethod
    def from_config(
        cls,
        config: TableConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """The module for a table; tt_ranks and cache_rows are needed, the constructor's others may be."""
        needed = {"tt_ranks": 32, "cache_rows": 10000}
        return cls._configured(config, "tt_cached", _OPTIONS, needed, device=device, dtype=dtype)

    @classmethod
    def forward_group(
        cls,
        bags: Sequence[Self],
        indices: Tensor,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        """Pooled rows of several tables, each kernel launched once for all; see `EmbeddingRepresentation`."""
        stores = [bag.hot for bag in bags]
        rows = [bag.num_embeddings for bag in bags]
        counting = all(bag.training for bag in bags)
        if counting and torch.is_grad_enabled() and processes() > 1:
            raise InputError(
                f"held rows are chosen from the lookups of one process, but {processes()} train: their "
                "copies of a table would hold different rows; use the representation 'tt'"
            )
        if counting and not torch.compiler.is_compiling():
            for bag in dict.fromkeys(bags):
                bag.advance(indices.numel())
        if offsets is not None:
            offsets = offsets.to(torch.int64)
        slots, cold, cold_offsets, positions = hot_rows_split(
            indices,
            offsets,
            [store.keys for store in stores],
            [store.directory for store in stores],
            rows,
            padding_indices(bags),
        )
        cold_weights = None
        if per_sample_weights is not None:
            check_weighted(bag.mode for bag in bags)
            per_sample_weights = per_sample_weights.to(stores[0].weight.dtype)
            cold_weights = per_sample_weights.index_select(0, positions)
        base = TTEmbeddingBag.forward_group([bag.tt for bag in bags], cold, cold_offsets, cold_weights)
        output = hot_rows_bag(
            base,
            [store.weight for store in stores],
            slots,
            offsets,
            per_sample_weights,
            [bag.mode == "mean" for bag in bags],
        )
        if counting:
            stride = -(-indices.shape[0] // (COUNTED_LOOKUPS * len(bags))) or 1
            phase = 0 if torch.compiler.is_compiling() else int(stores[0].clock[0]) % stride
            hot_rows_count_(
                [store.hot_counts for store in stores],
                [store.counts for store in stores],
                [store.candidates for store in stores],
                indices,
                slots,
                offsets,
                rows,
                stride,
                phase,
            )
        return output

    def advance(self, lookups: int = 0) -> None:
        """Counts a training pass and refreshes when one is due; a forward pass in training mode calls it.

        lookups  how many ids the pass looks up, at most
        """
        clock = self.hot.clock
        passes, counted = int(clock[0]) + 1, int(clock[1]) + lookups
        if counted > MOST_LOOKUPS:
            self.hot.decay(min(self.decay, 0.5))
            counted = lookups
        if self.refresh_every is not None and passes > self.refresh_every:
            self.refresh()
            passes, counted = 1, lookups
        clock[0], clock[1] = passes, counted

    @torch.no_grad()
    def refresh(self) -> Refresh:
        """Chooses the held rows anew by what was counted; changes rows and cores, so after `backward`."""
        hot, cores = self.hot, list(self.tt.cores)
        selection = hot.select(self.hysteresis)
        evicted = selection.evicted_slots
        # As the cores make them now: what comes in does not move, whatever is written back.
        rows = TTEmbeddingBag.forward_group([self.tt], selection.new_ids)
        written = write_back_(
            cores,
            hot.keys[evicted],
            hot.weight[evicted],
            hot.hot_counts[evicted],
            hot.mean_cold_count(),
            self.write_back_limit,
        )
        hot.replace(selection, rows)
        hot.decay(self.decay)
        hot.clock.zero_()
        self.last_refresh = Refresh(
            held=int((hot.keys >= 0).sum()),
            slots=selection.slots,
            populated=len(selection.slots),
            evicted=len(evicted),
            error_before=written.error_before,
            error_after=written.error_after,
            others_moved=written.others_moved,
        )
        return self.last_refresh

    def materialize(self) -> Tensor:
        """The whole table, [num_embeddings, embedding_dim]; differentiable."""
        held = self.hot.keys >= 0
        return self.tt.materialize().index_copy(0, self.hot.keys[held], self.hot.weight[held])

    def settled_options(self) -> dict[str, Any]:
        """The tensor train's."""
        return self.tt.settled_options()

    def storage_bytes(self) -> int:
        """Bytes of the cores, the held rows, and what finds and counts them."""
        tensors = (*self.hot.parameters(), *self.hot.buffers())
        return self.tt.storage_bytes() + sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def flops_per_lookup(self) -> int:
        """Those of a row that is not held."""
        return self.tt.flops_per_lookup()

    def extra_repr(self) -> str:
        """Pooling and how rows are chosen."""
        return (
            f"mode={self.mode!r}, refresh_every={self.refresh_every}, decay={self.decay}, "
            f"hysteresis={self.hysteresis}"
        )
