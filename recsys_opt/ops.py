"""The native ops: loads the kernels, registers shapes (fake kernels) and gradients.

`recsys_opt.reference` says in plain torch what each op computes; `csrc/library.cpp` holds the schemas.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from recsys_opt.errors import InputError

_F = TypeVar("_F", bound=Callable[..., Any])

LIBRARY = Path(__file__).parent / "librecsys_opt.so"
CUDA_LIBRARY = Path(__file__).parent / "librecsys_opt_cuda.so"

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


def _fake(name: str) -> Callable[[_F], _F]:
    """Registers the shapes of an op's results."""

    def register(function: _F) -> _F:
        torch.library.register_fake(name, function)
        return function

    return register


# --- dot interaction ---


def dot_interaction(dense: Tensor, sparse: Sequence[Tensor], order: Sequence[int]) -> Tensor:
    """DLRM's dot interaction; `reference.dot_interaction` says what it computes."""
    result: Tensor = torch.ops.recsys_opt.dot_interaction(dense, sparse, order)
    return result


@_fake("recsys_opt::dot_interaction")
def _(dense: Tensor, sparse: list[Tensor], order: list[int]) -> Tensor:
    vectors = 1 + len(order)
    return dense.new_empty(dense.shape[0], dense.shape[1] + vectors * (vectors - 1) // 2)


@_fake("recsys_opt::dot_interaction_backward")
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


# --- dense tables ---


def dense_bag(
    weights: Sequence[Tensor],
    indices: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    mean: Sequence[bool],
) -> Tensor:
    """Lookup and pooling in many dense tables; `reference.dense_bag` says what it computes.

    The gradients of the weights are sparse COO tensors with one entry per looked-up id, not coalesced.
    """
    flags = [int(m) for m in mean]
    result: Tensor = torch.ops.recsys_opt.dense_bag(weights, indices, offsets, per_sample_weights, flags)
    return result


# The gradients as one op, so that torch.compile has nothing to look into: their sizes depend on the offsets.
torch.library.define(
    "recsys_opt::dense_bag_backward",
    "(Tensor grad, Tensor[] weights, Tensor indices, Tensor? offsets, Tensor? per_sample_weights, int[] mean)"
    " -> Tensor[]",
)


def _dense_bag_gradients(
    grad: Tensor,
    weights: list[Tensor],
    indices: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    mean: list[int],
) -> list[Tensor]:
    rows = torch.ops.recsys_opt.dense_bag_row_gradients(
        grad, weights, indices, offsets, per_sample_weights, mean
    )
    ids = indices.to(torch.int64, copy=True).unsqueeze(0)
    if offsets is None:
        batch = indices.numel() // len(weights)
        bounds = [t * batch for t in range(len(weights) + 1)]
    else:
        batch = (offsets.numel() - 1) // len(weights)
        bounds = offsets[torch.arange(len(weights) + 1) * batch].tolist()
    grads, first = [], 0
    for weight, start, stop in zip(weights, bounds[:-1], bounds[1:], strict=True):
        count, dim = stop - start, weight.shape[1]
        values = rows[first : first + count * dim].view(count, dim)
        first += count * dim
        grads.append(
            torch.sparse_coo_tensor(ids[:, start:stop], values, weight.shape, check_invariants=False)
        )
    return grads


torch.library.impl("recsys_opt::dense_bag_backward", "CPU", _dense_bag_gradients)


@_fake("recsys_opt::dense_bag")
def _(
    weights: list[Tensor],
    indices: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    mean: list[int],
) -> Tensor:
    bags = indices.shape[0] if offsets is None else offsets.shape[0] - 1
    return weights[0].new_empty(bags // len(weights), sum(w.shape[1] for w in weights))


@_fake("recsys_opt::dense_bag_backward")
def _(
    grad: Tensor,
    weights: list[Tensor],
    indices: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    mean: list[int],
) -> list[Tensor]:
    ids = torch.empty(1, 0, dtype=torch.int64, device=grad.device)
    return [
        torch.sparse_coo_tensor(ids, grad.new_empty(0, w.shape[1]), w.shape, check_invariants=False)
        for w in weights
    ]


@_fake("recsys_opt::dense_bag_factor_gradients")
def _(
    grad: Tensor,
    weights: list[Tensor],
    indices: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor,
) -> Tensor:
    return grad.new_empty(indices.shape[0])


def _dense_bag_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    weights, indices, offsets, factors, ctx.mean = inputs
    ctx.tables, ctx.has_offsets, ctx.has_factors = len(weights), offsets is not None, factors is not None
    ctx.save_for_backward(*weights, indices, *(t for t in (offsets, factors) if t is not None))


def _dense_bag_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    weights, (indices, *rest) = ctx.saved_tensors[: ctx.tables], ctx.saved_tensors[ctx.tables :]
    offsets = rest.pop(0) if ctx.has_offsets else None
    factors = rest.pop(0) if ctx.has_factors else None
    grads: Any = [None] * ctx.tables
    factor_grad = None
    if any(ctx.needs_input_grad[0]):
        grads = torch.ops.recsys_opt.dense_bag_backward(grad, weights, indices, offsets, factors, ctx.mean)
    if ctx.needs_input_grad[3]:
        factor_grad = torch.ops.recsys_opt.dense_bag_factor_gradients(
            grad, weights, indices, offsets, factors
        )
    return grads, None, None, factor_grad, None


torch.library.register_autograd(
    "recsys_opt::dense_bag", _dense_bag_backward, setup_context=_dense_bag_context
)


def adagrad_(
    parameters: Sequence[Tensor], states: Sequence[Tensor], grads: Sequence[Tensor], lr: float, eps: float
) -> None:
    """Adagrad on dense parameters; `reference.adagrad_` says what it computes."""
    torch.ops.recsys_opt.adagrad_(parameters, states, grads, lr, eps)


@_fake("recsys_opt::adagrad_")
def _(parameters: list[Tensor], states: list[Tensor], grads: list[Tensor], lr: float, eps: float) -> None:
    return None


def sgd_rows_(weights: Sequence[Tensor], ids: Sequence[Tensor], grads: Sequence[Tensor], lr: float) -> None:
    """SGD on the looked-up rows of dense tables; `reference.sgd_rows_` says what it computes."""
    torch.ops.recsys_opt.sgd_rows_(weights, ids, grads, lr)


def rowwise_adagrad_rows_(
    weights: Sequence[Tensor],
    states: Sequence[Tensor],
    ids: Sequence[Tensor],
    grads: Sequence[Tensor],
    lr: float,
    eps: float,
) -> None:
    """Row-wise Adagrad on looked-up rows; `reference.rowwise_adagrad_rows_` says what it computes."""
    torch.ops.recsys_opt.rowwise_adagrad_rows_(weights, states, ids, grads, lr, eps)


@_fake("recsys_opt::sgd_rows_")
def _(weights: list[Tensor], ids: list[Tensor], grads: list[Tensor], lr: float) -> None:
    return None


@_fake("recsys_opt::rowwise_adagrad_rows_")
def _(
    weights: list[Tensor],
    states: list[Tensor],
    ids: list[Tensor],
    grads: list[Tensor],
    lr: float,
    eps: float,
) -> None:
    return None


# --- tt_embedding_bag ---------------------------------------------------------------------------------------

TT_ALGORITHMS = {"sgd": 0, "adagrad": 1, "rowwise_adagrad": 2, "adam": 3}
"""Update rules of `TTUpdate` by name; csrc/tt/tt_update.h says what they compute."""


class TTUpdate(NamedTuple):
    """An update of the cores in the backward pass, in place of their gradients."""

    algorithm: int
    """One of TT_ALGORITHMS."""
    states: Sequence[Tensor]
    """The states of core 0, then of core 1, ...: SGD none; Adagrad one as large as the core; row-wise Adagrad
    one number per slice; Adam two as large as the core. They are float32; float64 where the cores are."""
    hyperparameters: Tensor
    """[6] float64 on the cores' device: lr, eps, beta1, beta2, weight_decay, step. Each backward pass of Adam
    adds 1 to the step first."""


def tt_embedding_bag(
    indices: Tensor,
    offsets: Tensor,
    cores: Sequence[Tensor],
    *,
    cores_per_table: Sequence[int],
    num_embeddings: Sequence[int],
    pooling_modes: Sequence[int],
    padding_idx: Sequence[int],
    per_sample_weights: Tensor | None = None,
    update: TTUpdate | None = None,
) -> Tensor:
    """Pooled rows of T tensor-train tables in one launch; `reference.tt_embedding_bag` says what it computes.

    indices             [N] int32 or int64 ids, feature-major
    offsets             [T * B + 1] int32 or int64; bag c = t * B + b is indices[offsets[c] : offsets[c + 1]];
                        the first is 0, ids after the last are of no bag and not looked at (a first offset
                        above 0 is refused on the CPU; on CUDA the ids before it are of no bag)
    cores               of table 0, then of table 1, ...; core k is [n_k, q_k, r_k, r_{k+1}]
    cores_per_table     T numbers from 2 to 4
    num_embeddings      T numbers; ids are below them
    pooling_modes       T numbers: 0 sum, 1 mean
    padding_idx         T ids that count for nothing; -1 for none
    per_sample_weights  [N] factors of the rows; sum pooling only
    update              the backward pass updates the cores (`reference.tt_embedding_bag_backward_update`);
                        they must not require gradients, and get none
    returns             [B, sum of the tables' dimensions]
    """
    options = (list(cores_per_table), list(num_embeddings), list(pooling_modes), list(padding_idx))
    if update is not None and torch.is_grad_enabled():
        if torch.compiler.is_compiling():
            fused: Tensor = torch.ops.recsys_opt.tt_embedding_bag_updating(
                _ANCHOR,
                indices,
                offsets,
                list(cores),
                list(update.states),
                *options,
                per_sample_weights,
                update.algorithm,
                update.hyperparameters,
            )
            return fused
        run: Callable[..., Tensor] = _TTEmbeddingBagUpdating.apply
        return run(_ANCHOR, indices, offsets, list(cores), options, per_sample_weights, update)
    wanted = any(core.requires_grad for core in cores) or (
        per_sample_weights is not None and per_sample_weights.requires_grad
    )
    result: Tensor
    if torch.compiler.is_compiling():
        result = torch.ops.recsys_opt.tt_embedding_bag(
            indices, offsets, list(cores), *options, per_sample_weights
        )
        return result
    if not (wanted and torch.is_grad_enabled()):
        with torch._C._AutoDispatchBelowAutograd():  # no gradient is wanted: 7 us of bookkeeping less
            result = torch.ops.recsys_opt.tt_embedding_bag.default(
                indices, offsets, list(cores), *options, per_sample_weights
            )
        return result
    # The same gradient as the registered one, with less bookkeeping in Python: 100 us of 200 saved per step.
    apply: Callable[..., Tensor] = _TTEmbeddingBag.apply
    return apply(indices, offsets, options, per_sample_weights, *cores)


def tt_limit_isa(widest: int) -> int:
    """Holds the CPU kernels to an instruction set: 0 portable, 1 AVX2, 2 AVX-512 (the default).

    For tests and measurements. Returns the widest that they now use.
    """
    used: int = torch.ops.recsys_opt.tt_limit_isa(widest)
    return used


# Settings of the CUDA kernels hold for the process. What finds an id out of range there cannot raise.

TT_BOUNDS_CHECKS = ("check", "clamp", "trust")


class BoundsReport(NamedTuple):
    """Ids and offsets out of range that CUDA kernels found and nothing has reported yet."""

    errors: int
    example: str
    """One of them; empty where there is none."""


def _cuda_setting(name: str, value: int = -1) -> int:
    if not has_cuda_kernel("tt_embedding_bag"):
        raise InputError(
            f"the setting {name!r} of the CUDA kernels needs a build with them: torch with CUDA and nvcc, "
            "then scripts/setup.sh"
        )
    before: int = torch.ops.recsys_opt.tt_cuda_setting(name, value)
    return before


def tt_bounds_check(mode: str | None = None) -> str:
    """Chooses what CUDA kernels do about ids and offsets out of range; returns the mode from before.

    check  (default) they count for nothing, as if absent; the next call on the device, or `tt_bounds_report`
           after it, says so: nothing waits for the device, and its context stays usable
    clamp  they count for nothing; `tt_bounds_report` counts them
    trust  nothing is checked: a bad id may read, and a fused update write, outside the tables

    The CPU kernels always refuse them at once.
    """
    if mode is not None and mode not in TT_BOUNDS_CHECKS:
        raise InputError(f"bounds check {mode!r}; choose from {', '.join(TT_BOUNDS_CHECKS)}")
    return TT_BOUNDS_CHECKS[_cuda_setting("bounds", -1 if mode is None else TT_BOUNDS_CHECKS.index(mode))]


def tt_bounds_report(device: torch.device | int | None = None) -> BoundsReport:
    """What the CUDA kernels found out of range since the last report, on one device; waits for the device."""
    if not has_cuda_kernel("tt_embedding_bag"):
        return BoundsReport(0, "")
    index = device if isinstance(device, int) else None if device is None else device.index
    if index is None:
        index = torch.cuda.current_device()
    found: list[int] = torch.ops.recsys_opt.tt_bounds_report(index)
    count, kind, position, value, limit, table = found
    if not count:
        return BoundsReport(0, "")
    if kind == 0:
        example = f"indices[{position}] = {value} is outside the table's {limit} rows (table {table})"
    elif kind == 1:
        example = f"offsets[{position}] = {value} is outside the {limit} indices"
    else:
        example = f"offsets[{position}] = {value} is less than offsets[{position - 1}] = {limit}"
    return BoundsReport(count, example)


def tt_allow_tf32(allowed: bool | None = None) -> bool:
    """Lets CUDA kernels multiply float32 cores on the tensor cores, rounded to tf32; returns what was before.

    Off by default: products are exact float32. Cores in half precision always use the tensor cores.
    """
    return bool(_cuda_setting("tf32", -1 if allowed is None else int(allowed)))


def tt_direct_lookups(most: int | None = None) -> int:
    """Chooses up to how many lookups a forward pass on CUDA goes without a plan; returns what was before.

    For tests and measurements: `scripts/gpu_check.sh` measures where the two paths cross.
    """
    return _cuda_setting("direct_lookups", -1 if most is None else most)


@_fake("recsys_opt::tt_embedding_bag")
def _tt_embedding_bag_fake(
    indices: Tensor,
    offsets: Tensor,
    cores: list[Tensor],
    cores_per_table: list[int],
    num_embeddings: list[int],
    pooling_modes: list[int],
    padding_idx: list[int],
    per_sample_weights: Tensor | None,
) -> Tensor:
    columns, first = 0, 0
    for d in cores_per_table:
        columns += math.prod(core.shape[1] for core in cores[first : first + d])
        first += d
    return cores[0].new_empty((offsets.shape[0] - 1) // len(cores_per_table), columns)


@_fake("recsys_opt::tt_embedding_bag_backward")
def _tt_embedding_bag_backward_fake(
    grad: Tensor,
    indices: Tensor,
    offsets: Tensor,
    cores: list[Tensor],
    cores_per_table: list[int],
    num_embeddings: list[int],
    pooling_modes: list[int],
    padding_idx: list[int],
    per_sample_weights: Tensor | None,
    weights_grad: bool,
) -> list[Tensor]:
    grads = [core.new_empty(core.shape) for core in cores]
    return [*grads, grad.new_empty(indices.shape[0])] if weights_grad else grads


def _tt_embedding_bag_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    indices, offsets, cores, *options, per_sample_weights = inputs
    ctx.options = options
    ctx.save_for_backward(indices, offsets, per_sample_weights, *cores)


def _tt_embedding_bag_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    indices, offsets, weights, *cores = ctx.saved_tensors
    weights_grad = ctx.needs_input_grad[7]
    grads = torch.ops.recsys_opt.tt_embedding_bag_backward(
        grad, indices, offsets, cores, *ctx.options, weights, weights_grad
    )
    return None, None, grads[: len(cores)], *[None] * 4, grads[-1] if weights_grad else None


# The three ops of eager mode. `kept` holds the forward pass's plan and products, so that the backward pass
# computes neither again; other devices keep nothing.
def _tt_embedding_bag_keeping(*arguments: Any) -> tuple[Tensor, Tensor]:
    return torch.ops.recsys_opt.tt_embedding_bag(*arguments), torch.empty(0, dtype=torch.uint8)


def _tt_embedding_bag_backward_kept(kept: Tensor, *arguments: Any) -> Any:
    return torch.ops.recsys_opt.tt_embedding_bag_backward(*arguments)


def _tt_embedding_bag_backward_update_kept(kept: Tensor, *arguments: Any) -> Any:
    return torch.ops.recsys_opt.tt_embedding_bag_backward_update(*arguments)


for _name, _kernel in (
    ("recsys_opt::tt_embedding_bag_keeping", _tt_embedding_bag_keeping),
    ("recsys_opt::tt_embedding_bag_backward_kept", _tt_embedding_bag_backward_kept),
    ("recsys_opt::tt_embedding_bag_backward_update_kept", _tt_embedding_bag_backward_update_kept),
):
    torch.library.impl(_name, "CUDA", _kernel)
    torch.library.register_fake(_name, _kernel)


class _TTEmbeddingBag(torch.autograd.Function):
    """The registered gradient, for eager mode."""

    @staticmethod
    def forward(
        ctx: Any,
        indices: Tensor,
        offsets: Tensor,
        options: tuple[list[int], ...],
        per_sample_weights: Tensor | None,
        *cores: Tensor,
    ) -> Tensor:
        result: Tensor
        result, kept = torch.ops.recsys_opt.tt_embedding_bag_keeping.default(
            indices, offsets, cores, *options, per_sample_weights
        )
        ctx.options = options
        ctx.weights_grad = per_sample_weights is not None and ctx.needs_input_grad[3]
        ctx.save_for_backward(indices, offsets, per_sample_weights, *cores)
        ctx.kept = (
            kept  # not saved as a tensor: hooks on saved tensors copy bytes, and this is more than bytes
        )
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        indices, offsets, weights, *cores = ctx.saved_tensors
        arguments = (grad, indices, offsets, cores, *ctx.options, weights, ctx.weights_grad)
        kept, ctx.kept = ctx.kept, None  # a second pass over the graph plans again
        if kept is None:
            grads = torch.ops.recsys_opt.tt_embedding_bag_backward.default(*arguments)
        else:
            grads = torch.ops.recsys_opt.tt_embedding_bag_backward_kept.default(kept, *arguments)
        return None, None, None, grads[-1] if ctx.weights_grad else None, *grads[: len(cores)]


torch.library.register_autograd(
    "recsys_opt::tt_embedding_bag", _tt_embedding_bag_backward, setup_context=_tt_embedding_bag_setup
)


def _tt_embedding_bag_twice(ctx: Any, grads: Any) -> None:
    raise RuntimeError(
        "the gradients of tt_embedding_bag cannot be differentiated twice; for second derivatives use "
        "recsys_opt.reference.tt_embedding_bag"
    )


torch.library.register_autograd("recsys_opt::tt_embedding_bag_backward", _tt_embedding_bag_twice)


# Updates in the backward pass. The cores have no gradient; what makes autograd call the backward pass is an
# empty tensor that requires one.
_ANCHOR = torch.empty(0, requires_grad=True)


def _update_cores(
    grad: Tensor,
    batch: tuple[Tensor, Tensor, Sequence[Tensor]],
    options: Sequence[Sequence[int]],
    per_sample_weights: Tensor | None,
    weights_grad: bool,
    update: TTUpdate,
    kept: Tensor | None = None,
) -> Tensor | None:
    """Updates the cores; returns the gradient of the per-sample weights where they need one."""
    if update.algorithm == TT_ALGORITHMS["adam"]:
        update.hyperparameters[-1] += 1
    indices, offsets, cores = batch
    arguments = (
        grad,
        indices,
        offsets,
        cores,
        update.states,
        *options,
        per_sample_weights,
        weights_grad,
        update.algorithm,
        update.hyperparameters,
    )
    weights_grads: Tensor
    if kept is None:
        weights_grads = torch.ops.recsys_opt.tt_embedding_bag_backward_update.default(*arguments)
    else:
        weights_grads = torch.ops.recsys_opt.tt_embedding_bag_backward_update_kept.default(kept, *arguments)
    return weights_grads if weights_grad else None


class _TTEmbeddingBagUpdating(torch.autograd.Function):
    """Cores and states are not saved as tensors whose version autograd checks: the lookups of one backward
    pass update them one after the other."""

    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        indices: Tensor,
        offsets: Tensor,
        cores: list[Tensor],
        options: tuple[list[int], ...],
        per_sample_weights: Tensor | None,
        update: TTUpdate,
    ) -> Tensor:
        result: Tensor
        result, kept = torch.ops.recsys_opt.tt_embedding_bag_keeping.default(
            indices, offsets, cores, *options, per_sample_weights
        )
        ctx.cores, ctx.options, ctx.update = cores, options, update
        ctx.versions = [core._version for core in cores]
        ctx.weights_grad = per_sample_weights is not None and ctx.needs_input_grad[5]
        ctx.save_for_backward(indices, offsets, per_sample_weights)
        ctx.kept = kept
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        indices, offsets, weights = ctx.saved_tensors
        kept, ctx.kept = ctx.kept, None
        batch = (indices, offsets, ctx.cores)
        if ctx.versions != [core._version for core in ctx.cores]:
            kept = None  # another lookup has updated the cores, and the kept products are not theirs
        weights = _update_cores(grad, batch, ctx.options, weights, ctx.weights_grad, ctx.update, kept)
        torch.autograd.graph.increment_version(ctx.cores)
        return None, None, None, None, None, weights, None


@torch.library.custom_op("recsys_opt::tt_embedding_bag_updating", mutates_args=())
def _tt_embedding_bag_updating(
    anchor: Tensor,
    indices: Tensor,
    offsets: Tensor,
    cores: Sequence[Tensor],
    states: Sequence[Tensor],
    cores_per_table: Sequence[int],
    num_embeddings: Sequence[int],
    pooling_modes: Sequence[int],
    padding_idx: Sequence[int],
    per_sample_weights: Tensor | None,
    algorithm: int,
    hyperparameters: Tensor,
) -> Tensor:
    """tt_embedding_bag whose gradient updates the cores, for torch.compile."""
    options = (cores_per_table, num_embeddings, pooling_modes, padding_idx)
    result: Tensor = torch.ops.recsys_opt.tt_embedding_bag(
        indices, offsets, cores, *options, per_sample_weights
    )
    return result


@_tt_embedding_bag_updating.register_fake
def _(
    anchor: Tensor,
    indices: Tensor,
    offsets: Tensor,
    cores: list[Tensor],
    states: list[Tensor],
    cores_per_table: list[int],
    num_embeddings: list[int],
    pooling_modes: list[int],
    padding_idx: list[int],
    per_sample_weights: Tensor | None,
    algorithm: int,
    hyperparameters: Tensor,
) -> Tensor:
    options = (cores_per_table, num_embeddings, pooling_modes, padding_idx)
    return _tt_embedding_bag_fake(indices, offsets, cores, *options, per_sample_weights)


def _tt_updating_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, indices, offsets, cores, states, *options, weights, ctx.algorithm, hyperparameters = inputs
    ctx.options, ctx.count = options, len(cores)
    ctx.save_for_backward(indices, offsets, weights, hyperparameters, *cores, *states)


def _tt_updating_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    indices, offsets, weights, hyperparameters, *rest = ctx.saved_tensors
    update = TTUpdate(ctx.algorithm, rest[ctx.count :], hyperparameters)
    batch = (indices, offsets, rest[: ctx.count])
    weights = _update_cores(grad, batch, ctx.options, weights, ctx.needs_input_grad[9], update)
    nothing = [None] * ctx.count, [None] * (len(rest) - ctx.count)
    return None, None, None, *nothing, None, None, None, None, weights, None, None


_tt_embedding_bag_updating.register_autograd(_tt_updating_backward, setup_context=_tt_updating_setup)


@_fake("recsys_opt::tt_embedding_bag_backward_update")
def _(
    grad: Tensor,
    indices: Tensor,
    offsets: Tensor,
    cores: list[Tensor],
    states: list[Tensor],
    cores_per_table: list[int],
    num_embeddings: list[int],
    pooling_modes: list[int],
    padding_idx: list[int],
    per_sample_weights: Tensor | None,
    weights_grad: bool,
    algorithm: int,
    hyperparameters: Tensor,
) -> Tensor:
    return grad.new_empty(indices.shape[0] if weights_grad else 0)
