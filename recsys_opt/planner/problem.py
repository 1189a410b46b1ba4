"""What is planned: tables with their access curves, an iteration's batch, and how tables may be cut."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from recsys_opt.data.access_curve import AccessCurve
from recsys_opt.errors import InputError
from recsys_opt.tables import TableConfig

if TYPE_CHECKING:
    from recsys_opt.data.access_statistics import AccessStatistics

Floats = NDArray[np.float64]
Sharding = Literal["table_wise", "column_wise", "row_wise", "table_row_wise", "row_split", "data_parallel"]
Optimizer = Literal["sgd", "rowwise_adagrad", "adagrad", "adam"]


@dataclass(frozen=True, eq=False)
class PlannedTable:
    """A table and how its rows are looked up."""

    config: TableConfig
    lookups_per_sample: float
    """Ids of a sample, over all samples: coverage times pooling factor."""
    rows: Floats  # [K] rows of each cell, hottest cell first; their sum is num_embeddings
    share: Floats  # [K] share of the lookups that go to the cell's rows; their sum is 1
    dealt: Mapping[int, Floats] = field(default_factory=dict)
    """Number of stripes -> [stripes, K] rows of each cell in each, as an earlier ranking deals them."""

    def __post_init__(self) -> None:
        name = self.config.name
        if not (math.isfinite(self.lookups_per_sample) and self.lookups_per_sample >= 0):
            raise InputError(
                f"table {name}: lookups_per_sample = {self.lookups_per_sample}; it must be a finite number, "
                "0 or larger"
            )
        if not (np.isfinite(self.rows).all() and np.isfinite(self.share).all()):
            raise InputError(
                f"table {name}: its access curve holds NaN or infinity; make the statistics again"
            )
        if len(self.rows) != len(self.share) or not len(self.rows) or (self.rows <= 0).any():
            raise InputError(f"table {name}: its access curve has no cells, or cells without rows")
        if abs(float(self.rows.sum()) - self.config.num_embeddings) > 0.5:
            raise InputError(
                f"table {name}: its access curve is about {float(self.rows.sum()):.0f} rows, but the table "
                f"has {self.config.num_embeddings}; make the statistics again, from data prepared for it"
            )
        density = self.share / self.rows
        if (self.share < 0).any() or (np.diff(density) > 1e-9 * density[0]).any():
            raise InputError(f"table {name}: its access curve is not concave: cells are not hottest first")

    @property
    def cell_ends(self) -> Floats:
        """[K] the rank behind each cell's last row."""
        ends: Floats = np.rint(np.cumsum(self.rows))
        return ends

    def stripe_rows(self, stripe: tuple[int, int], *, dealt: bool = False) -> Floats:
        """[K] rows of each cell that a stripe (s, k) has.

        dealt  whether an earlier ranking deals the rows to the stripes, not this one's remainders
        """
        s, k = stripe
        if dealt:
            if k not in self.dealt:
                raise InputError(
                    f"table {self.config.name}: its {k} stripes are those of earlier statistics, which are "
                    "not known here; load the plan's inputs with PlanInputs.of"
                )
            rows: Floats = self.dealt[k][s]
            return rows
        return np.diff(np.maximum(np.ceil((self.cell_ends - s) / k), 0.0), prepend=0.0)

    def rows_by_cell(self, parts: Sequence[NDArray[Any]]) -> Floats:
        """[parts, K] how many of each part's ranks, which ascend, are in each cell."""
        edges = np.concatenate([[0.0], self.cell_ends])
        return np.stack([np.diff(np.searchsorted(part, edges)) for part in parts]).astype(np.float64)

    @property
    def curve(self) -> AccessCurve:
        """The cells as a curve."""
        rows, share = (np.concatenate([[0.0], np.cumsum(v)]) for v in (self.rows, self.share))
        return AccessCurve(rows, share / share[-1])

    @classmethod
    def from_curve(
        cls, config: TableConfig, lookups_per_sample: float, rows: NDArray[Any], share: NDArray[Any]
    ) -> PlannedTable:
        """From the points of an access curve: `share` of the lookups go to the hottest `rows` rows."""
        cell_rows, cell_share = np.diff(rows.astype(np.float64)), np.diff(share.astype(np.float64))
        some = cell_rows > 0
        return cls(config, lookups_per_sample, cell_rows[some], cell_share[some])


