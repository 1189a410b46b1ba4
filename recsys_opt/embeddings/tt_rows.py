"""Rows of a tensor-train table in order, in blocks, without an index and a gather per row."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from recsys_opt.errors import InputError


def interface_rows(cores: Sequence[Tensor], start: int, stop: int) -> Tensor:
    """Rows start .. stop - 1 of the product of `cores`: [stop - start, q_0 q_1 ..., r], r the last core's.

    cores    k x [n_k, q_k, r_k, r_{k+1}], r_0 = 1; row i has the digits of i in the radix n_0, n_1, ...
    returns  a table's rows where these are all of its cores (r = 1), and prefixes of rows where they are the
             first of them

    The rows of each prefix come from one product of matrices. Differentiable.
    """
    core = cores[-1]
    n, q, _, right = core.shape
    if len(cores) == 1:
        return core[start:stop, :, 0]
    first, last = start // n, (stop - 1) // n + 1
    if last - first == 1:  # one prefix: no more of the core than is wanted
        core = core[start - first * n : stop - first * n]
    prefixes = interface_rows(cores[:-1], first, last)  # [m, c, left]
    m, c, left = prefixes.shape
    product = prefixes.reshape(m * c, left) @ core.permute(2, 0, 1, 3).reshape(left, -1)
    rows = product.view(m, c, core.shape[0], q, right).transpose(1, 2).reshape(-1, c * q, right)
    if last - first == 1:
        return rows
    return rows[start - first * n : stop - first * n]


def row_blocks(
    cores: Sequence[Tensor], start: int, stop: int, block_rows: int
) -> Iterator[tuple[int, Tensor]]:
    """(first row, [at most about block_rows, dim] rows) from start to stop, cut at whole prefixes."""
    last = cores[-1].shape[0]
    size = block_rows // last * last if block_rows >= last else block_rows
    at = start
    while at < stop:
        end = min((at // size + 1) * size, stop)
        yield at, interface_rows(cores, at, end).squeeze(2)
        at = end


def block_rows_within(cores: Sequence[Tensor], work_bytes: int, copies: int = 3) -> int:
    """Rows per block so that `copies` blocks take at most `work_bytes`, but at least one prefix's rows."""
    row = math.prod(core.shape[1] for core in cores) * cores[0].element_size()
    return max(work_bytes // (copies * row), min(cores[-1].shape[0], 4096), 1)


def table_rows(
    cores: Sequence[Tensor], num_embeddings: int, rows: range, out: Tensor | None, work_bytes: int
) -> Tensor:
    """Rows of a table, [len(rows), dim], in `out` where that is given.

    Differentiable without `out` where a core needs a gradient; else in blocks that take `work_bytes`.
    """
    if rows.step != 1 or not 0 <= rows.start <= rows.stop <= num_embeddings:
        raise InputError(
            f"rows = {rows}; it must be a range of step 1 within the table's {num_embeddings} rows"
        )
    shape = (len(rows), math.prod(core.shape[1] for core in cores))
    needed = torch.is_grad_enabled() and any(core.requires_grad for core in cores)
    if out is None and needed and len(rows):
        return interface_rows(cores, rows.start, rows.stop).squeeze(2)
    if out is None:
        out = torch.empty(shape, dtype=cores[0].dtype, device=cores[0].device)
    elif tuple(out.shape) != shape:
        raise InputError(f"out has shape {list(out.shape)}; the rows need {list(shape)}")
    with torch.no_grad():
        for at, block in row_blocks(cores, rows.start, rows.stop, block_rows_within(cores, work_bytes)):
            out[at - rows.start : at - rows.start + block.shape[0]] = block
    return out
