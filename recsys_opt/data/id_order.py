"""A new order of a column's ids, so that ids often looked up, or looked up together, are neighbours.

Ids that differ only in the last digit of a tensor train's mixed radix share a prefix, and a batch computes
each of its prefixes once: the fewer distinct prefixes, the less work (EL-Rec, SC 2022). The order is a step
of the data, outside the model: a permutation kept in it would be as long as the table.

    frequency      by falling lookups; ids of equal lookups by their first one
    cooccurrence   ids looked up once a batch or more by falling lookups; then the others by the mean row of
                   their lookups, so that ids of the same time are neighbours

What it gains and costs on a sample of real rows, seven tables (scripts/reproduce_id_order.sh). On the rows
that decide the order a batch keeps 1 to 2 % of its distinct prefixes and takes less than half the time,
forward and backward; on later rows, many of whose ids were not seen, 56 to 69 % and 80 to 90 %. But hot ids
then share slices of the cores, which costs capacity: fits have up to 2.7 times the error (`bench
budget-law`), and tables of rank 8 lost about .001 of AUC; of rank 32, nothing that three seeds could show.
"cooccurrence" leaves more prefixes than "frequency" and saves no more time (AUC at ranks 8 and 32: -.0007
and +.0012, three seeds); nor does moving the middle or
the first digit fastest, which `bench order` measures besides.

An order is the list of the ids seen in the training rows, first things first. An id that is not in the list
comes after all that are, and ids that are not keep their own order: so every id of the column has a place,
and the list needs no entry for what was never seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from recsys_opt.errors import InputError

Order = Literal["frequency", "cooccurrence"]
ORDERS: tuple[Order, ...] = get_args(Order)
FILE_NAME = "id_order.npy"


@dataclass(frozen=True, eq=False)
class IdOrder:
    """The order of one column: old ids by their new place."""

    ranked: NDArray[np.int32]  # [seen] old ids without repetition; the first becomes id 0
    num_embeddings: int

    def __post_init__(self) -> None:
        ranked = self.ranked
        inside = not ranked.size or (ranked.min() >= 0 and ranked.max() < self.num_embeddings)
        if not inside or np.unique(ranked).size != ranked.size:
            raise InputError(f"an order must list different ids from 0 to {self.num_embeddings - 1}")

    def new_ids(self) -> NDArray[np.int32]:
        """[num_embeddings] the new id of every old id: a permutation."""
        seen = np.zeros(self.num_embeddings, dtype=bool)
        seen[self.ranked] = True
        new = np.empty(self.num_embeddings, dtype=np.int32)
        new[self.ranked] = np.arange(len(self.ranked), dtype=np.int32)
        new[~seen] = np.arange(len(self.ranked), self.num_embeddings, dtype=np.int32)
        return new

    def old_ids(self) -> NDArray[np.int32]:
        """[num_embeddings] the old id of every new id: the inverse permutation."""
        seen = np.zeros(self.num_embeddings, dtype=bool)
        seen[self.ranked] = True
        return np.concatenate([self.ranked, np.flatnonzero(~seen).astype(np.int32)])


@dataclass(frozen=True, eq=False)
class ColumnLookups:
    """What an order rests on: of each id of a column, in the rows of the training split."""

    counts: NDArray[np.uint32]  # [ids] lookups
    first: NDArray[np.int64]  # [ids] row of the first lookup, from the start of the split; meaningless unseen
    row_sum: NDArray[np.int64]  # [ids] sum of the rows of all lookups

    @classmethod
    def empty(cls, num_embeddings: int) -> ColumnLookups:
        """Before the first row."""
        return cls(
            np.zeros(num_embeddings, np.uint32),
            np.zeros(num_embeddings, np.int64),
            np.zeros(num_embeddings, np.int64),
        )

    def add(self, ids: NDArray[Any], first_row: int) -> None:
        """Takes in the ids of consecutive rows; calls come in row order."""
        rows = np.arange(first_row, first_row + len(ids), dtype=np.int64)
        new = np.flatnonzero(self.counts[ids] == 0)[::-1]
        self.first[ids[new]] = rows[new]  # of an id that occurs several times, its first row is written last
        np.add.at(self.counts, ids, np.uint32(1))
        np.add.at(self.row_sum, ids, rows)

    def order(self, by: Order, batch_size: int) -> IdOrder:
        """The new order; `batch_size` counts for "cooccurrence" alone."""
        seen = np.flatnonzero(self.counts)
        counts, first = self.counts[seen].astype(np.int64), self.first[seen]
        by_frequency = np.lexsort((first, -counts))
        if by == "frequency":
            return IdOrder(seen[by_frequency].astype(np.int32), len(self.counts))
        if by != "cooccurrence":
            raise InputError(f"the order is {by!r}; choose one of {', '.join(ORDERS)}")
        batches = max(int(counts.sum()) / batch_size, 1.0)
        hot = counts >= batches
        together = np.lexsort((first, self.row_sum[seen] / counts))
        ranked = np.concatenate([by_frequency[hot[by_frequency]], together[~hot[together]]])
        return IdOrder(seen[ranked].astype(np.int32), len(self.counts))


def read_orders(folder: Path | str, num_embeddings: Sequence[int], ids: dict[str, Any]) -> list[IdOrder]:
    """The orders of a reordered dataset's columns, to map the ids of new rows: `order.new_ids()[old]`.

    folder          the dataset folder
    num_embeddings  of its columns
    ids             `DatasetInfo.ids`
    """
    path = Path(folder) / FILE_NAME
    if "order" not in ids:
        raise InputError(f"{folder} keeps the ids that it was made with: `data reorder` did not make it")
    sizes = [int(n) for n in ids["order"]["ranked"]]
    try:
        ranked: NDArray[np.int32] = np.load(path, mmap_mode="r" if any(sizes) else None)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} cannot be read: {error}; make the dataset again") from None
    if ranked.dtype != np.int32 or ranked.shape != (sum(sizes),):
        raise InputError(f"{path} is not the order of this dataset; make the dataset again")
    stops = np.cumsum(sizes)
    return [
        IdOrder(np.array(ranked[stop - size : stop]), rows)
        for stop, size, rows in zip(stops, sizes, num_embeddings, strict=True)
    ]
