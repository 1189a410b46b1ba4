"""The CUDA kernels as ops on CPU tensors, with the arguments of `recsys_opt.ops`; see simt.h."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tests.simt.build import build

OPTIONS = ("cores_per_table", "num_embeddings", "pooling_modes", "padding_idx")
ORDERS = {"forward": 0, "backward": 1, "random": 2}


@cache
def library() -> Any:
    """The ops themselves; compiled when first asked for."""
    torch.ops.load_library(build())
    return torch.ops.recsys_opt_simt


def guarded(tensor: Tensor | None) -> Tensor | None:
    """A copy that ends at a page that may not be touched; a strided tensor keeps its strides to the op."""
    if tensor is None:
        return None
    copy: Tensor = library().guarded(tensor.detach())
    return copy


class _Bag(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, indices: Any, offsets: Any, options: Any, weights: Any, *cores: Tensor) -> Tensor:
        ctx.arguments = (guarded(indices), guarded(offsets), [guarded(c) for c in cores], *options)
        ctx.weights = guarded(weights)
        ctx.weights_grad = ctx.needs_input_grad[3]
        result: Tensor = library().tt_embedding_bag(*ctx.arguments, ctx.weights)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        grads = library().tt_embedding_bag_backward(
            guarded(grad), *ctx.arguments, ctx.weights, ctx.weights_grad
        )
        cores = len(ctx.arguments[2])
        return None, None, None, grads[-1] if ctx.weights_grad else None, *grads[:cores]


def tt_embedding_bag(
    indices: Tensor,
    offsets: Tensor,
    cores: Sequence[Tensor],
    *,
    per_sample_weights: Tensor | None = None,
    **options: Sequence[int],
) -> Tensor:
    """`ops.tt_embedding_bag` by the CUDA kernels, with their gradients."""
    lists = [list(options[name]) for name in OPTIONS]
    result: Tensor = _Bag.apply(indices, offsets, lists, per_sample_weights, *cores)
    return result


@contextmanager
def running(order: str = "forward", seed: int = 0, **settings: int) -> Iterator[None]:
    """Runs threads and blocks in an order, with settings of `ops.tt_cuda_setting`; refuses writes outside."""
    before = {name: library().tt_cuda_setting(name, value) for name, value in settings.items()}
    library().set_order(ORDERS[order], seed)
    try:
        yield
    finally:
        library().set_order(0, 0)
        for name, value in before.items():
            library().tt_cuda_setting(name, value)
    assert library().overruns() == 0, "a kernel wrote outside a buffer"
