"""DLRM's dot interaction: shapes and gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from recsys_opt.ops.library import fake


def dot_interaction(dense: Tensor, sparse: Sequence[Tensor], order: Sequence[int]) -> Tensor:
    """DLRM's dot interaction; `reference.dot_interaction` says what it computes."""
    result: Tensor = torch.ops.recsys_opt.dot_interaction(dense, sparse, order)
    return result


@fake("recsys_opt::dot_interaction")
def _(dense: Tensor, sparse: list[Tensor], order: list[int]) -> Tensor:
    vectors = 1 + len(order)
    return dense.new_empty(dense.shape[0], dense.shape[1] + vectors * (vectors - 1) // 2)


@fake("recsys_opt::dot_interaction_backward")
def _(grad: Tensor, dense: Tensor, sparse: list[Tensor], order: list[int]) -> list[Tensor]:
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in (dense, *sparse)]


def _dot_interaction_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    dense, sparse, ctx.order = inputs
    ctx.save_for_backward(dense, *sparse)


def _dot_interaction_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    dense, *sparse = ctx.saved_tensors
    grads = torch.ops.recsys_opt.dot_interaction_backward(grad, dense, sparse, ctx.order)
    return grads[0], grads[1:], None


torch.library.register_autograd(
    "recsys_opt::dot_interaction", _dot_interaction_backward, setup_context=_dot_interaction_context
)
