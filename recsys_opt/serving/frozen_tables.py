"""The tables of a trained model, frozen for serving and looked up with one id per feature."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from recsys_opt import ops
from recsys_opt.embeddings.base import EmbeddingRepresentation
from recsys_opt.embeddings.collection import EmbeddingCollection
from recsys_opt.embeddings.dense import DenseEmbeddingBag
from recsys_opt.embeddings.dhe import DHEEmbeddingBag
from recsys_opt.embeddings.dhe_cache import CachedDHEBag
from recsys_opt.embeddings.hybrid import HybridEmbeddingBag
from recsys_opt.embeddings.tt import TTEmbeddingBag
from recsys_opt.embeddings.tt_freeze import Level


def frozen_table(bag: EmbeddingRepresentation, level: Level) -> EmbeddingRepresentation:
    """A table as it is served: a tensor train at a level, others as their own `freeze` has them, if any."""
    if isinstance(bag, TTEmbeddingBag):
        return bag.freeze(level)
    freeze = getattr(bag, "freeze", None)
    found = bag if freeze is None else freeze()
    assert isinstance(found, EmbeddingRepresentation)
    return found.eval().requires_grad_(False)


class RowTables:
    """Tables of stored rows in float32 on the CPU: one kernel for all."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        """weights  of each feature, [n, D]; one that features share occurs several times"""
        self.weights = list(weights)
        self._sum = [0] * len(self.weights)
        self._look_up = ops.library.eager_op("dense_bag")

    def __call__(self, ids: Tensor) -> Tensor:
        """Rows of the features' ids, [F, B], as [B, F * D]."""
        rows: Tensor = self._look_up(self.weights, ids.reshape(-1), None, None, self._sum)
        return rows

    def tensors(self) -> list[Tensor]:
        """What the lookups read, each once."""
        return list({id(w): w for w in self.weights}.values())


class StackedTables:
    """Tables of stored rows, one below the other in one tensor of any floating-point type, on any device."""

    def __init__(self, rows: Tensor, starts: Sequence[int]) -> None:
        """rows  [N, D]; row 0 of feature f's table is rows[starts[f]]"""
        self.rows = rows
        self._starts = torch.tensor(list(starts), device=rows.device)

    def __call__(self, ids: Tensor) -> Tensor:
        """Rows of the features' ids, [F, B], as [B, F * D] in float32."""
        at = (ids.t() + self._starts).reshape(-1)
        return self.rows.index_select(0, at).view(ids.shape[1], -1).float()

    def tensors(self) -> list[Tensor]:
        """What the lookups read."""
        return [self.rows]


class MadeTables:
    """Tables of one representation that makes its rows, as its own `forward_group` does."""

    def __init__(self, bags: Sequence[EmbeddingRepresentation], bf16: bool = False) -> None:
        """The bags of each feature; one that features share occurs several times.

        bf16  round the operands of products
        """
        self.bags = list(bags)
        self._kind, self._bf16 = type(self.bags[0]), bf16

    def __call__(self, ids: Tensor) -> Tensor:
        """Rows of the features' ids, [F, B], as [B, the tables' columns]."""
        if not self._bf16:
            return self._kind.forward_group(self.bags, ids.reshape(-1)).float()
        before = ops.tt_allow_bf16(True)
        try:
            return self._kind.forward_group(self.bags, ids.reshape(-1)).float()
        finally:
            ops.tt_allow_bf16(before)

    def tensors(self) -> list[Tensor]:
        """What the lookups read, each once."""
        return [
            t for bag in {id(b): b for b in self.bags}.values() for t in (*bag.parameters(), *bag.buffers())
        ]


Tables = RowTables | StackedTables | MadeTables
"""A group: features that are looked up in one call."""


