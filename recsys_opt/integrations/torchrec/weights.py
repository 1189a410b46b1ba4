"""Weights and optimizer states of sharded tier tables, in and out, as the unsharded tables have them.

What is read and written has the rows in the order of their ids, so that it does not depend on the plan: a
checkpoint of one plan goes into the model of another, or into an unsharded EmbeddingBagCollection.

Every process calls the same function at the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn
from torchrec.distributed.model_parallel import get_unwrapped_module

from recsys_opt.errors import InputError, RecsysOptError
from recsys_opt.files import atomic_path
from recsys_opt.integrations.plan_layout import TierTable
from recsys_opt.integrations.torchrec.plan import PlannedEmbeddingBagCollection, planned_collections
from recsys_opt.integrations.torchrec.rankings import table_order
from recsys_opt.integrations.torchrec.sharding import ShardedTierTables
from recsys_opt.plan import TablePlan
from recsys_opt.tensor_files import TensorWriter, map_tensors, read_metadata

_NO_ROWS = partial(np.empty, 0, np.int64)
FORMAT = {"format": "recsys_opt.planned_tables", "version": "1"}
_CHUNK_BYTES = 64 << 20


@dataclass(frozen=True)
class _Part:
    """Rows of a table that this process holds."""

    ids: NDArray[np.int64]
    """Ascending."""
    rows: NDArray[np.int64]
    """Of each of `ids`, where it is in `target`."""
    columns: slice
    """Which columns of the whole tensor they are."""
    target: Tensor


@dataclass(frozen=True)
class Whole:
    """A tensor of the unsharded table [rows, columns] or [rows], and what this process holds of it."""

    table: str
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    rowwise: bool = False
    """A state of one number for the columns of each shard."""
    held: tuple[tuple[TierTable, slice, Tensor], ...] = ()
    """Tier tables of this process, the columns that they are, and their tensors [rows, columns]."""
    order: Callable[[], NDArray[Any]] = _NO_ROWS
    """Gives the table's rows by rank."""
    copy: Tensor | None = None
    """Of a replicated table: all of it, which every process holds."""

    def parts(self) -> list[_Part]:
        """Takes 16 bytes a row that is held."""
        if self.copy is not None:
            every = np.arange(self.shape[0])
            return [_Part(every, every, slice(None), self.copy)]
        if not self.held:
            return []
        order, parts = self.order(), []
        for tier, columns, target in self.held:
            ids = order[tier.ranks].astype(np.int64)
            rows = np.argsort(ids)
            parts.append(_Part(ids[rows], rows, columns, target))
        return parts

    def chunks(self) -> Iterator[tuple[int, int]]:
        """First and last row of each chunk."""
        step = max(1, _CHUNK_BYTES // (self.dtype.itemsize * int(np.prod(self.shape[1:]))))
        for first in range(0, self.shape[0], step):
            yield first, min(first + step, self.shape[0])


def load_weights(model: nn.Module, tables: Mapping[str, Tensor]) -> None:
    """Copies unsharded tables into the model: each process takes the rows that it holds.

    tables  as the state dict of the model with an EmbeddingBagCollection instead: `<where it
            is>.embedding_bags.<table>.weight` -> [num_embeddings, embedding_dim]; memory-mapped ones are
            read where they are needed

    Call it after DistributedModelParallel, which keeps no weights of the module it is given.
    """
    for prefix, module in sharded_collections(model):
        for whole in whole_weights(prefix, module):
            if whole.name not in tables:
                raise InputError(f"the weights lack {whole.name}; give the state dict of the unsharded model")
            _scatter(whole, tables[whole.name], "the weights")


def save_tables(model: nn.Module, path: Path | str) -> None:
    """Writes the tables and their fused optimizers' states into one safetensors file, which appears whole.

    The first process writes; the others send it their rows, 64 MB of a table at a time. The file's weights
    load into an unsharded model by their names. Beside `<table>.weight` is the state: `<table>.momentum1`
    [rows, columns] of Adagrad, `<table>.row_momentum1` [rows] of row-wise Adagrad ([rows, column shards]
    where the plan cuts columns). The model's other parameters are not in it.
    """
    path = Path(path)
    wholes = [
        w
        for prefix, m in sharded_collections(model)
        for w in (*whole_weights(prefix, m), *whole_states(prefix, m))
    ]
    device = next(iter(sharded_collections(model)))[1].device
    gathered = (rows for whole in wholes for rows in _gathered(whole, device))
    problem: Exception | None = None
    if distributed.get_rank() == 0:
        try:
            shapes = {w.name: (w.dtype, w.shape) for w in wholes}
            with atomic_path(path) as temporary, TensorWriter(temporary, shapes, metadata=FORMAT) as writer:
                for rows in gathered:
                    writer.write(rows)
        except (OSError, RecsysOptError) as error:
            problem = error
    for _ in gathered:  # all of them in the other processes; in the first what is left after a failure
        pass
    _raise_everywhere(problem, path)


def load_tables(model: nn.Module, path: Path | str, *, states: bool = True) -> None:
    """Reads what `save_tables` wrote, under this plan or another, back into the model.

    states  those of the same fused optimizer; where the number of column shards is another, each gets the
            mean of the states that its columns had. False: weights alone, and the optimizer starts anew, as
            it must where a table was replicated, and its state therefore is not in the file

    Every process needs to see the file.
    """
    path = Path(path)
    found = read_metadata(path)
    if {key: found.get(key) for key in FORMAT} != FORMAT:
        raise InputError(
            f"{path} is not a {FORMAT['format']} file of version {FORMAT['version']}: it says "
            f"{found or 'nothing'}; plain weights go into a model by load_weights"
        )
    tensors = map_tensors(path)
    for prefix, module in sharded_collections(model):
        for whole in (*whole_weights(prefix, module), *(whole_states(prefix, module) if states else ())):
            if whole.name not in tensors:
                raise InputError(
                    f"{path} lacks {whole.name}; a model of other tables or with another optimizer wrote it, "
                    "or the table was replicated there: states=False loads the weights alone"
                )
            _scatter(whole, _as_many_columns(tensors[whole.name], whole), str(path))


def sharded_collections(model: nn.Module) -> Iterator[tuple[str, PlannedEmbeddingBagCollection]]:
    """The model's planned collections after DistributedModelParallel, by the prefix of their names."""
    found = False
    for name, module in planned_collections(get_unwrapped_module(model)):
        found = True
        if not isinstance(module.tiers, ShardedTierTables):
            raise InputError(
                f"{name or 'the model'} is not sharded yet; call this after DistributedModelParallel"
            )
        yield f"{name}." if name else "", module
    if not found:
        raise InputError("the model has no PlannedEmbeddingBagCollection")


def whole_weights(prefix: str, module: PlannedEmbeddingBagCollection) -> Iterator[Whole]:
    """Of every table of the plan."""
    bags, mine = module.tiers.embedding_bags, _tiers_here(module)
    for table in module.layout.plan.tables:
        name, shape = (
            f"{prefix}embedding_bags.{table.name}.weight",
            (table.num_embeddings, table.embedding_dim),
        )
        if table.replicated:
            yield Whole(table.name, name, shape, torch.float32, copy=bags[table.name].weight.detach())
            continue
        held = tuple(
            (tier, slice(*tier.piece.columns), bags[tier.name].weight.detach())
            for tier in mine.get(table.name, ())
        )
        yield Whole(table.name, name, shape, torch.float32, held=held, order=_order(module, table))


def whole_states(prefix: str, module: PlannedEmbeddingBagCollection) -> Iterator[Whole]:
    """States of the fused optimizers; every process gives the same list."""
    here: dict[str, dict[str, Tensor]] = {}
    for key, states in module.tiers.fused_optimizer.state_dict()["state"].items():
        table = key.removeprefix("embedding_bags.").removesuffix(".weight")
        here[table] = {
            state.removeprefix(f"{table}."): sharded.local_shards()[0].tensor
            for state, sharded in states.items()
        }
    # A process without tables has no states; it learns of them from the others.
    kinds: list[set[tuple[str, int, torch.dtype]]] = [set() for _ in range(distributed.get_world_size())]
    known = {(state, t.dim(), t.dtype) for states in here.values() for state, t in states.items()}
    distributed.all_gather_object(kinds, known)
    for state, dimensions, dtype in sorted(set.union(*kinds), key=str):
        if state != "momentum1":
            raise InputError(
                f"the fused optimizer has a state {state!r} of {dimensions} dimensions; tables can be saved "
                "with SGD, Adagrad and row-wise Adagrad"
            )
        yield from _states_of_kind(prefix, module, here, state, dimensions, dtype)


def _states_of_kind(
    prefix: str,
    module: PlannedEmbeddingBagCollection,
    here: Mapping[str, Mapping[str, Tensor]],
    state: str,
    dimensions: int,
    dtype: torch.dtype,
) -> Iterator[Whole]:
    mine = _tiers_here(module)
    for table in module.layout.plan.tables:
        if table.replicated:
            continue
        held = []
        for tier in mine.get(table.name, ()):
            first, last = tier.piece.columns
            shard, tensor = first // tier.piece.width, here[tier.name][state]
            if dimensions == 2:
                held.append((tier, slice(first, last), tensor))
            else:
                held.append((tier, slice(shard, shard + 1), tensor[:, None]))
        columns = table.embedding_dim if dimensions == 2 else table.column_shards
        shape = (table.num_embeddings,) if columns == 1 else (table.num_embeddings, columns)
        name = f"{prefix}embedding_bags.{table.name}.{'row_' if dimensions == 1 else ''}{state}"
        yield Whole(table.name, name, shape, dtype, dimensions == 1, tuple(held), _order(module, table))


def _tiers_here(module: PlannedEmbeddingBagCollection) -> dict[str, list[TierTable]]:
    """Table -> its tier tables on this process."""
    rank = distributed.get_rank()
    found: dict[str, list[TierTable]] = {}
    for tier in module.layout.tables:
        if tier.piece.device == rank:
            found.setdefault(tier.piece.table, []).append(tier)
    return found


def _order(module: PlannedEmbeddingBagCollection, table: TablePlan) -> Callable[[], NDArray[Any]]:
    return partial(table_order, module.rankings, table.name, table.num_embeddings)


def _of_chunk(part: _Part, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Ids of a part between two rows, counted from the first, and where they are in its target."""
    begin, end = np.searchsorted(part.ids, [first, last])
    device = part.target.device
    return (
        torch.from_numpy(part.ids[begin:end] - first).to(device),
        torch.from_numpy(part.rows[begin:end]).to(device),
    )


def _gathered(whole: Whole, device: torch.device) -> Iterator[Tensor]:
    """Chunks of the whole tensor, on the first process."""
    columns = whole.shape[1] if len(whole.shape) == 2 else 1
    # Each number comes from one process, the others add 0.
    parts = whole.parts() if whole.copy is None or distributed.get_rank() == 0 else []
    for first, last in whole.chunks():
        buffer = torch.zeros(last - first, columns, dtype=whole.dtype, device=device)
        for part in parts:
            ids, rows = _of_chunk(part, first, last)
            buffer[ids, part.columns] = part.target[rows]
        distributed.reduce(buffer, 0)
        yield buffer


def _scatter(whole: Whole, source: Tensor, where: str) -> None:
    """Copies this process's rows from the whole tensor."""
    if tuple(source.shape) != whole.shape or source.dtype != whole.dtype:
        raise InputError(
            f"{where}: {whole.name} is {source.dtype} {list(source.shape)}; the plan has {whole.dtype} "
            f"{list(whole.shape)}"
        )
    source = source.detach().reshape(whole.shape[0], -1)
    for part in whole.parts():
        for first, last in whole.chunks():
            ids, rows = _of_chunk(part, first, last)
            values = source[first:last][ids.cpu(), part.columns]
            part.target[rows] = values.to(part.target.device)


def _as_many_columns(source: Tensor, whole: Whole) -> Tensor:
    """A row-wise state for another number of column shards."""
    if not whole.rowwise or source.shape == torch.Size(whole.shape):
        return source
    found = source.reshape(source.shape[0], -1)
    weights = shard_weights(found.shape[1], whole.shape[1] if len(whole.shape) == 2 else 1)
    made = found @ torch.from_numpy(weights.T).to(found)
    return made.reshape(made.shape[0], *whole.shape[1:])


def shard_weights(before: int, after: int) -> NDArray[np.float64]:
    """[after, before] share of each of `after` column shards that each of `before` shards had.

    A row-wise state is a mean over its shard's columns; that of a new shard is made of those before.
    """
    edges = [np.arange(n + 1) / n for n in (after, before)]
    common = np.minimum(edges[0][1:, None], edges[1][1:]) - np.maximum(edges[0][:-1, None], edges[1][:-1])
    return np.where(common > 1e-12, common * after, 0.0)


def _raise_everywhere(problem: Exception | None, path: Path) -> None:
    """Every process fails if the first one does."""
    said = [None if problem is None else str(problem)]
    distributed.broadcast_object_list(said, 0)
    if problem is not None:
        raise problem
    if said[0] is not None:
        raise RecsysOptError(f"the first process could not write {path}: {said[0]}")
