"""Tables in two tiers moved to where another plan has their rows, in a model that is being trained.

    moved = move_to_plan(model.embeddings, plan, plan_ranking(plan, statistics), optimizer)

Weights go with their optimizer's states, whether the tables update themselves (`fuse_update`) or one of
torch's optimizers does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recsys_opt.embeddings.collection import EmbeddingCollection
from recsys_opt.embeddings.tiered import TieredEmbeddingBag
from recsys_opt.embeddings.tiered_rows import Ranking
from recsys_opt.errors import InputError
from recsys_opt.plan import Plan


@dataclass(frozen=True)
class MovedRows:
    """What a move took."""

    rows: int
    """Of all tables."""
    bytes: int
    """Of weights and of the states that tables which update themselves hold."""
    seconds: float


def move_to_plan(
    tables: EmbeddingCollection,
    plan: Plan,
    ranking: Callable[[str], NDArray[Any]],
    optimizer: torch.optim.Optimizer | None = None,
) -> MovedRows:
    """Moves the rows of a collection's tables, all of them in two tiers, to where a plan for one device has
    them.

    ranking    table -> its rows, hottest first: `recsys_opt.data.plan_ranking.plan_ranking`
    optimizer  torch's, where it has the tables' parameters; it goes on with the new ones

    Nothing is moved where the plan is not one for these tables.
    """
    if plan.num_devices != 1:
        raise InputError(f"the plan is for {plan.num_devices} devices; a collection is on one")
    planned = {t.name: t for t in plan.tables}
    moves: list[tuple[TieredEmbeddingBag, int, str]] = []
    for config in tables.configs:
        table, placed = tables.table(config.name), planned.get(config.name)
        if not isinstance(table, TieredEmbeddingBag):
            raise InputError(
                f"table {config.name} is {config.representation}; rows move between the tiers of tiered ones"
            )
        shape = (config.num_embeddings, config.embedding_dim)
        if placed is None or (placed.num_embeddings, placed.embedding_dim) != shape:
            said = (
                "lacks it"
                if placed is None
                else f"has it as {placed.num_embeddings} x {placed.embedding_dim}"
            )
            raise InputError(f"table {config.name} is {shape[0]} x {shape[1]}, but the plan {said}")
        moves.append((table, placed.hot_row_count, config.name))
    begin, size = time.perf_counter(), 0
    for table, hot_rows, name in moves:
        # Where one tier has all rows, their order does not matter, and none costs least.
        split = 0 < hot_rows < table.num_embeddings
        retier_with_optimizer(table, optimizer, hot_rows=hot_rows, ranking=ranking(name) if split else ())
        held = table.tier_bytes()
        size += held["hot"] + held["cold"]
    return MovedRows(sum(table.num_embeddings for table, _, _ in moves), size, time.perf_counter() - begin)


@torch.no_grad()
def retier_with_optimizer(
    table: TieredEmbeddingBag,
    optimizer: torch.optim.Optimizer | None,
    *,
    hot_rows: int | None = None,
    ranking: Ranking | None = None,
) -> None:
    """`TieredEmbeddingBag.retier`, and the optimizer goes on with the new parameters and its rows' states.

    Of a tensor of one tier's state that the other does not have, the other's rows have zeros.
    """
    old = (table.hot, table.cold)
    if optimizer is None:
        table.retier(hot_rows=hot_rows, ranking=ranking)
        return
    # SGD's momentum is sparse as the gradients are.
    states = [
        {n: v.to_dense() if isinstance(v, Tensor) else v for n, v in optimizer.state.get(p, {}).items()}
        for p in old
    ]
    names = sorted({name for p, s in zip(old, states, strict=True) for name in _row_states(p, s)})
    pairs = []
    for name in names:
        like = next(s[name] for s in states if name in s)
        hot, cold = (
            s[name] if name in s else like.new_zeros(len(p), *like.shape[1:])
            for p, s in zip(old, states, strict=True)
        )
        pairs.append((hot, cold))
    moved = table.retier(hot_rows=hot_rows, ranking=ranking, beside=pairs)
    new = (table.hot, table.cold)
    if new[0] is old[0]:
        return
    others = {name: value for s in states for name, value in s.items() if name not in names}
    for at, (before, after) in enumerate(zip(old, new, strict=True)):
        optimizer.state.pop(before, None)
        if states[at] or moved:
            own = {name: v for name, v in states[at].items() if name not in names}
            optimizer.state[after] = {
                **others,
                **own,
                **{n: pair[at] for n, pair in zip(names, moved, strict=True)},
            }
        for group in optimizer.param_groups:
            group["params"] = [after if p is before else p for p in group["params"]]


def _row_states(parameter: nn.Parameter, state: dict[str, Any]) -> list[str]:
    """Names of the tensors that have a row for each of the parameter's."""
    return [
        name
        for name, value in state.items()
        if isinstance(value, Tensor) and value.dim() > 0 and value.shape[:1] == parameter.shape[:1]
    ]