class FrozenTables:
    """All tables of a model: groups, and which features each looks up."""

    def __init__(
        self, groups: Sequence[tuple[Tables, Sequence[tuple[int, int, int]]]], device: torch.device
    ) -> None:
        """groups  each with its blocks of columns in order, as (place among all blocks, feature, columns)"""
        features = [[feature for _, feature, _ in blocks] for _, blocks in groups]
        self._alone = len(groups) == 1 and features[0] == list(range(len(features[0])))
        self.groups = [
            (group, torch.tensor(own, device=device))
            for (group, _), own in zip(groups, features, strict=True)
        ]
        blocks = [block for _, own in groups for block in own]
        columns = {place: width for place, _, width in blocks}
        self.columns = tuple(columns[place] for place in range(len(blocks)))
        """Of the model's blocks in its own order: one for each feature, or for each part of a hybrid's."""
        places = [place for place, _, _ in blocks]
        self.order = [places.index(place) for place in range(len(blocks))]
        """Where each block is in the groups' rows side by side, in blocks."""

    def __call__(self, ids: Tensor) -> list[Tensor]:
        """The rows of ids [F, B], by group."""
        if self._alone:
            return [self.groups[0][0](ids)]
        return [group(ids.index_select(0, at)) for group, at in self.groups]

    def tensors(self) -> list[Tensor]:
        """What the lookups read."""
        return [t for group, _ in self.groups for t in group.tensors()]


def freeze_tables(
    collection: EmbeddingCollection,
    dim: int,
    level: Level,
    stacked: Tensor | None,
    device: torch.device,
    *,
    bf16_networks: bool = False,
) -> FrozenTables:
    """The tables as they are served.

    dim      of the model's vectors: a hybrid whose parts are such vectors is looked up part by part
    level    of tensor trains
    stacked  the rows of the collection's dense tables, one table below the other in its order, to be served
             in their place; None: those of the collection itself
    bf16_networks  round the operands of the products of deep hash embeddings
    """
    bags = {c.name: frozen_table(collection.table(c.name), level) for c in collection.configs}
    owners = [bags[c.name] for c in collection.configs for _ in c.feature_names]
    parts = [(part, feature) for feature, bag in enumerate(owners) for part in _parts(bag, dim)]
    by_kind: dict[_Kind, list[int]] = {}
    for place, (part, _) in enumerate(parts):
        by_kind.setdefault(_kind(part, stacked is not None), []).append(place)
    groups = []
    for kind, places in by_kind.items():
        own = [parts[place][0] for place in places]
        if kind == _STACKED:
            assert stacked is not None
            starts = _starts(list(dense_tables(collection).values()))
            group: Tables = StackedTables(stacked.to(device), [starts[id(bag)] for bag in own])
        elif kind[0] is DenseEmbeddingBag:
            group = _stored([cast(DenseEmbeddingBag, bag) for bag in own], device)
        else:
            group = MadeTables([bag.to(device) for bag in own], bf16_networks and kind[0] in _NETWORKS)
        groups.append((group, [(p, parts[p][1], parts[p][0].embedding_dim) for p in places]))
    return FrozenTables(groups, device)


def dense_tables(collection: EmbeddingCollection) -> dict[str, DenseEmbeddingBag]:
    """The collection's tables of stored rows that are trained as such, in order."""
    tables = {c.name: collection.table(c.name) for c in collection.configs}
    return {name: bag for name, bag in tables.items() if type(bag) is DenseEmbeddingBag}


def _parts(bag: EmbeddingRepresentation, dim: int) -> list[EmbeddingRepresentation]:
    if not isinstance(bag, HybridEmbeddingBag) or bag.table.embedding_dim % dim:
        return [bag]
    return [bag.table, bag.dhe]


_NETWORKS = (DHEEmbeddingBag, CachedDHEBag, HybridEmbeddingBag)
_Kind = tuple[type | None, int]
_STACKED: _Kind = (None, 0)


def _kind(bag: EmbeddingRepresentation, stacked: bool) -> _Kind:
    """What tables that are looked up in one call have in common: the class, and of stored rows the width."""
    if stacked and type(bag) is DenseEmbeddingBag:
        return _STACKED
    stored = isinstance(bag, DenseEmbeddingBag)
    return (DenseEmbeddingBag, bag.embedding_dim) if stored else (type(bag), 0)


def _stored(bags: Sequence[DenseEmbeddingBag], device: torch.device) -> Tables:
    if device.type == "cpu":
        return RowTables([bag.weight.detach() for bag in bags])
    each = list({id(bag): bag for bag in bags}.values())
    starts = _starts(each)
    rows = torch.cat([bag.weight.detach() for bag in each])
    return StackedTables(rows.to(device), [starts[id(bag)] for bag in bags])


def _starts(bags: Sequence[DenseEmbeddingBag]) -> dict[int, int]:
    """Where each table's rows begin when they are one below the other, by the table's id()."""
    ends = itertools.accumulate((bag.num_embeddings for bag in bags), initial=0)
    return dict(zip(map(id, bags), ends, strict=False))
