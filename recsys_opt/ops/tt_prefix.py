"""Lookups in frozen tensor trains of two cores."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from recsys_opt.ops.library import eager_op, fake

_LOOK_UP = eager_op("tt_prefix_bag")


def tt_prefix_bag(
    indices: Tensor,
    offsets: Tensor | None,
    prefixes: Sequence[Tensor],
    lasts: Sequence[Tensor],
    *,
    num_embeddings: Sequence[int],
    pooling_modes: Sequence[int],
    padding_idx: Sequence[int],
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = True,
) -> Tensor:
    """Pooled rows of T frozen tables in one launch, without gradients; `reference.tt_prefix_bag` defines it.

    indices              [N] int32 or int64 ids, feature-major
    offsets              [T * B + 1] int32 or int64; bag c = t * B + b is
                         indices[offsets[c] : offsets[c + 1]]; the first is 0, ids after the last are of no
                         bag; None: one id per bag
    prefixes, lasts      T each: [n_0, q_0 / t_0, r / s, t_0, s] and [n_1, q_1 / t_1, r / s, t_1, s], with
                         s = 2 for bfloat16, else 1; csrc/tt/tt_prefix.h has the order
    num_embeddings       T numbers; ids are below them
    pooling_modes        T numbers: 0 sum, 1 mean
    padding_idx          T ids that count for nothing; -1 for none
    per_sample_weights   [N] factors of the rows; sum pooling only
    include_last_offset  False: offsets is [T * B], and the last bag ends with the indices
    returns              [B, sum of the tables' columns]
    """
    arguments = (
        indices,
        offsets,
        prefixes,
        lasts,
        num_embeddings,
        pooling_modes,
        padding_idx,
        per_sample_weights,
        include_last_offset,
    )
    result: Tensor
    if torch.compiler.is_compiling():
        result = torch.ops.recsys_opt.tt_prefix_bag(*arguments)
        return result
    with torch._C._AutoDispatchBelowAutograd():  # 6 us of bookkeeping less
        result = _LOOK_UP(*arguments)
    return result


@fake("recsys_opt::tt_prefix_bag")
def _(
    indices: Tensor,
    offsets: Tensor | None,
    prefixes: list[Tensor],
    lasts: list[Tensor],
    num_embeddings: list[int],
    pooling_modes: list[int],
    padding_idx: list[int],
    per_sample_weights: Tensor | None,
    include_last_offset: bool,
) -> Tensor:
    bags = indices.shape[0] if offsets is None else offsets.shape[0] - int(include_last_offset)
    columns = sum(
        prefix.shape[1] * prefix.shape[3] * last.shape[1] * last.shape[3]
        for prefix, last in zip(prefixes, lasts, strict=True)
    )
    return prefixes[0].new_empty(bags // len(prefixes), columns)
