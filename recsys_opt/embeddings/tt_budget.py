"""A memory budget turned into tables: which become tensor trains, with which shapes and ranks.

The expected loss of a tensor train against a dense table, per column:

    loss = value of all ids x FIXED_SHARE + sum over ids i of value(i) x i / (i + K)
    K    = F / embedding_dim x r / (r + RANK_SHARING),    F = parameters - sum over bonds of r^2

The value of an id is what a row of its own is worth (`TableAccess.value`); ids are numbered by falling
lookups. F counts the degrees of freedom of the cores. Fitted to unrelated rows with weights, a tensor train
spends them on the rows of most weight, about K of them: low ranks share too much to use all of F
(`recsys-opt bench budget-law` measures this). Training is no such fit: rows pull on each other, so the loss
does not end at K rows but falls as 1 / K, and a part of the value is lost at any rank. Both were chosen by
test quality on a sample of real rows at 4 MB. Against one rank for the largest tables at as many bytes that
sample shows a gain at 2 MB (.0013 of AUC) and none beyond noise at 4, 8 and 20 MB (three seeds,
scripts/reproduce_budget.sh).

So rarely seen ids, and columns that say little about the label, have little to lose; a table whose seen ids
are few needs no large rank, however many rows it has. Columns are taken one by one: where two say the same,
the sum counts both. Trained tables that are to be fitted have a better judge, their spectra: `tt_spectra`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from recsys_opt import knapsack
from recsys_opt.access import TableAccess
from recsys_opt.embeddings.tt_shapes import column_factors, row_factors
from recsys_opt.errors import InfeasibleError, InputError
from recsys_opt.tables import TableConfig

RANKS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Ranks considered, at every bond; none larger than the smaller side of the matrix that the bond cuts."""
CORES = (2, 3)
"""Numbers of cores considered: four cores were slower and no better at equal bytes."""
RANK_SHARING = 3.0
"""Rank at which a tensor train uses half of its degrees of freedom on the rows that matter."""
FIXED_SHARE = 0.1
"""Share of a column's value that a tensor train of any rank gives up."""
BYTES = 4
"""Of a parameter."""


@dataclass(frozen=True)
class TTOption:
    """One tensor train that a table could have."""

    p: tuple[int, ...]
    q: tuple[int, ...]
    ranks: tuple[int, ...]
    """Of the inner bonds."""

    @property
    def parameters(self) -> int:
        """Entries of the cores."""
        r = (1, *self.ranks, 1)
        return sum(p * q * a * b for p, q, a, b in zip(self.p, self.q, r[:-1], r[1:], strict=True))

    @property
    def freedom(self) -> int:
        """Parameters less those that cancel: a bond may have any r x r matrix and its inverse put in."""
        return self.parameters - sum(r * r for r in self.ranks)

    @property
    def rows_kept(self) -> float:
        """K: how many rows of most weight it can hold."""
        r = min(self.ranks)
        return self.freedom * r / (r + RANK_SHARING) / math.prod(self.q)

    def to_json(self) -> dict[str, Any]:
        """Options of the representation "tt"."""
        return {"tt_ranks": list(self.ranks), "tt_p_shapes": list(self.p), "tt_q_shapes": list(self.q)}


def tt_options(config: TableConfig, cores: Sequence[int] = CORES) -> list[TTOption]:
    """The tensor trains considered for a table, by size: smaller than dense, none beaten by a smaller one.

    cores  numbers of cores, each 2 to 4
    """
    options = []
    for d in cores:
        p, q = row_factors(config.num_embeddings, d), column_factors(config.embedding_dim, d)
        columns = [a * b for a, b in zip(p, q, strict=True)]
        most = [min(math.prod(columns[:k]), math.prod(columns[k:])) for k in range(1, d)]
        bonds = [sorted({min(r, m) for r in RANKS}) for m in most]
        options += [TTOption(p, q, ranks) for ranks in itertools.product(*bonds)]
    options.sort(key=lambda o: (o.parameters, -o.rows_kept))
    best = itertools.accumulate((o.rows_kept for o in options), max, initial=0.0)
    return [
        o
        for o, smaller in zip(options, best, strict=False)
        if o.rows_kept > smaller and BYTES * o.parameters < config.dense_bytes
    ]


@dataclass(frozen=True)
class TableChoice:
    """What one table became."""

    config: TableConfig
    """With its representation and options."""
    seen: int
    """Ids looked up at least once."""
    lookups: int
    bytes: int
    optimizer_bytes: int
    loss: float
    """Expected loss against a dense table, in nats of logloss, as if the column stood alone."""

    @property
    def smaller(self) -> float:
        """How many times smaller than dense."""
        return self.config.dense_bytes / self.bytes

    def to_json(self) -> dict[str, Any]:
        """JSON values only."""
        return {
            "name": self.config.name,
            "num_embeddings": self.config.num_embeddings,
            "seen_ids": self.seen,
            "lookups": self.lookups,
            "representation": self.config.representation,
            "options": dict(self.config.options),
            "bytes": self.bytes,
            "dense_bytes": self.config.dense_bytes,
            "optimizer_bytes": self.optimizer_bytes,
            "expected_loss": self.loss,
        }


