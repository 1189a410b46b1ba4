"""`TieredEmbeddingBag`: a dense table whose rows are in two tiers, the frequent ones in the fast memory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from recsys_opt import ops
from recsys_opt.embeddings.bag_arguments import check_mode
from recsys_opt.embeddings.base import GroupedRepresentation
from recsys_opt.embeddings.cold_tier import ColdTier, Waits
from recsys_opt.embeddings.fused_update import Algorithm, FusedUpdate, FusesUpdate, shared_update
from recsys_opt.embeddings.tiered_rows import (
    Ranking,
    await_kernels,
    chunks,
    move_rows,
    positions_of,
    ranks_of,
    rows_in_id_order,
    write_rows,
)
from recsys_opt.embeddings.tiered_state import load_rows, take_rows
from recsys_opt.errors import InputError
from recsys_opt.ops.tiered import position_dtype
from recsys_opt.tables import Pooling, TableConfig

_STATES: dict[Algorithm, tuple[str, ...]] = {
    "sgd": (),
    "adagrad": (".sum",),
    "rowwise_adagrad": ("",),
    "adam": (".exp_avg", ".exp_avg_sq"),
}
"""What a tier's states are called, behind the tier's name; as a dense table's behind "weight"."""
_WAITS = Waits()
Rankings = Callable[[TableConfig], Ranking]
_RANKINGS: ContextVar[Rankings | None] = ContextVar("rankings", default=None)
_OPTIONS = {"hot_rows", "ranked", "cold_dir"}


