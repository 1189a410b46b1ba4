"""Loads the kernels into torch, and registers the shapes of their results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch.autograd.function import once_differentiable

_F = TypeVar("_F", bound=Callable[..., Any])

PACKAGE = Path(__file__).parent.parent
LIBRARY = PACKAGE / "librecsys_opt.so"
CUDA_LIBRARY = PACKAGE / "librecsys_opt_cuda.so"

if not LIBRARY.exists():
    raise ImportError(
        f"{LIBRARY} is missing: the native code is not built; run scripts/setup.sh or pip install ."
    )
torch.ops.load_library(LIBRARY)
if torch.version.cuda and CUDA_LIBRARY.exists():
    torch.ops.load_library(CUDA_LIBRARY)


def has_cuda_kernel(op: str) -> bool:
    """Whether an op of this library, by its name, runs on CUDA tensors."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"recsys_opt::{op}", "CUDA")


def fake(name: str) -> Callable[[_F], _F]:
    """Registers the shapes of an op's results."""

    def register(function: _F) -> _F:
        torch.library.register_fake(name, function)
        return function

    return register


def eager_op(name: str) -> Callable[..., Any]:
    """An op for eager mode: `torch.ops.recsys_opt.<name>.default` without the call in Python around it."""
    return cast(Callable[..., Any], getattr(torch.ops.recsys_opt, name).default._op)


def differentiated_once(backward: _F) -> Callable[..., Any]:
    """torch's once_differentiable, of which a pass that nothing will differentiate again pays nothing."""
    refusing = once_differentiable(backward)

    def run(ctx: Any, *grads: Any) -> Any:
        return (refusing if torch.is_grad_enabled() else backward)(ctx, *grads)

    return run


def eager_apply(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """`function.apply` without its preparations for torch.func, a third of a small call's time; under
    torch.func it is `function.apply`, which refuses."""
    prepared: Callable[..., Any] = function.apply
    direct: Callable[..., Any] = super(torch.autograd.Function, function).apply  # type: ignore[misc]

    def run(*arguments: Any) -> Any:
        return (prepared if torch._C._are_functorch_transforms_active() else direct)(*arguments)

    return run
