"""A bounded set of table rows held dense, chosen by decayed counts of their lookups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from recsys_opt.ops.hot_rows import COLD, ID_BITS, hot_rows_directory_, hot_rows_split
from recsys_opt.reference_hot_rows import candidate_cells, counters, estimate

MIN_COUNT = 2
"""An id must have been counted so often to be held: one lookup says nothing about the next."""
_SKETCH_PER_ROW = 8
_CANDIDATES_PER_ROW = 4
_SIGMAS = 2.0
COUNTED_LOOKUPS = 8192
"""Of a larger batch every so manieth lookup is counted, so many of a table on average."""
MOST_LOOKUPS = 1 << 30
"""Counts are halved, or decayed, before so many lookups could overflow them."""


@dataclass(frozen=True)
class Selection:
    """Which rows change places; slots and ids on the store's device."""

    slots: Tensor
    """[n] slots that get a new row."""
    new_ids: Tensor
    """[n] the new rows."""
    new_counts: Tensor
    """[n] int32 their estimated counts."""
    evicted_slots: Tensor
    """[e] the slots among `slots` that held a row."""


class HotRows(nn.Module):
    """`cache_rows` rows of one table, and the counts by which they are chosen.

    Parameters and buffers, all in the state dict:

    weight      [K, embedding_dim] the rows; its gradient is sparse
    keys        [K] int64, the id whose row slot s holds; -1: none
    directory   [C] int32, a hash table of slots by id, C a power of two of at least 4 K
    hot_counts  [K] int32, lookups of the held rows: exact, decayed
    counts      [1, num_embeddings] exact counts of the others, where that is smaller than what follows;
                else [2, W] a count-min sketch of them, W a power of two of at least 8 K
    candidates  [4 K or more] the most frequent of the others with their counts; [0] with exact counts
    clock       [2] forward passes since the last refresh, lookups since the last decay; stays on the host, so
                that reading it never waits for a device

    Counts never come out too low; a sketch's come out too high by at most 2 N / W for half of the ids, N the
    decayed number of cold lookups, and hot rows add nothing to N.
    """

    weight: nn.Parameter
    keys: Tensor
    directory: Tensor
    hot_counts: Tensor
    counts: Tensor
    candidates: Tensor

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        cache_rows: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.num_embeddings = num_embeddings
        width = _power_of_two(_SKETCH_PER_ROW * cache_rows, least=1024)
        exact = num_embeddings <= 2 * width
        cells = 0 if exact else _power_of_two(_CANDIDATES_PER_ROW * cache_rows, least=512)
        shape = (1, num_embeddings) if exact else (2, width)
        self.weight = nn.Parameter(torch.zeros(cache_rows, embedding_dim, dtype=dtype, device=device))
        buffers = {
            "keys": torch.full((cache_rows,), -1, dtype=torch.int64, device=device),
            "directory": torch.full(
                (_power_of_two(4 * cache_rows, least=2),), -1, dtype=torch.int32, device=device
            ),
            "hot_counts": torch.zeros(cache_rows, dtype=torch.int32, device=device),
            "counts": torch.zeros(shape, dtype=torch.int32, device=device),
            "candidates": torch.zeros(cells, dtype=torch.int64, device=device),
        }
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor)
        self.clock = torch.zeros(2, dtype=torch.int64)
        self.generation = 0
        """Grows whenever a slot gets another row."""

    @property
    def is_exact(self) -> bool:
        """Whether every id has a counter of its own."""
        return self.candidates.numel() == 0

    def slots_of(self, ids: Tensor) -> Tensor:
        """[N] the slots that hold `ids`, COLD where none does."""
        return hot_rows_split(ids, None, [self.keys], [self.directory], [self.num_embeddings], [-1])[0]

    def mean_cold_count(self) -> float:
        """The mean decayed count of the rows that are not held."""
        cold = self.num_embeddings - int((self.keys >= 0).sum())
        return float(self.counts[0].sum(dtype=torch.int64)) / max(cold, 1)

    def select(self, hysteresis: float) -> Selection:
        """The rows to change: the most frequent others fill free slots, then take those of rarer rows.

        A held row gives way only to one whose count is more than 1 + hysteresis times its own, and larger by
        more than chance makes of equal frequencies: two standard deviations of the difference of two Poisson
        counts. Equal counts go by id, so that the choice depends on nothing but the counts.
        """
        ids, counts = self._frequent_cold_ids()
        order = torch.argsort(counts, descending=True, stable=True)  # ids come sorted
        ids, counts = ids[order], counts[order]
        free = (self.keys < 0).nonzero()[:, 0]
        held = (self.keys >= 0).nonzero()[:, 0]
        held = held[torch.argsort(self.keys[held])]
        held = held[torch.argsort(self.hot_counts[held], stable=True)]  # rarest first
        filled = min(len(free), len(ids))
        rivals = min(len(held), len(ids) - filled)
        new, old = counts[filled : filled + rivals].double(), self.hot_counts[held[:rivals]].double()
        wins = new - old > torch.maximum(hysteresis * old, _SIGMAS * (new + old).sqrt())
        swaps = int(wins.sum())  # `new` falls and `old` rises: wins come first
        taken = filled + swaps
        slots = torch.cat([free[:filled], held[:swaps]])
        return Selection(slots, ids[:taken], counts[:taken].to(torch.int32), held[:swaps])

    def replace(self, selection: Selection, rows: Tensor) -> None:
        """Gives slots to other ids.

        rows  [n, embedding_dim] the new ids' rows
        """
        if not len(selection.slots):
            return
        evicted = selection.evicted_slots
        # They go on being counted with the others, with what they had.
        ids, counts = self.keys[evicted], self.hot_counts[evicted]
        flat = self.counts.view(-1)
        if self.is_exact:
            flat[selection.new_ids] = 0
            flat[ids] = counts
        else:
            for places in counters(ids, self.counts.shape[1]):
                flat.scatter_reduce_(0, places, counts, "amax")
        self.keys[selection.slots] = selection.new_ids
        self.hot_counts[selection.slots] = selection.new_counts
        self.weight[selection.slots] = rows.to(self.weight.dtype)
        hot_rows_directory_(self.directory, self.keys)
        self.generation += 1

    def decay(self, factor: float) -> None:
        """Multiplies every count by `factor`, rounding down."""
        for counts in (self.counts, self.hot_counts):
            counts.copy_((counts.double() * factor).floor())
        if not self.is_exact:
            # The candidates' estimates follow, and those that are now held make room.
            ids = self._candidate_ids()
            estimates = estimate(ids, self.counts).long()
            values = (estimates << ID_BITS) | (ids + 1)
            keep = (estimates > 0) & (self.slots_of(ids) == COLD)
            self.candidates.zero_()
            for cells in candidate_cells(ids[keep], self.candidates.numel()):
                self.candidates.scatter_reduce_(0, cells, values[keep], "amax")
        self.clock[1] = 0

    def _candidate_ids(self) -> Tensor:
        ids = (self.candidates & ((1 << ID_BITS) - 1)) - 1
        found: Tensor = ids[ids >= 0].unique()
        return found

    def _frequent_cold_ids(self) -> tuple[Tensor, Tensor]:
        """Ids that are not held and counted often enough, in ascending order, and their counts."""
        if self.is_exact:
            ids = (self.counts[0] >= MIN_COUNT).nonzero()[:, 0]
        else:
            ids = self._candidate_ids()
            ids = ids[estimate(ids, self.counts) >= MIN_COUNT]
        ids = ids[self.slots_of(ids) == COLD]
        return ids, estimate(ids, self.counts)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}clock"] = self.clock

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        state = dict(state_dict)
        clock = state.pop(f"{prefix}clock", None)
        super()._load_from_state_dict(
            state, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        self.generation += 1
        if clock is not None:
            self.clock.copy_(clock)
        elif strict:
            missing_keys.append(f"{prefix}clock")

    def extra_repr(self) -> str:
        """Rows, columns, and how they are counted."""
        how = "exact" if self.is_exact else f"sketch of 2 x {self.counts.shape[1]}"
        return f"{self.weight.shape[0]}, {self.weight.shape[1]}, counts={how}"


def _power_of_two(number: int, *, least: int) -> int:
    return max(least, 1 << (number - 1).bit_length())
