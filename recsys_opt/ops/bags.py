"""The forms in which a batch of bags comes."""

from __future__ import annotations

import torch
from torch import Tensor


def bounds_of_bags(
    indices: Tensor, offsets: Tensor | None, include_last_offset: bool
) -> tuple[Tensor, Tensor]:
    """1-D ids and the bounds of the bags, with the end of the last.

    indices  [N] with offsets; or without: one id per bag; [B, L] without offsets: its rows are the bags
    offsets  [B], or [B + 1] with include_last_offset

    Nothing is read from a tensor, so that this runs on any device, on fake tensors and under a tracer.
    """
    if offsets is None:
        bounds = torch.arange(indices.shape[0] + 1, device=indices.device)
        # Not arange with a step: it may not be 0, and bags may have no column.
        return (indices, bounds) if indices.dim() == 1 else (indices.reshape(-1), bounds * indices.shape[1])
    if include_last_offset:
        return indices, offsets
    return indices, torch.cat([offsets, offsets.new_full((1,), indices.shape[0])])
