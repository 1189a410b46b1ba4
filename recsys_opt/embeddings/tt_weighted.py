"""The rows that a table's users look up, with their weights: what a tensor train is fitted to.

Training leaves the rows that it never looked up as they were drawn: noise, which takes up the ranks of a fit
that counts every row alike. Here a row counts as often as it was looked up. What rows of weight 0 come out as
is then free; but lookups to come will meet some of them, and should find something small. By Good's estimate
(1953) as many of them will meet rows never seen as there are rows seen once. So the rows of the whole table
together are pulled to 0 with the weight of the rows of weight 1, times the share of rows of weight 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recsys_opt.embeddings.tt_als import WeightedRows
from recsys_opt.embeddings.tt_range import Unfolding
from recsys_opt.errors import InputError

MOST_ROWS = 1 << 19
"""Rows that are fitted; of more, a sample stands for them all."""


def check_row_weights(weights: Tensor, rows: int) -> Tensor:
    """The weights as [rows] float32; raises for what are none."""
    if tuple(weights.shape) != (rows,):
        raise InputError(f"row_weights has shape {list(weights.shape)}; the table has {rows} rows")
    found = weights.detach().to(torch.float32)
    bad = (~(torch.isfinite(found) & (found >= 0))).nonzero()
    if bad.numel():
        row = int(bad[0])
        raise InputError(f"row_weights[{row}] = {float(weights[row])}; weights are finite and at least 0")
    if not bool((found > 0).any()):
        raise InputError("row_weights are all 0; give how often each row is looked up")
    return found


def pull_to_zero(weights: Tensor) -> float:
    """The weight on being 0 of a table whose rows were looked up so often."""
    return float((weights == 1).sum()) * float((weights == 0).sum()) / len(weights)


def weighted_rows(
    table: Unfolding, weights: Tensor, dtype: torch.dtype, work_bytes: int, seed: int
) -> WeightedRows:
    """The rows of weight from one pass over the table, all of them or as many as are fitted.

    A row of weight w is then in the sample with probability min(1, c w), and counts w over that: the sum that
    is minimised is on average the one over all rows.
    """
    source = table.source
    row_bytes = source.embedding_dim * dtype.itemsize + 64
    ids, chosen = _sample(weights, max(min(MOST_ROWS, work_bytes // 2 // row_bytes), 1), seed)
    rows = torch.empty(len(ids), source.embedding_dim, dtype=dtype, device=source.device)
    block_rows = table.block_prefixes * table.p[-1]
    bounds = torch.arange(0, source.num_embeddings + block_rows, block_rows, device=ids.device)
    ends = torch.searchsorted(ids, bounds).tolist()
    table.progress.start(f"pass {table.passes + 1}: rows of weight", source.num_embeddings, "rows")
    for number, (start, block) in enumerate(source.blocks(block_rows)):
        own = slice(ends[number], ends[number + 1])
        rows[own] = block[ids[own] - start].to(dtype)
        table.progress.advance(block.shape[0])
    table.passes += 1
    table.progress.finish()
    scale = len(ids) / float(chosen.sum(dtype=torch.float64))
    return WeightedRows(ids, rows, (chosen * scale).to(dtype), pull_to_zero(weights) * scale)


def _sample(weights: Tensor, most: int, seed: int) -> tuple[Tensor, Tensor]:
    """Ascending ids of at most about `most` rows, and what each counts."""
    ids = weights.nonzero()[:, 0]
    own = weights[ids].double()
    if len(ids) <= most:
        return ids, own
    # c with sum min(1, c w) = most: the h heaviest rows are sure to be in, the others share the rest.
    heavy = own.sort(descending=True).values
    rest = heavy.flip(0).cumsum(0).flip(0)  # [h]: weight of all but the h heaviest
    sure = int(((most - torch.arange(len(heavy), device=own.device)) * heavy > rest).sum())
    c = (most - sure) / float(rest[sure])
    share = (c * own).clamp(max=1.0)
    drawn = torch.rand(len(own), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    taken = drawn.to(own.device) < share
    return ids[taken], (own / share)[taken]
