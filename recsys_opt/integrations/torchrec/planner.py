"""TorchRec's own planner, EmbeddingShardingPlanner, as a baseline: its placement as a plan of ours.

It runs in a process of its own, which stops at a limit of CPU time: what else the machine does makes its
plan no worse. There the hashes of strings are fixed: the planner puts the kernels of a table into a set of
strings, so that without this its plan differs from run to run.

What it is granted: every sharding type and the kernels FUSED, FUSED_UVM and FUSED_UVM_CACHING; with access
statistics and caches also its proposer that scales caches up (EmbeddingOffloadScaleupProposer), told the true
hit rates.
All memory is for the tables and their optimizer's states, none for buffers of the exchange, as in our plans.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from recsys_opt.errors import InfeasibleError, InputError, RecsysOptError
from recsys_opt.files import read_json, write_json
from recsys_opt.plan import Plan, TablePlan, stripe_rows
from recsys_opt.tables import TableConfig

FORMAT = "recsys_opt.torchrec_placement"
VERSION = 1
FUSED, UVM, CACHED = "fused", "fused_uvm", "fused_uvm_caching"
KERNELS = (FUSED, UVM, CACHED)
SHARDING_TYPES = (
    "table_wise",
    "column_wise",
    "row_wise",
    "table_row_wise",
    "table_column_wise",
    "data_parallel",
)
LOAD_FACTOR = 0.2
"""TorchRec's own default of a cache's rows over its table's."""
_WALL_PER_CPU_SECOND = 8.0
_GRACE_SECONDS = 60.0
"""For what comes before and after the search: importing torchrec, describing the tables."""


@dataclass(frozen=True)
class PlannerTable:
    """What TorchRec's planner is told of a table."""

    name: str
    num_embeddings: int
    embedding_dim: int
    lookups_per_sample: float
    """Of all its features."""
    access: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())
    """Shares of the rows, hottest first, and the shares of the lookups that they take: caches' hit rates."""
    features: int = 1
    """That share the table; each has the same part of the lookups."""
    lookups_of_distinct_rows: float = 0.0
    """Different rows that an iteration looks up, over all devices; goes with `access`."""


@dataclass(frozen=True)
class PlannerMachine:
    """What TorchRec's planner is told of the devices; bandwidths are in bytes a second."""

    num_devices: int
    devices_per_node: int
    hbm_bytes: int
    """That tables may take of one device's memory."""
    uvm_bytes: int
    """Of host memory, for one device."""
    hbm_bytes_per_s: float
    uvm_bytes_per_s: float
    intra_node_bytes_per_s: float
    inter_node_bytes_per_s: float


@dataclass(frozen=True)
class PlacedTable:
    """Where TorchRec puts a table."""

    name: str
    sharding_type: str
    compute_kernel: str
    cache_load_factor: float | None
    """Cached rows over all rows; of tables with a cache only."""
    devices: tuple[int, ...]
    """Of each shard, in order of rows, then columns."""
    columns: tuple[int, ...]
    """Of each shard."""


@dataclass(frozen=True)
class Placement:
    """What TorchRec's planner found."""

    tables: tuple[PlacedTable, ...]
    seconds: float
    """Of CPU time that its search took, without importing it."""
    found_seconds: float
    """Of these, until it had this plan."""
    finished: bool
    """False: the time limit ended the search, this is the best found until then."""
    fitting: int
    """Plans tried that fit into memory."""
    estimated_seconds: float
    """An iteration of the slowest device, as TorchRec estimates it."""

    def to_plan(
        self, tables: Sequence[TableConfig], batch_size: int, num_devices: int, **content: Any
    ) -> Plan:
        """The placement as a plan, in which a cache holds its hottest rows from the start.

        FUSED is all rows hot, FUSED_UVM none, FUSED_UVM_CACHING the share of the load factor: an ideal LFU
        cache. Rows that TorchRec cuts into blocks of ids are striped by rank here, which is kinder to it.
        """
        found = {table.name: table for table in self.tables}
        return Plan(
            tuple(_table_plan(config, found[config.name]) for config in tables),
            num_devices,
            batch_size,
            settings={"planner": "torchrec"},
            **content,
        )


