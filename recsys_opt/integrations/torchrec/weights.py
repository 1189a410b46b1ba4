"""Weights and optimizer states of sharded tier tables, in and out, as the unsharded tables have them.

What is read and written has the rows in the order of their ids, so that it does not depend on the plan: a
checkpoint of one plan goes into the model of another, or into an unsharded EmbeddingBagCollection.

Every process calls the same function at the same time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

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


@dataclass
class _Whole:
    """A tensor of the unsharded table [rows, columns] or [rows], and what this process holds of it."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    parts: list[_Part] = field(default_factory=list)

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
    for prefix, module in _sharded(model):
        for whole in _weights(prefix, module):
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
    wholes = [w for prefix, m in _sharded(model) for w in (*_weights(prefix, m), *_states(prefix, m))]
    device = next(iter(_sharded(model)))[1].device
    gathered = (_gather(w, first, last, device) for w in wholes for first, last in w.chunks())
    problem: Exception | None = None
    if distributed.get_rank() == 0:
        try:
            shapes = {w.name: (w.dtype, w.shape) for w in wholes}
            with atomic_path(path) as partial, TensorWriter(partial, shapes, metadata=FORMAT) as writer:
                for rows in gathered:
                    writer.write(rows)
        except (OSError, RecsysOptError) as error:
            problem = error
    for _ in gathered:  # all of them in the other processes; in the first what is left after a failure
        pass
    _raise_everywhere(problem, path)


def load_tables(model: nn.Module, path: Path | str, *, states: bool = True) -> None:
    """Reads what `save_tables` wrote, under this plan or another, back into the model.

    states  those of the same fused optimizer; where the number of column shards is another, each shard gets
            the mean of the states that the file has. False: weights alone, and the optimizer starts anew, as
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
    for prefix, module in _sharded(model):
        for whole in (*_weights(prefix, module), *(_states(prefix, module) if states else ())):
            if whole.name not in tensors:
                raise InputError(
                    f"{path} lacks {whole.name}; a model of other tables or with another optimizer wrote it, "
                    "or the table was replicated there: states=False loads the weights alone"
                )
            _scatter(whole, _as_many_columns(tensors[whole.name], whole), str(path))


def _sharded(model: nn.Module) -> Iterator[tuple[str, PlannedEmbeddingBagCollection]]:
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


def _weights(prefix: str, module: PlannedEmbeddingBagCollection) -> Iterator[_Whole]:
    for table in module.layout.plan.tables:
        shape = (table.num_embeddings, table.embedding_dim)
        whole = _Whole(f"{prefix}embedding_bags.{table.name}.weight", shape, torch.float32)
        if table.replicated:
            every = np.arange(table.num_embeddings)
            weight = module.tiers.embedding_bags[table.name].weight.detach()
            whole.parts.append(_Part(every, every, slice(None), weight))
        for tier, ids in _local_tiers(module, table):
            weight = module.tiers.embedding_bags[tier.name].weight.detach()
            whole.parts.append(_part(ids, slice(*tier.piece.columns), weight))
        yield whole


def _states(prefix: str, module: PlannedEmbeddingBagCollection) -> Iterator[_Whole]:
    """States of the fused optimizers; every process gives the same list."""
    mine: dict[str, dict[str, Tensor]] = {}
    for key, states in module.tiers.fused_optimizer.state_dict()["state"].items():
        name = key.removeprefix("embedding_bags.").removesuffix(".weight")
        mine[name] = {
            state.removeprefix(f"{name}."): sharded.local_shards()[0].tensor
            for state, sharded in states.items()
        }
    kinds = sorted(
        {(state, t.dim(), t.dtype) for states in mine.values() for state, t in states.items()}, key=str
    )
    for states in mine.values():
        for state, tensor in states.items():
            if state != "momentum1":
                raise InputError(
                    f"the fused optimizer has a state {state!r} {list(tensor.shape)}; tables can be saved "
                    "with SGD, Adagrad and row-wise Adagrad"
                )
    gathered: list[list[tuple[str, int, torch.dtype]]] = [[] for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(gathered, kinds)
    for state, dimensions, dtype in sorted({kind for each in gathered for kind in each}, key=str):
        for table in module.layout.plan.tables:
            if table.replicated:
                continue
            columns = table.embedding_dim if dimensions == 2 else table.column_shards
            shape = (table.num_embeddings,) if columns == 1 else (table.num_embeddings, columns)
            name = state if dimensions == 2 else f"row_{state}"
            whole = _Whole(f"{prefix}embedding_bags.{table.name}.{name}", shape, dtype)
            for tier, ids in _local_tiers(module, table):
                first, last = tier.piece.columns
                shard = first // tier.piece.width
                where = slice(first, last) if dimensions == 2 else slice(shard, shard + 1)
                tensor = mine[tier.name][state]
                whole.parts.append(_part(ids, where, tensor if tensor.dim() == 2 else tensor[:, None]))
            yield whole


def _local_tiers(
    module: PlannedEmbeddingBagCollection, table: TablePlan
) -> Iterator[tuple[TierTable, NDArray[np.int64]]]:
    """This process's tier tables of a table, with the ids of their rows in order."""
    rank = distributed.get_rank()
    mine = [t for t in module.layout.tables if t.piece.table == table.name and t.piece.device == rank]
    if mine:
        order = table_order(module.layout.plan, module.rankings, table.name)
        for tier in mine:
            yield tier, order[tier.ranks]