@dataclass(frozen=True)
class PlanSettings:
    """What the planner may do, and what an iteration is."""

    batch_size: int = 65536
    """Samples of an iteration, over all devices."""
    optimizer: Optimizer = "rowwise_adagrad"
    """Its state lies beside the rows and counts as they do."""
    weight_bytes: int = 4
    """Bytes of a weight: 4 (fp32) or 2 (fp16, bf16)."""
    output_bytes: int = 4
    """Bytes of a number that devices send each other."""
    shardings: tuple[Sharding, ...] = get_args(Sharding)
    """Ways to cut a table that are allowed: whole; by columns; by rows over all devices, over the devices of
    a node, over any 2, 4, 8, ... devices (row_split); replicated (data_parallel)."""
    min_columns: int = 4
    """Narrowest column shard; FBGEMM wants multiples of 4."""
    replicate_rows: int = 200_000
    """Tables of more rows are not replicated."""
    pins: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Table -> {"devices": [0, 1], "sharding": "row_wise", "tier": "fast" or "slow"}: any of these."""
    effort: float = 1.0
    """Of the search: 2 tries twice as much."""
    seed: int = 0
    """Of the search: the same seed gives the same plan."""

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("min_columns", 1), ("replicate_rows", 0), ("seed", 0)):
            value = getattr(self, name)
            if value < least:
                raise InputError(f"{name} = {value}; it must be at least {least}")
        if self.optimizer not in get_args(Optimizer):
            raise InputError(
                f"optimizer = {self.optimizer!r}; choose one of {', '.join(get_args(Optimizer))}"
            )
        for name in ("weight_bytes", "output_bytes"):
            if getattr(self, name) not in (1, 2, 4, 8):
                raise InputError(f"{name} = {getattr(self, name)}; it must be 1, 2, 4 or 8")
        if not self.shardings:
            raise InputError(f"shardings is empty; allow at least one of {', '.join(get_args(Sharding))}")
        for sharding in self.shardings:
            if sharding not in get_args(Sharding):
                raise InputError(f"shardings has {sharding!r}; choose from {', '.join(get_args(Sharding))}")
        if not (math.isfinite(self.effort) and self.effort > 0):
            raise InputError(f"effort = {self.effort}; it must be a finite number larger than 0")
        for table, pin in self.pins.items():
            if not isinstance(pin, Mapping):
                raise InputError(f"pins of table {table}: {pin!r}; it must be an object: {{'tier': 'fast'}}")
            devices = pin.get("devices", [0])
            if not isinstance(devices, (list, tuple)) or not devices or {*map(type, devices)} != {int}:
                raise InputError(
                    f"pins of table {table}: devices = {devices!r}; it must be a list of devices, counted "
                    "from 0, e.g. [0, 1]"
                )
            if unknown := sorted(set(pin) - {"devices", "sharding", "tier"}):
                raise InputError(f"pins of table {table}: {unknown[0]!r} is none of devices, sharding, tier")
            if "sharding" in pin and pin["sharding"] not in get_args(Sharding):
                raise InputError(
                    f"pins of table {table}: sharding = {pin['sharding']!r}; choose one of "
                    f"{', '.join(get_args(Sharding))}"
                )
            if pin.get("tier", "fast") not in ("fast", "slow"):
                raise InputError(f"pins of table {table}: tier = {pin['tier']!r}; it must be fast or slow")

    def state_bytes(self, columns: int) -> int:
        """Of the optimizer, beside a row of so many columns."""
        return {"sgd": 0, "rowwise_adagrad": 4, "adagrad": 4 * columns, "adam": 8 * columns}[self.optimizer]

    def row_bytes(self, columns: int) -> int:
        """A row with its optimizer state."""
        return self.weight_bytes * columns + self.state_bytes(columns)


def planned_tables(
    statistics: AccessStatistics, tables: Sequence[TableConfig] | int, *, names: str = "the model"
) -> list[PlannedTable]:
    """The statistics' curves for a model's tables, or for all tables with so many columns each."""
    if isinstance(tables, int):
        tables = [TableConfig(s.name, s.num_embeddings, tables) for s in statistics.tables.values()]
    planned = []
    for config in tables:
        found = statistics.tables.get(config.name)
        if found is None:
            some = ", ".join(list(statistics.tables)[:8])
            raise InputError(
                f"table {config.name} of {names} is not in the statistics, whose tables are {some}"
                f"{', ...' if len(statistics.tables) > 8 else ''}; make statistics of the data that the "
                "model is trained on"
            )
        if found.num_embeddings != config.num_embeddings:
            raise InputError(
                f"table {config.name} has {config.num_embeddings} rows in {names}, but "
                f"{found.num_embeddings} in the statistics; make statistics of the data that the model is "
                "trained on"
            )
        curve = found.curve
        planned.append(PlannedTable.from_curve(config, found.lookups_per_sample, curve.rows, curve.share))
    return planned