def torchrec_placement(
    tables: Sequence[PlannerTable],
    machine: PlannerMachine,
    batch_size: int,
    *,
    time_limit: float = 300.0,
    sharding_types: Sequence[str] = SHARDING_TYPES,
    kernels: Sequence[str] = KERNELS,
    load_factor: float = LOAD_FACTOR,
    keep: Path | None = None,
) -> Placement:
    """Runs TorchRec's planner; the optimizer is row-wise Adagrad.

    batch_size      samples of an iteration, over all devices
    time_limit      CPU seconds of the search, after which the best plan so far counts
    sharding_types  that it may choose from; fewer make it much faster
    kernels         that it may choose from; replicated tables come besides
    load_factor     of caches before they are scaled up
    keep            a folder of answers: the same question to the same torchrec is not searched again

    Raises InfeasibleError where no plan fits, RecsysOptError where it finds none within the limit.
    """
    if batch_size % machine.num_devices:
        raise InputError(f"batch_size = {batch_size} is not divisible by {machine.num_devices} devices")
    unknown = sorted(set(sharding_types) - set(SHARDING_TYPES))
    if unknown or not sharding_types:
        raise InputError(f"sharding_types = {list(sharding_types)}; choose from {', '.join(SHARDING_TYPES)}")
    if set(kernels) - set(KERNELS) or not kernels:
        raise InputError(f"kernels = {list(kernels)}; choose from {', '.join(KERNELS)}")
    request = {
        "tables": [asdict(table) for table in tables],
        "machine": asdict(machine),
        "batch_size": batch_size // machine.num_devices,
        "time_limit": time_limit,
        "sharding_types": list(sharding_types),
        "kernels": list(kernels),
        "load_factor": load_factor,
    }
    kept = None
    if keep is not None:
        asked = json.dumps([importlib.metadata.version("torchrec"), request], sort_keys=True)
        kept = keep / f"{hashlib.sha256(asked.encode()).hexdigest()[:32]}.json"
        if kept.exists():
            return placement_of(read_json(kept, FORMAT, VERSION), time_limit)
    answer = _asked(request, time_limit)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_json(kept, FORMAT, VERSION, answer)
    return placement_of(answer, time_limit)


def _asked(request: Mapping[str, Any], time_limit: float) -> dict[str, Any]:
    """What the process answers."""
    wall = _WALL_PER_CPU_SECOND * time_limit + _GRACE_SECONDS
    command = [sys.executable, "-m", "recsys_opt.integrations.torchrec.planner_process"]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=wall,
            env={**os.environ, "PYTHONHASHSEED": "0"},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RecsysOptError(
            f"TorchRec's planner had not had its {time_limit:g} s of CPU time after {wall:g} s, and was "
            "killed; try again on a machine with less to do"
        ) from None
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["it wrote nothing"]
        raise RecsysOptError(f"TorchRec's planner failed with exit code {done.returncode}: {last[0][:500]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def placement_of(answer: Mapping[str, Any], time_limit: float) -> Placement:
    """What the process answered."""
    if "infeasible" in answer:
        raise InfeasibleError(f"TorchRec's planner finds no plan: {answer['infeasible']}")
    if not answer["tables"]:
        raise RecsysOptError(
            f"TorchRec's planner found no plan within {time_limit:g} s; allow it fewer sharding types, or "
            "more time"
        )
    return Placement(
        tables=tuple(
            PlacedTable(**{**t, "devices": tuple(t["devices"]), "columns": tuple(t["columns"])})
            for t in answer["tables"]
        ),
        **{
            key: answer[key]
            for key in ("seconds", "found_seconds", "finished", "fitting", "estimated_seconds")
        },
    )


def _table_plan(config: TableConfig, placed: PlacedTable) -> TablePlan:
    rows, dim, kind = config.num_embeddings, config.embedding_dim, placed.sharding_type
    columns, stripes = 1, 1
    devices = placed.devices
    if kind in ("row_wise", "table_row_wise"):
        stripes = min(len(devices), rows)  # the shards behind have no rows
        devices = devices[:stripes]
    elif kind in ("column_wise", "table_column_wise"):
        columns = len(devices)
        if set(placed.columns) != {dim // columns}:
            raise InputError(
                f"TorchRec cuts table {config.name} into shards of {list(placed.columns)} columns; those of "
                "a plan are equal"
            )
    share = {FUSED: 1.0, "dense": 1.0, UVM: 0.0, CACHED: placed.cache_load_factor or 0.0}
    hot = [
        min(n, round(share[placed.compute_kernel] * n))
        for n in (stripe_rows(rows, at % stripes, stripes) for at in range(len(devices)))
    ]
    return TablePlan(
        name=config.name,
        num_embeddings=rows,
        embedding_dim=dim,
        devices=devices,
        hot_rows=tuple(hot),
        column_shards=columns,
        row_shards=stripes,
        replicated=kind == "data_parallel",
        feature_names=config.feature_names,
        pooling=config.pooling,
    )
