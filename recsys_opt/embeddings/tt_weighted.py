"""The last core of a tensor train fitted again so that frequent rows come out closer.

With P_m the [q_0 .. q_{d-2}, r] product of the first cores at prefix m, X_{m,i} the rows of prefix m and last
digit i as [q_0 .. q_{d-2}, q_{d-1}], and w_{m,i} their weights, the last core's slice G_i minimises

    sum_m w_{m,i} || P_m G_i - X_{m,i} ||^2,

a least-squares problem of its own for each i, whose normal equations are summed in one pass over the table.
So the weighted error is never larger than before; the plain error may be. A step of alternating least squares
stops here: the middle cores' equations have (r r')^2 entries for each digit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from recsys_opt.embeddings.tt_range import Unfolding
from recsys_opt.embeddings.tt_rows import interface_rows
from recsys_opt.errors import InputError

_RIDGE = 1e-6
"""Pull to the old slice, as a share of the mean eigenvalue: where nothing is looked up, nothing moves."""


def check_row_weights(weights: Tensor, rows: int) -> Tensor:
    """The weights as [rows] float32 of mean 1; raises for what are none."""
    if tuple(weights.shape) != (rows,):
        raise InputError(f"row_weights has shape {list(weights.shape)}; the table has {rows} rows")
    found = weights.detach().to(torch.float32)
    bad = (~(torch.isfinite(found) & (found >= 0))).nonzero()
    if bad.numel():
        row = int(bad[0])
        raise InputError(f"row_weights[{row}] = {float(weights[row])}; weights are finite and at least 0")
    total = float(found.sum(dtype=torch.float64))
    if total == 0:
        raise InputError("row_weights are all 0; give how often each row is looked up")
    return found * (rows / total)


def weighted_last_core(table: Unfolding, cores: Sequence[Tensor], weights: Tensor) -> Tensor:
    """A last core [n, q, r, 1] of least weighted error beside the others, from one pass over the table."""
    n, q, rank, _ = cores[-1].shape
    normal = torch.zeros(n, rank * rank, dtype=torch.float64, device=weights.device)
    target = torch.zeros(rank, n, q, dtype=torch.float64, device=weights.device)
    table.progress.start(f"pass {table.passes + 1}: weighted core", table.source.num_embeddings, "rows")
    for start, rows in table.source.blocks(table.block_prefixes * n):
        missing = -rows.shape[0] % n
        own = torch.nn.functional.pad(weights[start : start + rows.shape[0]], (0, missing)).view(-1, n)
        wide = torch.nn.functional.pad(rows.to(cores[0].dtype), (0, 0, 0, missing))
        first = start // n
        prefix = interface_rows(cores[:-1], first, first + own.shape[0])  # [m, c, r]
        squares = prefix.transpose(1, 2) @ prefix
        normal += own.double().T @ squares.flatten(1).double()
        scaled = wide.view(*own.shape, -1, q) * own[:, :, None, None]  # [m, n, c, q]
        flat = scaled.transpose(1, 2).reshape(-1, n * q)
        target += (prefix.flatten(0, 1).T @ flat).double().view(rank, n, q)
        table.progress.advance(rows.shape[0])
    table.passes += 1
    table.progress.finish()
    matrix = normal.view(n, rank, rank)
    pull = _RIDGE * matrix.diagonal(dim1=1, dim2=2).mean().clamp(min=1e-30)
    matrix += pull * torch.eye(rank, dtype=torch.float64, device=weights.device)
    old = cores[-1][..., 0].transpose(1, 2).double()  # [n, r, q]
    solved: Tensor = torch.linalg.solve(matrix, target.transpose(0, 1) + pull * old)
    return solved.transpose(1, 2).unsqueeze(3).to(cores[-1].dtype)