class TieredEmbeddingBag(GroupedRepresentation, FusesUpdate):
    """A dense table with its first `hot_rows` rows in one tier and the others in another, behind one index
    space. It computes what `nn.EmbeddingBag` does, and after training has the weights that it would have.

    num_embeddings, embedding_dim, mode  as nn.EmbeddingBag's
    hot_rows  rows of the hot tier, which is in the module's memory: a GPU's, or the host's
    ranking   [R] ids, hottest first; those that it leaves out follow in ascending order (`recsys_opt.ranks`).
              The rows are kept in this order, and `remap` holds each id's place in it. None, or the order of
              ids: these are ranks themselves (`recsys-opt data reorder` makes them so), nothing is remapped
    cold_dir  a folder: the cold tier is a memory-mapped file in it, as is its optimizer's state, so that a
              table larger than the memory trains. The files have no names and go with the process; what is
              to stay is in `state_dict`. None: the cold tier is in memory, pinned where the hot tier is on a
              GPU, whose kernels read and update cold rows in place
    dtype, device  of the hot tier

    Rows are drawn in the order of ids, as DenseEmbeddingBag draws them: the same seed gives the same table,
    wherever its rows are. The gradients of the parameters `hot` and `cold` are sparse, with one entry per
    looked-up row; after `fuse_update` the backward pass updates the rows itself.

    `state_dict` holds the tiers as they are and the remap: a checkpoint copies a file of cold rows from its
    start to its end, in bounded memory, where an order by ids would read its pages once for every row.
    `load_state_dict` takes such a state of any split, whose ranking it takes over, and the state of a dense
    table, by its "weight"; `DenseEmbeddingBag.load_state_dict` takes a tiered table's.
    """

    stores_rows = True
    ask_ahead: bool | None = None
    """Whether a lookup asks for all pages of a file before it reads them, for a disk to work on many at a
    time; None: while lookups have had to wait for pages."""
    _states_per_tier = 0
    hot: nn.Parameter
    """[hot_rows, embedding_dim] the rows of the positions 0 .. hot_rows - 1."""
    cold: nn.Parameter
    """[num_embeddings - hot_rows, embedding_dim] the other rows, in host memory."""
    remap: Tensor
    """[num_embeddings] the position of each id; [0] where ids are positions."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        hot_rows: int,
        *,
        ranking: Ranking | None = None,
        mode: Pooling = "sum",
        cold_dir: Path | str | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self._prepare(num_embeddings, embedding_dim, hot_rows, mode, cold_dir, dtype, device)
        if ranking is not None:
            self.remap = ranks_of(ranking, num_embeddings)[0].to(self.remap.device)
        self.reset_parameters()

    def _prepare(
        self,
        num_embeddings: int,
        embedding_dim: int,
        hot_rows: int,
        mode: Pooling,
        cold_dir: Path | str | None,
        dtype: torch.dtype | None,
        device: torch.device | str | None,
    ) -> None:
        """The module with rows of zeros, and without a remap."""
        super().__init__()
        check_mode(mode)
        if num_embeddings < 1 or embedding_dim < 1:
            raise InputError(
                f"num_embeddings = {num_embeddings}, embedding_dim = {embedding_dim}; both must be at least 1"
            )
        _check_hot_rows(hot_rows, num_embeddings)
        self.num_embeddings, self.embedding_dim, self.mode = num_embeddings, embedding_dim, mode
        self._tier = ColdTier(None if cold_dir is None else Path(cold_dir))
        self.hot = nn.Parameter(torch.zeros(hot_rows, embedding_dim, dtype=dtype, device=device))
        cold_shape = (num_embeddings - hot_rows, embedding_dim)
        self.cold = nn.Parameter(self._tier.zeros(cold_shape, self.hot.dtype, self.hot.device))
        empty = torch.empty(0, dtype=position_dtype(num_embeddings), device=self.hot.device)
        self.register_buffer("remap", empty)

    @property
    def hot_rows(self) -> int:
        """Rows in the hot tier."""
        return self.hot.shape[0]

    @property
    def cold_dir(self) -> Path | None:
        """The folder of the cold tier's file; None: it is in memory."""
        return self._tier.folder

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws the table anew, from torch's global generator."""
        if self.hot.is_meta:
            return
        bound = 1.0 / math.sqrt(self.num_embeddings)
        for start, stop in chunks(self.num_embeddings, self.cold):
            drawn = self.cold.new_empty(stop - start, self.embedding_dim).uniform_(-bound, bound)
            write_rows(self.hot, self.cold, positions_of(self.remap, start, stop), drawn)

    @classmethod
    def from_config(
        cls,
        config: TableConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """The module for a table.

        Options: "hot_rows" (needed); "ranked", whether there is to be a remap, at first of ids to themselves:
        `retier` or `load_state_dict` brings the ranking; "cold_dir".
        """
        own = dict(config.options)
        ranked = own.pop("ranked", False)
        rankings = _RANKINGS.get()
        bag = cls._configured(
            dataclasses.replace(config, options=own),
            "tiered",
            _OPTIONS,
            {"hot_rows": 10000},
            ranking=None if rankings is None else rankings(config),
            device=device,
            dtype=dtype,
        )
        if ranked and not bag.remap.numel():
            bag.remap = torch.arange(config.num_embeddings, dtype=bag.remap.dtype, device=bag.remap.device)
        return bag

    @classmethod
    def from_pretrained(
        cls,
        weight: Tensor,
        hot_rows: int,
        *,
        ranking: Ranking | None = None,
        mode: Pooling = "sum",
        cold_dir: Path | str | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """The table whose row i is weight[i], [num_embeddings, embedding_dim]."""
        bag = cls.__new__(cls)
        rows, dim = weight.shape
        bag._prepare(rows, dim, hot_rows, mode, cold_dir, weight.dtype, device)
        if ranking is not None:
            bag.remap = ranks_of(ranking, rows)[0].to(bag.remap.device)
        take_rows(bag, weight)
        return bag

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
        tables = ([bag.hot for bag in bags], [bag.cold for bag in bags], [bag.remap for bag in bags])
        mean = [bag.mode == "mean" for bag in bags]
        update = _update_of(bags)
        mapped = [bag.cold_dir is not None and bag.ask_ahead is not False for bag in bags]
        if (
            any(mapped)
            and not torch.compiler.is_compiling()
            and (_WAITS.lately() or any(bag.ask_ahead for bag in bags))
        ):
            states = [] if update is None else update.states[1]
            ops.tiered_ask_ahead(*tables, states, indices, bounds, mapped)
        if update is None:
            return ops.tiered_bag(*tables, indices, bounds, per_sample_weights, mean)
        return ops.tiered_bag_updating(*tables, indices, bounds, per_sample_weights, mean, update)

    @property
    def learns(self) -> bool:
        """Whether the rows get updates or gradients."""
        return self._update is not None or self.hot.requires_grad or self.cold.requires_grad

    def fuse_update(self, update: FusedUpdate | None) -> None:
        """Lets the backward passes to come update the rows; see `FusesUpdate.fuse_update`.

        The tiers stop to require gradients, and start again with None. To be called once the module has its
        device and dtype. States have the rows' dtype, are zero at first, and are where their rows are: none
        for "sgd", one number per row for "rowwise_adagrad", as large as the table for "adagrad", twice that
        for "adam".
        """
        for name in self._state_names():
            delattr(self, name)
        self._update = update
        self._states_per_tier = 0 if update is None else len(_STATES[update.algorithm])
        for tier in (self.hot, self.cold):
            tier.requires_grad_(update is None)
            tier.grad = None
        rowwise = update is not None and update.algorithm == "rowwise_adagrad"
        for s in range(self._states_per_tier):
            hot_shape, cold_shape = (t.shape[:1] if rowwise else t.shape for t in (self.hot, self.cold))
            self.register_buffer(f"_hot_state_{s}", self.hot.new_zeros(hot_shape), persistent=False)
            zeros = self._tier.zeros(cold_shape, self.cold.dtype, self.hot.device)
            self.register_buffer(f"_cold_state_{s}", zeros, persistent=False)

    def update_state(self) -> dict[str, Tensor]:
        """The rule's states by name: "hot" [hot_rows] and "cold" (row-wise Adagrad), "hot.sum" and "cold.sum"
        (Adagrad), "hot.exp_avg", "hot.exp_avg_sq", those of "cold", and "step" (Adam)."""
        if self._update is None:
            return {}
        await_kernels(self.hot)
        suffixes = _STATES[self._update.algorithm]
        state = {
            f"{tier}{suffix}": found
            for tier in ("hot", "cold")
            for suffix, found in zip(suffixes, self._states(tier), strict=True)
        }
        if self._update.algorithm == "adam":
            state["step"] = self._update.numbers(self.hot.device)[-1:]
        return state

    def _state_names(self) -> list[str]:
        return [f"_{tier}_state_{s}" for tier in ("hot", "cold") for s in range(self._states_per_tier)]

    def _states(self, tier: str) -> list[Tensor]:
        found = [self._buffers[f"_{tier}_state_{s}"] for s in range(self._states_per_tier)]
        return [state for state in found if state is not None]

    def set_hot_rows(self, hot_rows: int) -> None:
        """Moves rows between the tiers, so that the hot one has `hot_rows`; see `retier`."""
        self.retier(hot_rows=hot_rows)

    @torch.no_grad()
    def retier(
        self,
        *,
        hot_rows: int | None = None,
        ranking: Ranking | None = None,
        beside: Sequence[tuple[Tensor, Tensor]] = (),
    ) -> list[tuple[Tensor, Tensor]]:
        """Moves rows to where another split or another ranking has them; none loses its weights or its state.

        hot_rows, ranking  as the constructor's; None: as it is. An empty ranking: in the order of ids
        beside  tensors with as many rows as `hot` and `cold`, which an optimizer keeps
        returns  those, moved as the rows are

        `hot` and `cold` are new parameters afterwards: an optimizer that holds the old ones must be made
        anew, or moved by `retier_with_optimizer`. Until the call ends there are both, in memory or files.
        """
        hot_rows = self.hot_rows if hot_rows is None else hot_rows
        _check_hot_rows(hot_rows, self.num_embeddings)
        remap, ids = self.remap, None
        if ranking is not None:
            remap, ids = ranks_of(ranking, self.num_embeddings)
            remap = remap.to(self.remap.device)
        elif hot_rows == self.hot_rows:
            return list(beside)
        moved = [self._moved(pair, hot_rows, ids) for pair in beside]
        pairs = [("hot", "cold")]
        pairs += [(f"_hot_state_{s}", f"_cold_state_{s}") for s in range(self._states_per_tier)]
        for hot_name, cold_name in pairs:
            old = getattr(self, hot_name), getattr(self, cold_name)
            for name, was, fresh in zip(
                (hot_name, cold_name), old, self._moved(old, hot_rows, ids), strict=True
            ):
                self._put(name, nn.Parameter(fresh, was.requires_grad) if name in ("hot", "cold") else fresh)
        self.remap = remap
        return moved

    def _moved(
        self, tiers: tuple[Tensor, Tensor], hot_rows: int, ids: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """A hot and a cold tensor for another split, with the rows of these."""
        hot, cold = tiers
        fresh_hot = hot.new_zeros(hot_rows, *hot.shape[1:])
        cold_shape = (self.num_embeddings - hot_rows, *cold.shape[1:])
        fresh_cold = self._tier.zeros(cold_shape, cold.dtype, self.hot.device)
        move_rows((hot, cold, self.remap), (fresh_hot, fresh_cold), ids)
        return fresh_hot, fresh_cold

    def _put(self, name: str, tensor: Tensor) -> None:
        if isinstance(tensor, nn.Parameter):
            self._parameters[name] = tensor
        else:
            self._buffers[name] = tensor

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves and converts the hot tier; the cold one follows in dtype, and stays in host memory."""
        names = ["cold", *(name for name in self._state_names() if name.startswith("_cold"))]
        before = {name: getattr(self, name) for name in names}
        for name in names:
            self._put(name, nn.Parameter(torch.empty(0)) if name == "cold" else torch.empty(0))
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in before.items():
            fresh = self._tier.following(old.detach(), self.hot)
            if name != "cold":
                self._put(name, fresh)
            else:
                same = fresh.data_ptr() == old.data_ptr() and fresh.dtype == old.dtype
                self._put(name, old if same else nn.Parameter(fresh, old.requires_grad))
        return self

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *arguments: Any, **named: Any
    ) -> None:
        """Also takes a dense table's state, and a tiered one's of another split."""
        if not load_rows(self, state_dict, prefix):
            super()._load_from_state_dict(state_dict, prefix, *arguments, **named)

    def _save_to_state_dict(self, *arguments: Any) -> None:
        await_kernels(self.hot)
        super()._save_to_state_dict(*arguments)

    @torch.no_grad()
    def materialize(self) -> Tensor:
        """The whole table in the order of ids, [num_embeddings, embedding_dim], on the hot tier's device."""
        table = self.hot.new_empty(self.num_embeddings, self.embedding_dim)
        for first, rows in rows_in_id_order(self.hot, self.cold, self.remap):
            table[first : first + len(rows)] = rows
        return table

    def settled_options(self) -> dict[str, Any]:
        """The split as it is now, and whether ids are remapped."""
        return {"hot_rows": self.hot_rows, "ranked": self.remap.numel() > 0}

    def tier_bytes(self) -> dict[str, int]:
        """Bytes by place: "hot" and "cold" rows, optimizer's state included, and the "remap"."""
        hot, cold = [self.hot, *self._states("hot")], [self.cold, *self._states("cold")]
        tiers = {"hot": hot, "cold": cold, "remap": [self.remap]}
        return {name: sum(t.numel() * t.element_size() for t in found) for name, found in tiers.items()}

    def storage_bytes(self) -> int:
        """Bytes of the rows of both tiers, and of the remap."""
        return sum(t.numel() * t.element_size() for t in (self.hot, self.cold, self.remap))

    def flops_per_lookup(self) -> int:
        """Additions to pool one row."""
        return self.embedding_dim

    def extra_repr(self) -> str:
        """Shape, split and pooling."""
        place = "memory" if self.cold_dir is None else str(self.cold_dir)
        return (
            f"{self.num_embeddings}, {self.embedding_dim}, hot_rows={self.hot_rows}, mode={self.mode!r}, "
            f"remapped={self.remap.numel() > 0}, cold tier in {place}"
        )


@contextmanager
def tables_by_rank(rankings: Rankings) -> Iterator[None]:
    """In the block, `TieredEmbeddingBag.from_config` draws a table's rows where its ranking has them.

    The rows are those that `retier` would move there; they are written once.
    """
    token = _RANKINGS.set(rankings)
    try:
        yield
    finally:
        _RANKINGS.reset(token)


def _check_hot_rows(hot_rows: int, num_embeddings: int) -> None:
    if not 0 <= hot_rows <= num_embeddings:
        raise InputError(f"hot_rows = {hot_rows}; it must be 0 to the table's {num_embeddings} rows")


def _update_of(bags: Sequence[TieredEmbeddingBag]) -> ops.RowUpdate | None:
    """What the op needs to update tables that are looked up together; None: they get gradients."""
    update = shared_update(bags)
    if update is None:
        return None
    hot, cold = ([state for bag in bags for state in bag._states(tier)] for tier in ("hot", "cold"))
    return ops.RowUpdate(ops.TT_ALGORITHMS[update.algorithm], [hot, cold], update.numbers(bags[0].hot.device))
