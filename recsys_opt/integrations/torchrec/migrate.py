"""From a model under one plan to a model under another, from process to process, without a file.

    old = DistributedModelParallel(...)      # trained under plan A
    new = DistributedModelParallel(...)      # the same tables under plan B, with the same fused optimizer
    moved = move_tables(old, new)            # every process calls it
    # dense parameters and their optimizer: by their own state dicts

Rows go straight from the process that has them to the one that is to have them, a chunk of a table's ids at a
time; both know from the plans which these are, so that no ids are sent. What a process has already it copies.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn

from recsys_opt.errors import InputError
from recsys_opt.integrations.torchrec.plan import PlannedEmbeddingBagCollection
from recsys_opt.integrations.torchrec.rankings import table_order
from recsys_opt.integrations.torchrec.weights import (
    Whole,
    shard_weights,
    sharded_collections,
    whole_states,
    whole_weights,
)
from recsys_opt.plan import TablePlan
from recsys_opt.ranks import rank_of

_CHUNK_BYTES = 64 << 20


@dataclass(frozen=True)
class Moved:
    """What a migration took."""

    rows: int
    """Of all tables; a row that is cut into columns counts once."""
    bytes: int
    """Of weights and states that went from one process to another."""
    seconds: float

    @property
    def rows_per_second(self) -> float:
        """Rows of the tables, moved or copied, a second."""
        return self.rows / self.seconds if self.seconds > 0 else 0.0


def move_tables(
    source: nn.Module, target: nn.Module, *, states: bool = True, anew: Collection[str] = ()
) -> Moved:
    """Copies weights and states of the fused optimizers from `source` to `target`, models of the same tables.

    states  False: weights alone
    anew    tables whose states begin anew: those that are replicated in one plan and not in the other, whose
            states the model's own optimizer has

    Row-wise states of a table that is cut into other column shards become the means over the new shards'
    columns. Every process calls this at the same time. Raises InputError before anything is moved.
    """
    begin = time.perf_counter()
    pairs = _pairs(source, target)
    for _, old, new in pairs:
        _check_tables(old, new)
    jobs = [(old, new, list(_jobs(prefix, old, new, states, anew))) for prefix, old, new in pairs]
    rows = sent = 0
    for old, new, of_pair in jobs:
        rows += sum(t.num_embeddings for t in new.layout.plan.tables)
        for name in (t.name for t in new.layout.plan.tables):
            sides = _Side.of(old, name), _Side.of(new, name)
            for before, after in (j[1:] for j in of_pair if j[0] == name):
                like = torch.empty(0, dtype=after.dtype, device=new.device)
                sent += _move(*sides, before, after, like)
    device = pairs[0][2].device
    total = torch.tensor([sent], device=device)
    distributed.all_reduce(total)
    return Moved(rows, int(total[0]), time.perf_counter() - begin)


def _pairs(
    source: nn.Module, target: nn.Module
) -> list[tuple[str, PlannedEmbeddingBagCollection, PlannedEmbeddingBagCollection]]:
    old, new = dict(sharded_collections(source)), dict(sharded_collections(target))
    if old.keys() != new.keys():
        name = sorted(old.keys() ^ new.keys())[0].rstrip(".") or "the model itself"
        raise InputError(
            f"{name} is a planned collection in one of the models alone; both must have the same"
        )
    return [(prefix, old[prefix], new[prefix]) for prefix in old]


def _check_tables(old: PlannedEmbeddingBagCollection, new: PlannedEmbeddingBagCollection) -> None:
    shapes = [
        {t.name: (t.num_embeddings, t.embedding_dim) for t in module.layout.plan.tables}
        for module in (old, new)
    ]
    for name in sorted(shapes[0].keys() | shapes[1].keys()):
        if shapes[0].get(name) != shapes[1].get(name):
            raise InputError(
                f"table {name} is {shapes[0].get(name)} in one plan and {shapes[1].get(name)} in the "
                "other; rows move between plans of the same tables"
            )


def _jobs(
    prefix: str,
    old: PlannedEmbeddingBagCollection,
    new: PlannedEmbeddingBagCollection,
    states: bool,
    anew: Collection[str],
) -> Iterator[tuple[str, Whole | None, Whole]]:
    """(table, its tensor in the old model, in the new one); None: zeros."""
    before = {w.name: w for w in whole_weights(prefix, old)}
    for weight in whole_weights(prefix, new):
        yield weight.table, before[weight.name], weight
    if not states:
        return
    before = {w.name: w for w in whole_states(prefix, old)}
    for state in whole_states(prefix, new):
        if state.table not in anew and state.name not in before:
            raise InputError(
                f"the old model has no {state.name}: it has another optimizer, or the table was replicated "
                f"there; anew={{{state.table!r}}} lets it begin anew, states=False moves weights alone"
            )
        yield state.table, None if state.table in anew else before[state.name], state


@dataclass(frozen=True, eq=False)
class _Side:
    """Where one of the models has the rows of a table."""

    plan: TablePlan
    rank: NDArray[np.int64]
    """[num_embeddings] of each row; empty for a replicated table."""

    @classmethod
    def of(cls, module: PlannedEmbeddingBagCollection, name: str) -> _Side:
        plan = module.layout.plan.table(name)
        if plan.replicated:
            return cls(plan, np.zeros(0, dtype=np.int64))
        return cls(plan, rank_of(table_order(module.rankings, name, plan.num_embeddings)))

    def homes(self, first: int, last: int, shard: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(process, row in its piece) of the rows from first to last in a column shard."""
        index, stripe = np.divmod(self.rank[first:last].astype(np.int64), self.plan.row_shards)
        return np.array(self.plan.devices)[shard * self.plan.row_shards + stripe], index


