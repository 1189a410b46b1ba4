"""The ways in which each table can be cut and placed, as the arrays that the solver takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_opt.errors import InputError
from recsys_opt.planner.cost import CostModel
from recsys_opt.planner.problem import PlannedTable, Sharding

ANY, NODE, EVERYWHERE = 0, 1, 2
SPLIT, FAST, SLOW = 0, 1, 2
FIELDS = (
    "table",
    "place",
    "pieces",
    "tiers",
    "parts",
    "bytes_per_row",
    "read_fast",
    "read_slow",
    "update_fast",
    "update_slow",
    "communication",
    "cost_class",
)


@dataclass(frozen=True)
class Cut:
    """A table into `column_shards` x `row_shards` pieces, or a replica on every device."""

    sharding: Sharding
    column_shards: int
    row_shards: int
    place: int


@dataclass(frozen=True, eq=False)
class Options:
    """Every way that is open to each table, table after table."""

    arrays: dict[str, NDArray[np.float64]]
    cuts: list[Cut]
    cut: NDArray[np.int64]
    """[options] index into `cuts`."""


def make_options(model: CostModel, tables: Sequence[PlannedTable]) -> Options:
    """All cuts that the settings allow, with what a piece costs."""
    settings, hardware = model.settings, model.hardware
    dims = np.array([t.config.embedding_dim for t in tables])
    rows = np.array([t.config.num_embeddings for t in tables], dtype=np.float64)
    lookups = np.array([t.lookups_per_sample for t in tables]) * settings.batch_size
    cuts = _cuts(model, set(dims.tolist()))
    allowed = (
        np.array([[_pinned_to(model, t, cut) for cut in cuts] for t in tables]) if settings.pins else None
    )
    tiers = np.array([_tier(model, t) for t in tables]) if settings.pins else np.zeros(len(tables), dtype=int)
    columns: dict[str, list[NDArray[Any]]] = {name: [] for name in (*FIELDS, "cut")}
    classes: dict[int, int] = {}
    for index, cut in enumerate(cuts):
        for dim in np.unique(dims):
            if dim % cut.column_shards or (
                cut.column_shards > 1 and dim // cut.column_shards < settings.min_columns
            ):
                continue
            fits = (dims == dim) & (rows >= cut.row_shards)
            if cut.sharding == "data_parallel":
                fits &= (rows <= settings.replicate_rows) & (tiers != SLOW)
            if allowed is not None:
                fits &= allowed[:, index]
            chosen = np.flatnonzero(fits)
            if not len(chosen):
                continue
            width = int(dim) // cut.column_shards
            cost_class = classes.setdefault(width, len(classes))
            made: dict[str, NDArray[Any]] = {
                **_arrays(model, cut, width, rows[chosen], lookups[chosen]),
                "table": chosen,
                "tiers": np.full(len(chosen), FAST) if cut.sharding == "data_parallel" else tiers[chosen],
                "cost_class": np.full(len(chosen), cost_class),
                "cut": np.full(len(chosen), index),
            }
            for name, values in made.items():
                columns[name].append(np.broadcast_to(values, len(chosen)))
    joined = {name: np.concatenate(parts) if parts else np.zeros(0) for name, parts in columns.items()}
    order = np.argsort(joined["table"], kind="stable")
    joined = {name: values[order] for name, values in joined.items()}
    without = np.setdiff1d(np.arange(len(tables)), joined["table"].astype(np.int64))
    if len(without):
        name = tables[int(without[0])].config.name
        raise InputError(
            f"table {name}: none of the allowed ways to cut it ({', '.join(settings.shardings)}) is open to "
            f"it on {hardware.num_devices} devices with its pins; allow table_wise, or change its pin"
        )
    cut_of = joined.pop("cut").astype(np.int64)
    return Options(joined, cuts, cut_of)


def _cuts(model: CostModel, dims: set[int]) -> list[Cut]:
    h, allowed = model.hardware, set(model.settings.shardings)
    cuts = []
    if "table_wise" in allowed:
        cuts.append(Cut("table_wise", 1, 1, ANY))
    if "column_wise" in allowed:
        shards = {c for dim in dims for c in range(2, min(dim, h.num_devices) + 1) if dim % c == 0}
        cuts += [Cut("column_wise", c, 1, ANY) for c in sorted(shards)]
    if h.num_devices == 1:
        return cuts or [Cut("table_wise", 1, 1, ANY)]
    if "row_split" in allowed:
        k = 2
        while k < h.num_devices:
            cuts.append(Cut("row_split", 1, k, ANY))
            k *= 2
    if "table_row_wise" in allowed and h.nodes > 1 and h.devices_per_node > 1:
        cuts.append(Cut("table_row_wise", 1, h.devices_per_node, NODE))
    if "row_wise" in allowed:
        cuts.append(Cut("row_wise", 1, h.num_devices, EVERYWHERE))
    if "data_parallel" in allowed:
        cuts.append(Cut("data_parallel", 1, 1, EVERYWHERE))
    return cuts


def _arrays(
    model: CostModel, cut: Cut, width: int, rows: NDArray[np.float64], lookups: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    zero = np.zeros(len(rows))
    devices = model.hardware.num_devices
    if cut.sharding == "data_parallel":
        both = [
            sum(model.replicated_seconds(float(n), width, float(looked_up)))
            for n, looked_up in zip(rows, lookups, strict=True)
        ]
        return {
            "place": zero + EVERYWHERE,
            "pieces": zero + devices,
            "parts": zero + 1,
            "bytes_per_row": zero + model.replica_row_bytes(width),
            "read_fast": zero,
            "read_slow": zero,
            "update_fast": zero,
            "update_slow": zero,
            "communication": np.array(both),
        }
    costs = model.row_costs(width)
    return {
        "place": zero + cut.place,
        "pieces": zero + cut.column_shards * cut.row_shards,
        "parts": zero + cut.row_shards,
        "bytes_per_row": zero + model.settings.row_bytes(width),
        "read_fast": zero + (costs.read_fast + model.id_seconds),
        "read_slow": zero + (costs.read_slow + model.id_seconds),
        "update_fast": zero + costs.update_fast,
        "update_slow": zero + costs.update_slow,
        "communication": zero + model.pooled_seconds(width, over_node=cut.place == NODE),
    }


def _pinned_to(model: CostModel, table: PlannedTable, cut: Cut) -> bool:
    pin = model.settings.pins.get(table.config.name, {})
    if pin.get("sharding", cut.sharding) != cut.sharding:
        return False
    devices = pin.get("devices")
    if devices is None:
        return True
    return cut.place != EVERYWHERE and cut.column_shards * cut.row_shards <= len(devices)


def _tier(model: CostModel, table: PlannedTable) -> int:
    pin = model.settings.pins.get(table.config.name, {})
    return {"fast": FAST, "slow": SLOW}.get(pin.get("tier", ""), SPLIT)
