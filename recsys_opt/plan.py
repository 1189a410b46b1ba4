"""plan.json: which device holds which rows of each table, and how many of them in the fast tier.

A table's rows are counted by rank: rank 0 is the row that is looked up most, as the access statistics that
the plan was made from rank them (`TableStatistics.ranking`); rows that they do not rank follow in ascending
order of their ids. A table is cut into `column_shards` x `row_shards` pieces, each on a device of its own:

- piece c * row_shards + s has the columns [c * width, (c + 1) * width), width = embedding_dim /
  column_shards, of the rows whose rank leaves the remainder s when divided by row_shards (so that every
  piece has its part of the hot rows);
- the first `hot_rows` of a piece's rows, in the order of rank, are in the device's fast tier (HBM), the
  others in the slow one (UVM: host memory that the device reads in place).

A replicated table is whole on every device, in the fast tier.

A plan that goes on from another (`recsys-opt plan --from`) does not deal rows to other stripes because they
are looked up more or less than they were: a table with `striped_by` has in stripe s the rows whose rank by
that input of the plan, an earlier one's statistics, leaves the remainder s; within the stripe they are in the
order of the plan's own statistics. (`recsys_opt.data.plan_ranking` has the order that comes of it.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from recsys_opt.documents import from_document
from recsys_opt.errors import InputError
from recsys_opt.files import read_json, write_json
from recsys_opt.tables import TableConfig

FORMAT = "recsys_opt.plan"
VERSION = 1


@dataclass(frozen=True)
class Piece:
    """A part of a table on one device."""

    table: str
    device: int
    columns: tuple[int, int]
    """First column, and the one behind the last."""
    stripe: tuple[int, int]
    """(s, k): of the table's rows, those whose rank leaves the remainder s when divided by k."""
    rows: int
    hot_rows: int
    """The first so many of `rows`, by rank, are in the fast tier."""

    @property
    def width(self) -> int:
        """Columns."""
        return self.columns[1] - self.columns[0]

    @property
    def cold_rows(self) -> int:
        """Rows in the slow tier."""
        return self.rows - self.hot_rows


def stripe_rows(rows: int, stripe: int, stripes: int) -> int:
    """Ranks below `rows` that leave the remainder `stripe` when divided by `stripes`."""
    return (rows - stripe + stripes - 1) // stripes


