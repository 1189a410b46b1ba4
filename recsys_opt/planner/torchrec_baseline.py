"""TorchRec's own planner on our tables, statistics and hardware: a baseline beside those of `baselines`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from recsys_opt.data.access_curve import AccessCurve
from recsys_opt.errors import InputError
from recsys_opt.integrations.torchrec import (
    Placement,
    PlannerMachine,
    PlannerTable,
    torchrec_placement,
)
from recsys_opt.integrations.torchrec.planner import CACHED, KERNELS, LOAD_FACTOR, SHARDING_TYPES
from recsys_opt.plan import Plan
from recsys_opt.planner.cache_replay import CachedShard, DeviceCache
from recsys_opt.planner.hardware import Hardware
from recsys_opt.tables import TableConfig


def torchrec_plan(
    tables: Sequence[TableConfig],
    lookups_per_sample: Sequence[float],
    hardware: Hardware,
    *,
    batch_size: int,
    curves: Mapping[str, AccessCurve] | None = None,
    time_limit: float = 300.0,
    sharding_types: Sequence[str] = SHARDING_TYPES,
    kernels: Sequence[str] = KERNELS,
    load_factor: float = LOAD_FACTOR,
    keep: Path | None = None,
) -> tuple[Plan, Placement]:
    """What TorchRec's planner makes of them, as a plan that nothing is priced in, and what it said.

    lookups_per_sample  of each table; with several features all of theirs
    curves              by table: TorchRec then knows the hit rates of its caches, and scales them up by them;
                        without, as it comes, it takes access for uniform

    For the others, and what it raises, see `torchrec_placement`. TorchRec knows one bandwidth of each memory:
    it is told those of a row of the size that the mean lookup reads.
    """
    if len(tables) != len(lookups_per_sample) or not tables:
        raise InputError(
            f"{len(tables)} tables, {len(lookups_per_sample)} lookups_per_sample; give one for each table"
        )
    placement = torchrec_placement(
        [
            planner_table(table, lookups, batch_size, (curves or {}).get(table.name))
            for table, lookups in zip(tables, lookups_per_sample, strict=True)
        ],
        machine(hardware, mean_row_bytes(tables, lookups_per_sample)),
        batch_size,
        time_limit=time_limit,
        sharding_types=sharding_types,
        kernels=kernels,
        load_factor=load_factor,
        keep=keep,
    )
    plan = placement.to_plan(tables, batch_size, hardware.num_devices, hardware=hardware.to_json())
    return plan, placement


def torchrec_caches(tables: Sequence[TableConfig], placement: Placement) -> list[DeviceCache]:
    """The caches that TorchRec's placement makes FBGEMM keep."""
    configs = {table.name: table for table in tables}
    shards: dict[tuple[str, int], list[CachedShard]] = {}
    factors: dict[tuple[str, int], list[tuple[float, int]]] = {}
    for placed in placement.tables:
        if placed.compute_kernel != CACHED:
            continue
        config = configs[placed.name]
        by_rows = placed.sharding_type in ("row_wise", "table_row_wise")
        block = -(-config.num_embeddings // len(placed.devices)) if by_rows else config.num_embeddings
        for at, (device, columns) in enumerate(zip(placed.devices, placed.columns, strict=True)):
            first = at * block if by_rows else 0
            last = min(first + block, config.num_embeddings)
            if first >= last:
                continue  # more devices than blocks
            group = placed.sharding_type, device
            features = config.feature_names or (config.name,)
            shards.setdefault(group, []).append(CachedShard(tuple(features), first, last, columns))
            factors.setdefault(group, []).append((placed.cache_load_factor or 0.0, config.num_embeddings))
    return [
        DeviceCache(
            group[1],
            sum(factor * rows for factor, rows in factors[group]) / sum(rows for _, rows in factors[group]),
            tuple(some),
        )
        for group, some in shards.items()
    ]


def mean_row_bytes(tables: Sequence[TableConfig], lookups_per_sample: Sequence[float]) -> float:
    """Of the mean lookup, in fp32."""
    lookups = np.asarray(lookups_per_sample, dtype=float)
    sizes = np.array([4.0 * table.embedding_dim for table in tables])
    return float((sizes * lookups).sum() / lookups.sum()) if lookups.sum() else float(sizes.mean())


def machine(hardware: Hardware, row_bytes: float) -> PlannerMachine:
    """The hardware as TorchRec's Topology describes it."""
    return PlannerMachine(
        num_devices=hardware.num_devices,
        devices_per_node=hardware.devices_per_node,
        hbm_bytes=hardware.fast.capacity_bytes,
        uvm_bytes=hardware.slow.capacity_bytes,
        hbm_bytes_per_s=row_bytes / hardware.fast.read_seconds(row_bytes),
        uvm_bytes_per_s=row_bytes / hardware.slow.read_seconds(row_bytes),
        intra_node_bytes_per_s=hardware.intra_node.bytes_per_s,
        inter_node_bytes_per_s=hardware.inter_node.bytes_per_s,
    )


def planner_table(
    table: TableConfig, lookups_per_sample: float, batch_size: int, curve: AccessCurve | None
) -> PlannerTable:
    """A table as TorchRec's planner is told of it."""
    access: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())
    distinct = 0.0
    if curve is not None:
        access = (tuple((curve.rows / curve.rows[-1]).tolist()), tuple(curve.share.tolist()))
        # Between two points of the curve, every row takes the same share of the lookups.
        rows, share = np.diff(curve.rows), np.diff(curve.share)
        distinct = float((rows * -np.expm1(-batch_size * lookups_per_sample * share / rows)).sum())
    return PlannerTable(
        table.name,
        table.num_embeddings,
        table.embedding_dim,
        lookups_per_sample,
        access,
        len(table.feature_names),
        distinct,
    )
