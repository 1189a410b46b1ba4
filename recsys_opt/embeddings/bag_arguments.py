"""nn.EmbeddingBag's arguments: its call brought to ids and bounds of bags, its options that others refuse."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from recsys_opt.errors import BatchError, InputError
from recsys_opt.ops.bags import bounds_of_bags

POOLING_MODES = {"sum": 0, "mean": 1}
"""What the ops call them."""
_INDEX_TYPES = (torch.int64, torch.int32)
_REMEDIES = {
    "max_norm": "rows are not stored, so that none can be rescaled; use the optimizer's weight_decay "
    "on the cores",
    "scale_grad_by_freq": "ids share the cores, which have no counts; give per_sample_weights of 1 / count",
    "sparse": "the gradients are small dense tensors; leave sparse=True out and give the parameters to any "
    "torch.optim optimizer",
}


def refuse_dense_options(**options: object) -> None:
    """Raises for an option of nn.EmbeddingBag that needs stored rows; None and False are no request."""
    for name, value in options.items():
        if value is not None and value is not False:
            raise InputError(f"{name} = {value!r} needs a table of stored rows: {_REMEDIES[name]}")


def check_mode(mode: str) -> None:
    """Raises unless `mode` is "sum" or "mean"."""
    if mode == "max":
        raise InputError(
            "mode = 'max' is not supported; use 'sum' or 'mean', or look up one id per bag and take amax "
            "over the rows of a bag"
        )
    if mode not in ("sum", "mean"):
        raise InputError(f"mode = {mode!r}; it must be 'sum' or 'mean'")


def check_padding(padding_idx: int | None, num_embeddings: int) -> int | None:
    """An id that counts for nothing, counted from the end where it is negative; None: there is none."""
    if padding_idx is None:
        return None
    if not -num_embeddings <= padding_idx < num_embeddings:
        raise InputError(f"padding_idx = {padding_idx} is outside the table's {num_embeddings} rows")
    return padding_idx % num_embeddings


def padding_indices(bags: Iterable[Any]) -> list[int]:
    """The bags' `padding_idx` as the ops take them; -1 is none."""
    return [-1 if bag.padding_idx is None else bag.padding_idx for bag in bags]


def check_weighted(modes: Iterable[str]) -> None:
    """Raises where tables that are given per-sample weights do not all sum."""
    averaging = [t for t, mode in enumerate(modes) if mode != "sum"]
    if averaging:
        raise BatchError(
            f"per_sample_weights needs sum pooling, but table {averaging[0]} averages; use 'sum' with "
            "weights divided by the bag's length"
        )


def check_call(
    input: Tensor, offsets: Tensor | None, per_sample_weights: Tensor | None, include_last_offset: bool
) -> None:
    """Checks the shapes and types of the arguments of `nn.EmbeddingBag.forward`; values the ops check."""
    if per_sample_weights is not None and per_sample_weights.shape != input.shape:
        raise BatchError(
            f"per_sample_weights has shape {list(per_sample_weights.shape)}, input {list(input.shape)}; they "
            "must be the same"
        )
    if input.dtype not in _INDEX_TYPES:
        _refuse_type("input", input)
    dim = input.dim()
    if offsets is None:
        if dim == 1:
            raise BatchError(
                "a 1-D input needs offsets, the starts of its bags; [0, 1, ...] for one id per bag"
            )
        if dim == 2:
            return
    elif dim == 2:
        raise BatchError(
            f"input is 2-D, {list(input.shape)}: its rows are the bags and it takes no offsets; leave them "
            "out or give a 1-D input"
        )
    if dim != 1 or offsets is None:
        raise BatchError(f"input must be 1-D with offsets or 2-D without, but has shape {list(input.shape)}")
    if offsets.dim() != 1:
        raise BatchError(f"offsets must be 1-D, the starts of the bags, but has shape {list(offsets.shape)}")
    if offsets.dtype not in _INDEX_TYPES:
        _refuse_type("offsets", offsets)
    if include_last_offset and offsets.shape[0] == 0:
        raise BatchError("offsets is empty; with include_last_offset it has at least the end, 0")


def to_bags(
    input: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    include_last_offset: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The arguments of `nn.EmbeddingBag.forward` as 1-D ids, [B + 1] bounds of the bags, and 1-D weights."""
    check_call(input, offsets, per_sample_weights, include_last_offset)
    ids, bounds = bounds_of_bags(input, offsets, include_last_offset)
    return ids, bounds, None if per_sample_weights is None else per_sample_weights.reshape(-1)


def _refuse_type(name: str, ids: Tensor) -> None:
    raise BatchError(f"{name} must be int32 or int64, but is {ids.dtype}; convert it with .long()")