@dataclass(frozen=True)
class TablePlan:
    """Where one table is."""

    name: str
    num_embeddings: int
    embedding_dim: int
    devices: tuple[int, ...]
    """Of each piece; of a replicated table, all devices."""
    hot_rows: tuple[int, ...]
    """Of each piece: how many of its rows are in the fast tier."""
    column_shards: int = 1
    row_shards: int = 1
    replicated: bool = False
    feature_names: tuple[str, ...] = ()
    pooling: str = "sum"
    striped_by: str = ""
    """Input of the plan whose ranking deals the rows to the stripes; empty: the plan's statistics."""

    def __post_init__(self) -> None:
        for name in ("devices", "hot_rows", "feature_names"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        TableConfig(self.name, self.num_embeddings, self.embedding_dim, self.feature_names, self.pooling)  # type: ignore[arg-type]
        wanted = len(self.devices) if self.replicated else self.column_shards * self.row_shards
        if self.column_shards < 1 or self.embedding_dim % self.column_shards:
            raise InputError(
                f"plan of table {self.name}: column_shards = {self.column_shards} does not divide its "
                f"{self.embedding_dim} columns"
            )
        if not 1 <= self.row_shards <= self.num_embeddings:
            raise InputError(
                f"plan of table {self.name}: row_shards = {self.row_shards}; the table has "
                f"{self.num_embeddings} rows"
            )
        if self.replicated and self.column_shards * self.row_shards > 1:
            raise InputError(f"plan of table {self.name}: a replicated table is whole; it has no shards")
        if not wanted or len(self.devices) != wanted or len(self.hot_rows) != wanted:
            raise InputError(
                f"plan of table {self.name}: {len(self.devices)} devices and {len(self.hot_rows)} hot_rows "
                f"for {wanted} pieces"
            )
        if len(set(self.devices)) != wanted or min(self.devices) < 0:
            raise InputError(
                f"plan of table {self.name}: its pieces are on the devices {list(self.devices)[:16]}; they "
                "must be different devices, counted from 0"
            )
        for piece in self.pieces():
            if not 0 <= piece.hot_rows <= piece.rows:
                raise InputError(
                    f"plan of table {self.name}: hot_rows = {piece.hot_rows} on device {piece.device}; "
                    f"the piece has {piece.rows} rows"
                )

    @property
    def sharding(self) -> str:
        """TorchRec's name of the way in which the table is cut."""
        if self.replicated:
            return "data_parallel"
        if self.column_shards > 1:
            return "grid_shard" if self.row_shards > 1 else "column_wise"
        return "row_wise" if self.row_shards > 1 else "table_wise"

    def pieces(self) -> Iterator[Piece]:
        """The table's pieces in order."""
        width = self.embedding_dim // self.column_shards
        for at, (device, hot) in enumerate(zip(self.devices, self.hot_rows, strict=True)):
            if self.replicated:
                whole = (0, self.embedding_dim)
                yield Piece(self.name, device, whole, (0, 1), self.num_embeddings, hot)
                continue
            column, stripe = divmod(at, self.row_shards)
            yield Piece(
                self.name,
                device,
                (column * width, (column + 1) * width),
                (stripe, self.row_shards),
                stripe_rows(self.num_embeddings, stripe, self.row_shards),
                hot,
            )

    @property
    def hot_row_count(self) -> int:
        """Rows of the table in the fast tier; of a table cut by columns, the mean of its column shards."""
        return sum(self.hot_rows) // (len(self.devices) if self.replicated else self.column_shards)


@dataclass(frozen=True)
class DeviceLoad:
    """What a plan predicts of one device: seconds of an iteration and bytes held."""

    fast_seconds: float
    """Reads and updates of rows in the fast tier."""
    slow_seconds: float
    """The same in the slow tier."""
    communication_seconds: float
    fast_bytes: int
    """Of the rows in the fast tier, optimizer state included."""
    slow_bytes: int
    fast_lookups: float
    """Rows that an iteration's lookups read from the fast tier; where the table is cut by columns, a lookup
    reads a part of a row."""
    slow_lookups: float

    @property
    def seconds(self) -> float:
        """Of an iteration."""
        return self.fast_seconds + self.slow_seconds + self.communication_seconds


def slow_share(devices: Sequence[DeviceLoad]) -> float:
    """Of all rows that the devices' lookups read, those in the slow tier; 0 where none is read."""
    slow = sum(d.slow_lookups for d in devices)
    total = slow + sum(d.fast_lookups for d in devices)
    return slow / total if total > 0 else 0.0


@dataclass(frozen=True)
class Plan:
    """The content of plan.json."""

    tables: tuple[TablePlan, ...]
    num_devices: int
    batch_size: int
    """Samples of an iteration, over all devices."""
    devices: tuple[DeviceLoad, ...] = ()
    """Predicted; one of each device."""
    bound_seconds: float = 0.0
    """No plan is faster than this, under the cost model: the certificate."""
    hardware: Mapping[str, Any] = field(default_factory=dict)
    """As hardware.toml has it."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What the solver was told besides."""
    inputs: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Input ("statistics", "hardware") -> {"path", "sha256"}."""

    def __post_init__(self) -> None:
        for name in ("num_devices", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} = {getattr(self, name)}; it must be at least 1")
        names: set[str] = set()
        for table in self.tables:
            if table.name in names:
                raise InputError(f"the plan has two tables called {table.name!r}")
            names.add(table.name)
            if max(table.devices) >= self.num_devices:
                raise InputError(
                    f"plan of table {table.name}: device {max(table.devices)}; the plan has "
                    f"{self.num_devices} devices, counted from 0"
                )
            if table.striped_by and table.striped_by not in self.inputs:
                raise InputError(
                    f"plan of table {table.name}: striped_by = {table.striped_by!r}, which is none of the "
                    f"plan's inputs ({', '.join(self.inputs)})"
                )

    @property
    def seconds(self) -> float:
        """Of the slowest device."""
        return max((d.seconds for d in self.devices), default=0.0)

    @property
    def gap(self) -> float:
        """How much slower than the bound the plan can be at most, as a share of the bound."""
        return self.seconds / self.bound_seconds - 1.0 if self.bound_seconds > 0 else 0.0

    def with_inputs(self, inputs: Mapping[str, Mapping[str, str]]) -> Plan:
        """The plan with further inputs."""
        return replace(self, inputs={**self.inputs, **inputs})

    def table(self, name: str) -> TablePlan:
        """A table by name."""
        for table in self.tables:
            if table.name == name:
                return table
        some = ", ".join(t.name for t in self.tables[:20]) + (", ..." if len(self.tables) > 20 else "")
        raise InputError(f"the plan has no table {name!r}; its tables are {some}")

    def to_json(self) -> dict[str, Any]:
        """JSON values only."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any], where: str = "the plan") -> Plan:
        """The inverse of `to_json`; other keys at the top are left out."""
        own = {f.name: document[f.name] for f in fields(cls) if f.name in document}
        try:
            return from_document(cls, own, where)
        except InputError as error:
            raise InputError(f"{error}; make the plan again with recsys-opt plan") from None

    def save(self, path: Path | str) -> None:
        """Writes plan.json whole."""
        write_json(Path(path), FORMAT, VERSION, self.to_json())

    @classmethod
    def load(cls, path: Path | str) -> Plan:
        """Reads what `save` wrote; refuses other formats and versions."""
        return cls.from_json(read_json(Path(path), FORMAT, VERSION), str(path))


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return asdict(value) if isinstance(value, (TablePlan, DeviceLoad)) else value
