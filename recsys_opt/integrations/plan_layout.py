"""A plan as tables that TorchRec can hold: two for each piece, one with its hot rows and one with its cold.

Needs no torchrec, so that a plan can be exported where there is none. `recsys_opt.integrations.torchrec`
builds the tables, the placement and the remap that this describes.

The tier table `t__hot` holds the hot rows of table t in order of rank, `t__cold` the others; a table cut into
several pieces has `t__0__hot`, `t__0__cold`, `t__1__hot` and so on. A tier without rows has no table. A key
`feature/t__hot` names the ids of one feature that look up one tier table; column shards with the same split
share their keys. A replicated table keeps its name, its features' names and its ids.

Where the row stripes of a table, or of a column shard, are the devices of one node of several, the node sums
them before anything leaves it, as TorchRec's table-row-wise sharding does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from recsys_opt.errors import InputError
from recsys_opt.plan import Piece, Plan, TablePlan

Tier = Literal["hot", "cold"]
KERNELS: Mapping[Tier, str] = {"hot": "fused", "cold": "fused_uvm"}
"""TorchRec's compute kernel for each tier."""


@dataclass(frozen=True)
class TierTable:
    """The hot or the cold rows of a piece."""

    name: str
    summed_as: str
    """Tables with the same name here are summed where they are: on the device, or in its node."""
    piece: Piece
    tier: Tier
    keys: tuple[str, ...]
    """Of the remapped ids, one for each feature of the table."""

    @property
    def rows(self) -> int:
        """Rows of the tier."""
        return self.piece.hot_rows if self.tier == "hot" else self.piece.cold_rows

    @property
    def ranks(self) -> slice:
        """The ranks that it holds, among all of the table."""
        stripe, stripes = self.piece.stripe
        split = stripe + self.piece.hot_rows * stripes
        return slice(stripe, split, stripes) if self.tier == "hot" else slice(split, None, stripes)


@dataclass(frozen=True)
class Lane:
    """One way in which the ids of a feature are sent to the stripes and tiers of its table."""

    feature: str
    table: str
    hot_rows: tuple[int, ...]
    """Of each stripe."""
    keys: Mapping[tuple[int, Tier], str]
    """(stripe, tier) -> key; no key for a tier without rows."""


@dataclass(frozen=True)
class Output:
    """Where the pooled rows of one feature come from."""

    name: str
    """The feature, or feature@table where several tables have it, as TorchRec names it."""
    table: TablePlan
    shards: tuple[tuple[str, ...], ...]
    """For each column shard, the outputs of its stripes, which add up; one where its node sums them."""
    length_keys: tuple[str, ...]
    """Keys whose bags, taken together, are the feature's bags."""


def output_name(summed_as: str, feature: int) -> str:
    """The name of what tables that are summed give together for a feature of theirs."""
    return f"{summed_as}:{feature}"