@dataclass(frozen=True)
class _Here:
    """This process's piece of a tensor: the hot rows, then the cold ones."""

    hot: Tensor | None
    cold: Tensor | None

    @classmethod
    def of(cls, whole: Whole) -> _Here:
        tiers = {tier.tier: tensor for tier, _, tensor in whole.held}
        return cls(tiers.get("hot"), tiers.get("cold"))

    def parts(self, rows: NDArray[np.int64]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(tensor, rows in it, which of `rows` they are)."""
        split = 0 if self.hot is None else len(self.hot)
        for tensor, mine, start in ((self.hot, rows < split, 0), (self.cold, rows >= split, split)):
            at = np.flatnonzero(mine)
            if tensor is not None and len(at):
                device = tensor.device
                yield tensor, torch.from_numpy(rows[at] - start).to(device), torch.from_numpy(at).to(device)

    def read(self, rows: NDArray[np.int64], columns: slice, like: Tensor) -> Tensor:
        found = like.new_empty(len(rows), columns.stop - columns.start)
        for tensor, there, at in self.parts(rows):
            found[at] = tensor[there, columns]
        return found

    def write(self, rows: NDArray[np.int64], columns: slice, values: Tensor, *, add: bool) -> None:
        for tensor, there, at in self.parts(rows):
            if add:
                tensor[there, columns] += values[at]
            else:
                tensor[there, columns] = values[at]


def _move(old: _Side, new: _Side, before: Whole | None, after: Whole, like: Tensor) -> int:
    """One tensor; gives back the bytes that this process has sent to others."""
    if before is None:
        for _, _, tensor in after.held:
            tensor.zero_()
        return 0
    if after.copy is not None:
        return _gather(old, before, after.copy)
    sent = 0
    if after.rowwise:
        for _, _, tensor in after.held:
            tensor.zero_()  # parts are added
    weights = shard_weights(old.plan.column_shards, new.plan.column_shards)
    for first, last in after.chunks():
        for target in range(new.plan.column_shards):
            for shard in np.flatnonzero(weights[target]).tolist():
                weight = float(weights[target, shard]) if after.rowwise else 1.0
                columns = (
                    (slice(0, 1), slice(0, 1))
                    if after.rowwise
                    else _columns(old.plan, new.plan, shard, target)
                )
                sent += _exchange(
                    (old, before, shard, columns[0]),
                    (new, after, target, columns[1]),
                    (first, last),
                    weight,
                    like,
                )
    return sent


def _columns(old: TablePlan, new: TablePlan, shard: int, target: int) -> tuple[slice, slice]:
    """The columns that two shards have in common, counted in each."""
    widths = old.embedding_dim // old.column_shards, new.embedding_dim // new.column_shards
    starts = shard * widths[0], target * widths[1]
    first = max(starts)
    last = min(starts[0] + widths[0], starts[1] + widths[1])
    return slice(first - starts[0], last - starts[0]), slice(first - starts[1], last - starts[1])


def _exchange(
    source: tuple[_Side, Whole, int, slice],
    target: tuple[_Side, Whole, int, slice],
    rows: tuple[int, int],
    weight: float,
    like: Tensor,
) -> int:
    """Some rows, in columns that a shard before and a shard after have in common."""
    me, world = distributed.get_rank(), distributed.get_world_size()
    (old, before, shard, columns), (new, after, to, into) = source, target
    to_process, to_row = new.homes(*rows, to)
    if before.copy is not None:  # every process has all rows
        mine = np.flatnonzero(to_process == me)
        values = before.copy[torch.from_numpy(mine + rows[0]).to(before.copy.device), columns]
        _Here.of(after).write(to_row[mine], into, values, add=False)
        return 0
    from_process, from_row = old.homes(*rows, shard)
    leaving, coming = np.flatnonzero(from_process == me), np.flatnonzero(to_process == me)
    leaving = leaving[np.argsort(to_process[leaving], kind="stable")]
    coming = coming[np.argsort(from_process[coming], kind="stable")]
    counts = [
        np.bincount(there, minlength=world).tolist() for there in (to_process[leaving], from_process[coming])
    ]
    send = _Here.of(before).read(from_row[leaving], columns, like)
    if weight != 1.0:
        send *= weight
    width = int(columns.stop - columns.start)
    received = like.new_empty(len(coming), width)
    distributed.all_to_all_single(received, send, counts[1], counts[0])
    _Here.of(after).write(to_row[coming], into, received, add=after.rowwise)
    others = len(leaving) - int(counts[0][me])
    return others * width * like.element_size()


def _gather(old: _Side, before: Whole, copy: Tensor) -> int:
    """All rows to every process."""
    if before.copy is not None:
        copy.copy_(before.copy)
        return 0
    me, sent = distributed.get_rank(), 0
    width = old.plan.embedding_dim // old.plan.column_shards
    for first, last in before.chunks():
        buffer = copy.new_zeros(last - first, copy.shape[1])
        for shard in range(old.plan.column_shards):
            process, row = old.homes(first, last, shard)
            mine = np.flatnonzero(process == me)
            values = _Here.of(before).read(row[mine], slice(0, width), copy)
            at = torch.from_numpy(mine).to(copy.device)
            buffer[at, shard * width : (shard + 1) * width] = values
            sent += values.numel() * copy.element_size() * (distributed.get_world_size() - 1)
        distributed.all_reduce(buffer)  # each number comes from one process, the others add 0
        copy[first:last] = buffer
    return sent
