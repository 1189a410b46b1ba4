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

    def __init__(self, bags: Sequence[EmbeddingRepresentation]) -> None:
        """bags  of each feature; one that features share occurs several times"""
        self.bags = list(bags)
        self._kind = type(self.bags[0])

    def __call__(self, ids: Tensor) -> Tensor:
        """Rows of the features' ids, [F, B], as [B, the tables' columns]."""
        return self._kind.forward_group(self.bags, ids.reshape(-1)).float()

    def tensors(self) -> list[Tensor]:
        """What the lookups read, each once."""
        return [
            t for bag in {id(b): b for b in self.bags}.values() for t in (*bag.parameters(), *bag.buffers())
        ]


Tables = RowTables | StackedTables | MadeTables
"""A group: features that are looked up in one call."""


class FrozenTables:
    """All tables of a model: groups, and the features of each."""

    def __init__(self, groups: Sequence[tuple[Tables, Sequence[int]]], device: torch.device) -> None:
        """groups  each with the positions of its features among all"""
        self._alone = len(groups) == 1
        self.groups = [(group, torch.tensor(list(at), device=device)) for group, at in groups]
        blocks = [p for _, positions in groups for p in positions]
        self.order = [blocks.index(f) for f in range(len(blocks))]
        """Column block of each feature in the groups' rows side by side."""

    def __call__(self, ids: Tensor) -> list[Tensor]:
        """The rows of ids [F, B], by group."""
        if self._alone:
            return [self.groups[0][0](ids)]
        return [group(ids.index_select(0, at)) for group, at in self.groups]

    def tensors(self) -> list[Tensor]:
        """What the lookups read."""
        return [t for group, _ in self.groups for t in group.tensors()]


def freeze_tables(
    collection: EmbeddingCollection, level: Level, stacked: Tensor | None, device: torch.device
) -> FrozenTables:
    """The tables as they are served.

    level    of tensor trains
    stacked  the rows of the collection's dense tables, one table below the other in its order, to be served
             in their place; None: those of the collection itself
    """
    bags = {c.name: frozen_table(collection.table(c.name), level) for c in collection.configs}
    owners = [c.name for c in collection.configs for _ in c.feature_names]
    by_kind: dict[_Kind, list[int]] = {}
    for position, name in enumerate(owners):
        by_kind.setdefault(_kind(bags[name], stacked is not None), []).append(position)
    starts = _starts(dense_tables(collection))
    groups: list[tuple[Tables, Sequence[int]]] = []
    for kind, positions in by_kind.items():
        names = [owners[p] for p in positions]
        if kind == _STACKED:
            assert stacked is not None
            group: Tables = StackedTables(stacked.to(device), [starts[name] for name in names])
        elif kind[0] is DenseEmbeddingBag:
            group = _stored({name: cast(DenseEmbeddingBag, bags[name]) for name in names}, names, device)
        else:
            group = MadeTables([bags[name].to(device) for name in names])
        groups.append((group, positions))
    return FrozenTables(groups, device)


def dense_tables(collection: EmbeddingCollection) -> dict[str, DenseEmbeddingBag]:
    """The collection's tables of stored rows that are trained as such, in order."""
    tables = {c.name: collection.table(c.name) for c in collection.configs}
    return {name: bag for name, bag in tables.items() if type(bag) is DenseEmbeddingBag}


_Kind = tuple[type | None, int]
_STACKED: _Kind = (None, 0)


def _kind(bag: EmbeddingRepresentation, stacked: bool) -> _Kind:
    """What tables that are looked up in one call have in common: the class, and of stored rows the width."""
    if stacked and type(bag) is DenseEmbeddingBag:
        return _STACKED
    stored = isinstance(bag, DenseEmbeddingBag)
    return (DenseEmbeddingBag, bag.embedding_dim) if stored else (type(bag), 0)


def _stored(tables: dict[str, DenseEmbeddingBag], names: Sequence[str], device: torch.device) -> Tables:
    """The tables of features, by name, each once in `tables`."""
    weights = {name: table.weight.detach() for name, table in tables.items()}
    if device.type == "cpu":
        return RowTables([weights[name] for name in names])
    starts = _starts(tables)
    return StackedTables(torch.cat(list(weights.values())).to(device), [starts[name] for name in names])


def _starts(tables: dict[str, DenseEmbeddingBag]) -> dict[str, int]:
    """Where each table's rows begin when they are one below the other."""
    ends = itertools.accumulate((table.num_embeddings for table in tables.values()), initial=0)
    return dict(zip(tables, ends, strict=False))
