"""Feature interactions."""

from __future__ import annotations

import torch
from torch import Tensor


def dot_interaction(dense: Tensor, sparse: Tensor) -> Tensor:
    """DLRM's dot interaction: every pair of feature vectors gives their dot product.

    dense    [B, D] the bottom MLP's output, vector 0
    sparse   [B, F * D] the embeddings, vectors 1 .. F
    returns  [B, D + F * (F + 1) / 2] `dense`, then the dot products of vectors i > j, row by row:
             (1, 0), (2, 0), (2, 1), (3, 0), ...
    """
    batch, dim = dense.shape
    vectors = torch.cat([dense, sparse.to(dense.dtype)], dim=1).view(batch, -1, dim)  # [B, F + 1, D]
    products = torch.bmm(vectors, vectors.transpose(1, 2))  # [B, F + 1, F + 1]
    i, j = torch.tril_indices(vectors.shape[1], vectors.shape[1], offset=-1, device=dense.device)
    return torch.cat([dense, products[:, i, j]], dim=1)