@dataclass(frozen=True)
class BudgetChoice:
    """What a budget came to."""

    tables: tuple[TableChoice, ...]
    budget_bytes: int
    loss_bound: float
    """No choice among the options considered has a lower expected loss."""
    loss_per_mb: float
    """What one more MB would save, about."""
    binds: str | None
    """The table that would gain most per byte from a larger budget; None: nothing is left to gain."""

    @property
    def bytes(self) -> int:
        """Of all tables."""
        return sum(t.bytes for t in self.tables)

    @property
    def optimizer_bytes(self) -> int:
        """State that training keeps besides."""
        return sum(t.optimizer_bytes for t in self.tables)

    @property
    def dense_bytes(self) -> int:
        """Of all tables as plain fp32 rows."""
        return sum(t.config.dense_bytes for t in self.tables)

    @property
    def loss(self) -> float:
        """Sum over tables."""
        return sum(t.loss for t in self.tables)

    def tt_options(self) -> dict[str, dict[str, Any]]:
        """Options of the tables that became tensor trains, by name."""
        return {t.config.name: dict(t.config.options) for t in self.tables if t.config.representation == "tt"}

    def to_json(self) -> dict[str, Any]:
        """JSON values only."""
        return {
            "budget_bytes": self.budget_bytes,
            "bytes": self.bytes,
            "dense_bytes": self.dense_bytes,
            "optimizer_bytes": self.optimizer_bytes,
            "expected_loss": self.loss,
            "expected_loss_bound": self.loss_bound,
            "expected_loss_per_mb": self.loss_per_mb,
            "binds": self.binds,
            "tables": [t.to_json() for t in self.tables],
        }


def expected_loss(access: TableAccess, option: TTOption) -> float:
    """Nats of logloss that a column loses with a tensor train: half of the explained variance it gives up."""
    return 0.5 * (FIXED_SHARE * access.total_value + access.value_lost(option.rows_kept))


Losses = Callable[[Sequence[TTOption]], tuple[list[TTOption], list[float]]]
"""From a table's options to those that can be judged, and the expected loss of each."""


def losses_by_access(access: TableAccess) -> Losses:
    """Judges tables that will be trained."""

    def judge(options: Sequence[TTOption]) -> tuple[list[TTOption], list[float]]:
        return list(options), [expected_loss(access, option) for option in options]

    return judge


def choose_tables(
    configs: Sequence[TableConfig],
    access: Sequence[TableAccess] | Mapping[str, TableAccess],
    budget_bytes: int,
    *,
    cores: Sequence[int] = CORES,
    judges: Mapping[str, Losses] | None = None,
    state_per_parameter: float = 0.0,
    state_per_dense_row: float = 0.0,
) -> BudgetChoice:
    """Dense tables and tensor trains of least expected loss whose parameters take at most `budget_bytes`.

    configs              the tables; their representation is what a table that is no tensor train keeps
    access               lookups of each table, by name
    judges               of tables, by name, whose loss is not expected from lookups: `losses_by_spectra`
    state_per_parameter  bytes of optimizer state per parameter of a tensor train (reported, not counted)
    state_per_dense_row  bytes of optimizer state per row of a dense table
    raises               InfeasibleError, which names the smallest feasible budget and the largest table in it
    """
    found = access if isinstance(access, Mapping) else {a.name: a for a in access}
    if missing := [c.name for c in configs if c.name not in found]:
        raise InputError(f"there are no counts of the tables {', '.join(missing)}; count their lookups too")
    judges = judges or {}
    judged = [judges.get(c.name, losses_by_access(found[c.name]))(tt_options(c, cores)) for c in configs]
    options = [own for own, _ in judged]
    sizes = [
        np.array([c.dense_bytes, *(BYTES * o.parameters for o in own)])
        for c, own in zip(configs, options, strict=True)
    ]
    losses = [np.array([0.0, *lost]) for _, lost in judged]
    _check_feasible(configs, [int(s.min()) for s in sizes], budget_bytes)
    solution = knapsack.solve(sizes, losses, budget_bytes)
    tables = []
    for config, own, size, loss, taken in zip(configs, options, sizes, losses, solution.options, strict=True):
        chosen, state = config, state_per_dense_row * config.num_embeddings
        if taken:
            option = own[taken - 1]
            chosen = replace(config, representation="tt", options=option.to_json())
            state = state_per_parameter * option.parameters
        own_access = found[config.name]
        tables.append(
            TableChoice(
                config=chosen,
                seen=own_access.distinct,
                lookups=own_access.lookups,
                bytes=int(size[taken]),
                optimizer_bytes=round(state),
                loss=float(loss[taken]),
            )
        )
    return BudgetChoice(
        tables=tuple(tables),
        budget_bytes=budget_bytes,
        loss_bound=solution.lower_bound,
        loss_per_mb=1e6 * solution.price,
        binds=_binding(configs, sizes, losses, solution.options),
    )


def _check_feasible(configs: Sequence[TableConfig], least: Sequence[int], budget_bytes: int) -> None:
    if sum(least) <= budget_bytes:
        return
    largest = max(range(len(least)), key=lambda t: least[t])
    raise InfeasibleError(
        f"memory_budget = {budget_bytes:,} bytes is too small: the smallest tables take {sum(least):,} "
        f"bytes, {least[largest]:,} of them for table {configs[largest].name} with "
        f"{configs[largest].num_embeddings:,} rows; give at least {sum(least):,} bytes, or smaller tables"
    )


def _binding(
    configs: Sequence[TableConfig],
    sizes: Sequence[np.ndarray[Any, Any]],
    losses: Sequence[np.ndarray[Any, Any]],
    taken: Sequence[int],
) -> str | None:
    """The table with the largest saving per byte among the options larger than the one taken."""
    best, name = 0.0, None
    for config, size, loss, i in zip(configs, sizes, losses, taken, strict=True):
        larger = size > size[i]
        if not larger.any():
            continue
        rate = float(((loss[i] - loss[larger]) / (size[larger] - size[i])).max())
        if rate > best:
            best, name = rate, config.name
    return name
