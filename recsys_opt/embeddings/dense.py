"""The plain embedding table: one stored row per id."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from recsys_opt import ops
from recsys_opt.embeddings.bag_arguments import check_mode
from recsys_opt.embeddings.base import GroupedRepresentation
from recsys_opt.embeddings.fused_update import Algorithm, FusedUpdate, FusesUpdate, shared_update
from recsys_opt.embeddings.tiered_rows import rows_in_id_order
from recsys_opt.errors import InputError
from recsys_opt.tables import Pooling, TableConfig

_STATES: dict[Algorithm, tuple[str, ...]] = {
    "sgd": (),
    "adagrad": ("weight.sum",),
    "rowwise_adagrad": ("weight",),
    "adam": ("weight.exp_avg", "weight.exp_avg_sq"),
}
"""Names of a table's states. The row-wise one is called as FBGEMM's and as `ModelOptimizer`'s own, so that
their checkpoints can be exchanged."""


class DenseEmbeddingBag(GroupedRepresentation, nn.EmbeddingBag, FusesUpdate):
    """A dense table with the rows of a bag summed or averaged.

    Initialised uniformly in +-1/sqrt(num_embeddings), as the DLRM repository does. The gradient of `weight`
    is a sparse COO tensor with one entry per looked-up id: its size follows the batch, not the table. It is
    an nn.EmbeddingBag with sparse=True, by which DistributedDataParallel knows that its gradient is sparse.

    After `fuse_update` the backward pass updates the rows itself, exactly: the gradients of an id that occurs
    several times in a batch are summed first. There is then no gradient. The rule's states are buffers that
    `state_dict` leaves out (an optimizer's checkpoint holds them), so that they move with the module.
    """

    stores_rows = True
    _state_names: tuple[str, ...] = ()

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        mode: Pooling = "sum",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        check_mode(mode)
        if num_embeddings < 1 or embedding_dim < 1:
            raise InputError(
                f"num_embeddings = {num_embeddings}, embedding_dim = {embedding_dim}; both must be at least 1"
            )
        nn.EmbeddingBag.__init__(
            self, num_embeddings, embedding_dim, mode=mode, sparse=True, dtype=dtype, device=device
        )

    def reset_parameters(self) -> None:
        """Draws the table anew, from torch's global generator."""
        bound = 1.0 / math.sqrt(self.num_embeddings)
        nn.init.uniform_(self.weight, -bound, bound)

    @classmethod
    def from_config(
        cls,
        config: TableConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """The module for a table."""
        if config.options:
            raise InputError(
                f"table {config.name}: a dense table has no options, but got {', '.join(config.options)}; "
                "remove them, or choose another representation"
            )
        return cls(
            config.num_embeddings, config.embedding_dim, mode=config.pooling, dtype=dtype, device=device
        )

    @classmethod
    def forward_group(
        cls,
        bags: Sequence[Self],
        indices: Tensor,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        """Pooled rows of many tables in one launch; see `EmbeddingRepresentation.forward_group`."""
        bounds = None if offsets is None else offsets.to(torch.int64)
        weights, mean = [bag.weight for bag in bags], [bag.mode == "mean" for bag in bags]
        update = _update_of(bags)
        if update is not None:
            return ops.dense_bag_updating(weights, indices, bounds, per_sample_weights, mean, update)
        return ops.dense_bag(weights, indices, bounds, per_sample_weights, mean)

    @property
    def learns(self) -> bool:
        """Whether the rows get updates or gradients."""
        return self._update is not None or self.weight.requires_grad

    def fuse_update(self, update: FusedUpdate | None) -> None:
        """Lets the backward passes to come update the rows; see `FusesUpdate.fuse_update`.

        The weight stops to require a gradient, and starts again with None. To be called once the module has
        its device and dtype. States have the weight's dtype and are zero at first: none for "sgd",
        one number per row for "rowwise_adagrad", as large as the table for "adagrad", twice that for "adam".
        """
        for name in self._state_names:
            delattr(self, name)
        self._update, names = update, []
        self.weight.requires_grad_(update is None)
        self.weight.grad = None
        for s in range(0 if update is None else len(_STATES[update.algorithm])):
            rowwise = update is not None and update.algorithm == "rowwise_adagrad"
            names.append(f"_weight_state_{s}")
            shape = self.weight.shape[:1] if rowwise else self.weight.shape
            self.register_buffer(names[-1], self.weight.new_zeros(shape), persistent=False)
        self._state_names = tuple(names)

    def update_state(self) -> dict[str, Tensor]:
        """The rule's states by name: "weight" [num_embeddings] (row-wise Adagrad), "weight.sum" (Adagrad),
        "weight.exp_avg", "weight.exp_avg_sq" and "step" (Adam)."""
        if self._update is None:
            return {}
        state = dict(zip(_STATES[self._update.algorithm], self._states(), strict=True))
        if self._update.algorithm == "adam":
            state["step"] = self._update.numbers(self.weight.device)[-1:]
        return state

    def _states(self) -> list[Tensor]:
        return [state for name in self._state_names if (state := self._buffers[name]) is not None]

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *arguments: Any, **named: Any
    ) -> None:
        """Also takes the state of a `TieredEmbeddingBag`."""
        tiers = [state_dict.get(f"{prefix}{name}") for name in ("hot", "cold", "remap")]
        hot, cold, remap = tiers
        if hot is None or cold is None or remap is None or f"{prefix}weight" in state_dict:
            super()._load_from_state_dict(state_dict, prefix, *arguments, **named)
            return
        rows = (len(hot) + len(cold), *hot.shape[1:])
        if rows != tuple(self.weight.shape):
            raise InputError(
                f"{prefix}hot and cold are {list(rows)} together; the table is {list(self.weight.shape)}"
            )
        with torch.no_grad():
            for first, part in rows_in_id_order(hot, cold, remap):
                self.weight[first : first + len(part)] = part

    def materialize(self) -> Tensor:
        """The whole table, [num_embeddings, embedding_dim]."""
        return self.weight.detach()

    def storage_bytes(self) -> int:
        """Bytes of the stored rows."""
        return self.weight.numel() * self.weight.element_size()

    def flops_per_lookup(self) -> int:
        """Additions to pool one row."""
        return self.embedding_dim

    def extra_repr(self) -> str:
        """Shape and pooling."""
        return f"{self.num_embeddings}, {self.embedding_dim}, mode={self.mode!r}"


def _update_of(bags: Sequence[DenseEmbeddingBag]) -> ops.RowUpdate | None:
    """What the op needs to update tables that are looked up together; None: they get gradients."""
    update = shared_update(bags)
    if update is None:
        return None
    states = [state for bag in bags for state in bag._states()]
    return ops.RowUpdate(ops.TT_ALGORITHMS[update.algorithm], [states], update.numbers(bags[0].weight.device))
