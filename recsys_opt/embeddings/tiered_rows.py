"""The rows of a tiered table by id and by position, a bounded number of them at a time.

A row's position is its rank (`recsys_opt.ranks`). Positions below hot.shape[0] are in the hot tier, the
others in the cold one. A tensor of one number per row (an optimizer's state) is moved as rows are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsys_opt.ranks import rank_of, rank_order

Ranking = Tensor | np.ndarray[Any, Any] | Sequence[int]
"""Different ids, hottest first."""
_CHUNK_BYTES = 16 << 20


def ranks_of(ranking: Ranking, num_embeddings: int) -> tuple[Tensor, Tensor]:
    """(the remap: the position of each id, [num_embeddings], or [0] where ids are positions as they are; the
    id at each position, [num_embeddings]).

    ranking  [R] different ids, hottest first
    """
    ids = ranking.detach().cpu().numpy() if isinstance(ranking, Tensor) else np.asarray(ranking)
    order = rank_order(ids if ids.size else ids.astype(np.int64), num_embeddings)
    if bool((order[:-1] < order[1:]).all()):
        return torch.from_numpy(order[:0]), torch.from_numpy(order)
    return torch.from_numpy(rank_of(order)), torch.from_numpy(order)


def chunks(rows: int, like: Tensor) -> Iterator[tuple[int, int]]:
    """Ranges of rows, in order, whose numbers take up a few megabytes each."""
    width = max(1, like[:1].numel() if like.shape[0] else like.new_empty(1, *like.shape[1:]).numel())
    step = max(1, _CHUNK_BYTES // (width * like.element_size()))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def await_kernels(hot: Tensor) -> None:
    """Waits for a GPU that may still be at the cold rows, of which torch knows nothing."""
    if hot.is_cuda:
        torch.cuda.current_stream(hot.device).synchronize()


def read_rows(hot: Tensor, cold: Tensor, positions: Tensor) -> Tensor:
    """The rows at some positions, in host memory."""
    await_kernels(hot)
    hot_rows = hot.shape[0]
    rows = cold.new_empty(len(positions), *cold.shape[1:])
    # In order of position: a file's pages are read once each, from its start to its end.
    order = positions.long().cpu().argsort()
    sorted_positions = positions.long().cpu()[order]
    split = int(torch.searchsorted(sorted_positions, hot_rows))
    rows[order[:split]] = hot.detach()[sorted_positions[:split].to(hot.device)].cpu()
    rows[order[split:]] = cold.detach()[sorted_positions[split:] - hot_rows]
    return rows


def write_rows(hot: Tensor, cold: Tensor, positions: Tensor, rows: Tensor) -> None:
    """Sets the rows at some positions."""
    await_kernels(hot)
    hot_rows = hot.shape[0]
    order = positions.long().cpu().argsort()
    sorted_positions = positions.long().cpu()[order]
    split = int(torch.searchsorted(sorted_positions, hot_rows))
    rows = rows.detach().to(device=cold.device, dtype=cold.dtype)
    hot.detach()[sorted_positions[:split].to(hot.device)] = rows[order[:split]].to(hot.device)
    cold.detach()[sorted_positions[split:] - hot_rows] = rows[order[split:]]


def read_range(hot: Tensor, cold: Tensor, start: int, stop: int) -> Tensor:
    """The rows at the positions start .. stop - 1, in host memory."""
    await_kernels(hot)
    split = min(max(hot.shape[0], start), stop)
    parts = (hot.detach()[start:split].to(cold.device), cold.detach()[split - len(hot) : stop - len(hot)])
    if split == stop:
        return parts[0]
    return parts[1] if split == start else torch.cat(parts)


def write_range(hot: Tensor, cold: Tensor, start: int, rows: Tensor) -> None:
    """Sets the rows from position `start` on."""
    await_kernels(hot)
    stop = start + len(rows)
    split = min(max(hot.shape[0], start), stop)
    hot.detach()[start:split] = rows[: split - start].to(hot.device)
    if split < stop:
        cold.detach()[split - len(hot) : stop - len(hot)] = rows[split - start :]


def positions_of(remap: Tensor, start: int, stop: int) -> Tensor:
    """The positions of the ids start .. stop - 1."""
    if remap.numel() == 0:
        return torch.arange(start, stop)
    return remap[start:stop].long().cpu()


def rows_in_id_order(hot: Tensor, cold: Tensor, remap: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(first id, the rows of the ids that follow), a chunk at a time."""
    for start, stop in chunks(hot.shape[0] + cold.shape[0], cold):
        yield start, read_rows(hot, cold, positions_of(remap, start, stop))


def move_rows(old: tuple[Tensor, Tensor, Tensor], new: tuple[Tensor, Tensor], ids: Tensor | None) -> None:
    """Copies every id's row from one pair of tiers into another.

    old  (hot, cold, remap)
    new  (hot, cold)
    ids  the id at each of the new positions, or None where the remap stays
    """
    hot, cold, remap = old
    for start, stop in chunks(hot.shape[0] + cold.shape[0], cold):
        if ids is None:
            rows = read_range(hot, cold, start, stop)
        else:
            here = ids[start:stop].long()
            sources = here if remap.numel() == 0 else remap[here.to(remap.device)].long().cpu()
            rows = read_rows(hot, cold, sources)
        write_range(*new, start, rows)