class PlanLayout:
    """A plan's tier tables, the keys of its remapped ids, and how outputs are put together.

    tables   tier tables by device; on a device all hot ones come before all cold ones, both in the order of
             the pieces, those with two tiers first: then the sum of both is a sum of two blocks
    copies   replicated tables
    lanes    for the remap
    keys     of the remapped ids, in the order in which TorchRec wants them
    features keys that the remap takes
    copied_features  those of replicated tables, whose ids stay as they are
    outputs  in the order of the plan's tables and their features
    summed_as        tier table -> the same of it
    devices_per_node as the plan's hardware says; all, if it says nothing
    node_outputs     of each node: names of the outputs that it sums
    copy_outputs     replicated table -> TorchRec's names of its outputs
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.copies = tuple(t for t in plan.tables if t.replicated)
        owners: dict[str, list[str]] = {}
        for table in plan.tables:
            for feature in features_of(table):
                owners.setdefault(feature, []).append(table.name)
        self.features = tuple(owners)
        self.lanes: list[Lane] = []
        self.outputs: list[Output] = []
        self.copy_outputs: dict[str, list[str]] = {}
        self.devices_per_node = int(plan.hardware.get("devices_per_node", plan.num_devices))
        if self.devices_per_node < 1 or plan.num_devices % self.devices_per_node:
            raise InputError(
                f"the plan's hardware has {self.devices_per_node} devices in a node, which do not divide its "
                f"{plan.num_devices} devices; make the plan again"
            )
        self.node_outputs: list[list[str]] = [[] for _ in range(plan.num_devices // self.devices_per_node)]
        by_device: list[list[tuple[TierTable, ...]]] = [[] for _ in range(plan.num_devices)]
        for table in plan.tables:
            names = [f if len(owners[f]) == 1 else f"{f}@{table.name}" for f in features_of(table)]
            if table.replicated:
                for name, feature in zip(names, features_of(table), strict=True):
                    alone = sum(feature in features_of(t) for t in self.copies) == 1
                    inner = feature if alone else f"{feature}@{table.name}"
                    self.copy_outputs.setdefault(table.name, []).append(inner)
                    self.outputs.append(Output(name, table, ((inner,),), (feature,)))
                continue
            for tiers in self._add(table, names):
                by_device[tiers[0].piece.device].append(tiers)
        self.tables = tuple(t for pieces in by_device for t in _in_blocks(pieces))
        self.summed_as = {t.name: t.summed_as for t in self.tables}
        keys = dict.fromkeys(key for t in self.tables for key in t.keys)
        self.copied_features = tuple(dict.fromkeys(f for t in self.copies for f in features_of(t)))
        self.keys = (*keys, *self.copied_features)
        _check_names([*(t.name for t in self.tables), *(t.name for t in self.copies)])

    def _add(self, table: TablePlan, names: list[str]) -> list[tuple[TierTable, ...]]:
        """Lanes and outputs of a table; gives back the tier tables of each piece."""
        pieces = list(table.pieces())
        features = features_of(table)
        stripes = table.row_shards
        first_with: dict[tuple[int, ...], int] = {}
        tables: list[tuple[TierTable, ...]] = []
        shards: list[list[tuple[str, ...]]] = []
        for column in range(table.column_shards):
            shard = pieces[column * stripes : (column + 1) * stripes]
            hot_rows = tuple(piece.hot_rows for piece in shard)
            keys_of = first_with.setdefault(hot_rows, column)
            node = self._node_of(shard)
            sums = [
                _piece_name(table, at) if node is None else f"{table.name}__node{column}"
                for at in range(column * stripes, (column + 1) * stripes)
            ]
            outputs = [[output_name(name, at) for name in dict.fromkeys(sums)] for at in range(len(features))]
            shards.append([tuple(names) for names in outputs])
            if node is not None:
                self.node_outputs[node] += [names[0] for names in outputs]
            for at, piece in enumerate(shard, column * stripes):
                origin = _piece_name(table, keys_of * stripes + at % stripes)
                tiers = tuple(
                    TierTable(
                        f"{_piece_name(table, at)}__{tier}",
                        sums[at % stripes],
                        piece,
                        tier,
                        tuple(f"{feature}/{origin}__{tier}" for feature in features),
                    )
                    for tier, rows in _tiers(piece)
                    if rows
                )
                tables.append(tiers)
            if keys_of == column:
                for at, feature in enumerate(features):
                    keys = {
                        (t.piece.stripe[0], t.tier): t.keys[at] for tiers in tables[-stripes:] for t in tiers
                    }
                    self.lanes.append(Lane(feature, table.name, hot_rows, keys))
        for at, name in enumerate(names):
            whole = tuple(t.keys[at] for tiers in tables[:stripes] for t in tiers)
            self.outputs.append(Output(name, table, tuple(shard[at] for shard in shards), whole))
        return tables

    def _node_of(self, shard: list[Piece]) -> int | None:
        """The node whose devices, and no others, have the stripes; None where there is one node only."""
        per_node = self.devices_per_node
        first = min(piece.device for piece in shard) // per_node * per_node
        devices = sorted(piece.device for piece in shard)
        whole = len(self.node_outputs) > 1 and devices == list(range(first, first + per_node))
        return first // per_node if whole and per_node > 1 else None

    def sharding(self) -> dict[str, dict[str, Any]]:
        """The content of TorchRec's ShardingPlan, as JSON values."""
        content: dict[str, dict[str, Any]] = {
            t.name: table_wise(t.rows, t.piece.width, t.piece.device, KERNELS[t.tier]) for t in self.tables
        }
        for copy in self.copies:
            content[copy.name] = {
                "sharding_type": "data_parallel",
                "compute_kernel": "dense",
                "ranks": list(range(self.plan.num_devices)),
                "shards": [],
            }
        return content


def table_wise(rows: int, columns: int, device: int, kernel: str) -> dict[str, Any]:
    """What TorchRec's ParameterSharding says of a table that is whole on a device."""
    return {
        "sharding_type": "table_wise",
        "compute_kernel": kernel,
        "ranks": [device],
        "shards": [{"offsets": [0, 0], "sizes": [rows, columns], "rank": device}],
    }


def features_of(table: TablePlan) -> tuple[str, ...]:
    """A table's features; one named as the table where the plan names none."""
    return table.feature_names or (table.name,)


def _tiers(piece: Piece) -> tuple[tuple[Tier, int], tuple[Tier, int]]:
    return ("hot", piece.hot_rows), ("cold", piece.cold_rows)


def _piece_name(table: TablePlan, piece: int) -> str:
    return table.name if len(table.devices) == 1 else f"{table.name}__{piece}"


def _in_blocks(pieces: list[tuple[TierTable, ...]]) -> list[TierTable]:
    order = sorted(pieces, key=lambda tiers: (-len(tiers), tiers[0].tier == "cold"))
    return [t for tier in ("hot", "cold") for tiers in order for t in tiers if t.tier == tier]


def _check_names(names: list[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen or "." in name:
            raise InputError(
                f"the plan would make {'two tables' if name in seen else 'a table'} called {name!r}; rename "
                "the table that it is from (names must not hold a '.', nor end as those of tier tables do)"
            )
        seen.add(name)


def check_widths(plan: Plan) -> None:
    """FBGEMM's fused tables have rows of a multiple of four columns."""
    for table in plan.tables:
        width = table.embedding_dim // (1 if table.replicated else table.column_shards)
        if width % 4:
            raise InputError(
                f"plan of table {table.name}: its pieces have {width} columns, but FBGEMM's fused tables "
                "need a multiple of 4; plan it with fewer column shards, or pad embedding_dim"
            )