def _part(ids: NDArray[np.int64], columns: slice, target: Tensor) -> _Part:
    rows = np.argsort(ids)
    return _Part(ids[rows], rows, columns, target)


def _of_chunk(part: _Part, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Ids of a part between two rows, counted from the first, and where they are in its target."""
    begin, end = np.searchsorted(part.ids, [first, last])
    device = part.target.device
    return (
        torch.from_numpy(part.ids[begin:end] - first).to(device),
        torch.from_numpy(part.rows[begin:end]).to(device),
    )


def _gather(whole: _Whole, first: int, last: int, device: torch.device) -> Tensor:
    """Rows [first, last) of the whole tensor, on the first process."""
    columns = whole.shape[1] if len(whole.shape) == 2 else 1
    buffer = torch.zeros(last - first, columns, dtype=whole.dtype, device=device)
    for part in whole.parts:
        ids, rows = _of_chunk(part, first, last)
        buffer[ids, part.columns] = part.target[rows]
    # Each number is on one process, the others add 0. Only the first process adds its replicated tables.
    if whole.parts and whole.parts[0].columns == slice(None) and distributed.get_rank():
        buffer.zero_()
    distributed.reduce(buffer, 0)
    return buffer


def _scatter(whole: _Whole, source: Tensor, where: str) -> None:
    """Copies this process's rows from the whole tensor."""
    if tuple(source.shape) != whole.shape or source.dtype != whole.dtype:
        raise InputError(
            f"{where}: {whole.name} is {source.dtype} {list(source.shape)}; the plan has {whole.dtype} "
            f"{list(whole.shape)}"
        )
    source = source.detach().reshape(whole.shape[0], -1)
    for part in whole.parts:
        for first, last in whole.chunks():
            ids, rows = _of_chunk(part, first, last)
            values = source[first:last][ids.cpu(), part.columns]
            part.target[rows] = values.to(part.target.device)


def _as_many_columns(source: Tensor, whole: _Whole) -> Tensor:
    """A row-wise state for another number of column shards."""
    wanted = whole.shape[1] if len(whole.shape) == 2 else 1
    if ".row_" not in whole.name or source.shape == torch.Size(whole.shape):
        return source
    mean = source.reshape(source.shape[0], -1).mean(1, keepdim=True)
    return mean.expand(-1, wanted).reshape(mean.shape[0], *whole.shape[1:])


def _raise_everywhere(problem: Exception | None, path: Path) -> None:
    """Every process fails if the first one does."""
    said = [None if problem is None else str(problem)]
    distributed.broadcast_object_list(said, 0)
    if problem is not None:
        raise problem
    if said[0] is not None:
        raise RecsysOptError(f"the first process could not write {path}: {said[0]}")
