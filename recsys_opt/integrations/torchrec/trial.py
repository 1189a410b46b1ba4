"""A plan's tables on TorchRec, timed and their exchanges counted, beside two that one could have without it.

In as many processes as the plan has devices, on the CPU with gloo, all of one node: every exchange is an
all-to-all, whose bytes count with what a process keeps. The ways take turns, step by step:

    whole tables  each table whole on the device of its first piece, as TorchRec has it: no tiers
    two outputs   the plan's hot and cold tables as plain tables, summed after the exchange
    planned       summed before it

Replicated tables are left out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import socket
import time
import warnings
from collections.abc import Callable, Iterator
from functools import reduce
from logging import WARNING, disable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ShardingPlan
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim import RowWiseAdagrad
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys_opt.errors import InputError
from recsys_opt.files import read_json, write_json
from recsys_opt.integrations.plan_layout import features_of, table_wise
from recsys_opt.integrations.torchrec.plan import (
    PlannedEmbeddingBagCollection,
    parameter_sharding,
    sharding_plan,
    tier_parameters,
)
from recsys_opt.integrations.torchrec.remap import PlanRemap
from recsys_opt.integrations.torchrec.sharding import TierTablesSharder
from recsys_opt.plan import Plan, TablePlan

WAYS = ("whole tables", "two outputs", "planned")
_MOST_PROCESSES = 16
_BATCHES = 4
_ANSWER = ("recsys_opt.torchrec_trial", 1)


@dataclasses.dataclass(frozen=True)
class WayResult:
    """What one way took."""

    way: str
    pooled_bytes: int
    """Pooled rows and their gradients, exchanged by all processes in a step."""
    id_bytes: int
    """Ids and lengths, likewise."""
    seconds: tuple[float, ...]
    """Of each step, forward and backward with the update, in the first process."""


def run_trial(plan: Plan, rounds: int = 20) -> tuple[list[WayResult], list[float]]:
    """Runs it; results by way, and the seconds of remapping a process's batch.

    Every feature gets one id a sample, by a power law: rank = rows * u^4, u uniform.
    """
    tables = tuple(t for t in plan.tables if not t.replicated)
    plan = dataclasses.replace(plan, tables=tables, devices=(), hardware={})
    if not 1 <= plan.num_devices <= _MOST_PROCESSES or not plan.tables:
        raise InputError(
            f"the plan has {plan.num_devices} devices and {len(plan.tables)} tables that are not replicated; "
            f"each device is a process here: 1 to {_MOST_PROCESSES}"
        )
    if plan.batch_size % plan.num_devices or plan.batch_size < plan.num_devices:
        raise InputError(
            f"the plan's batch_size = {plan.batch_size} is not divisible by {plan.num_devices} devices"
        )
    multiprocessing.set_forkserver_preload([__name__])  # imports torchrec once for all
    with TemporaryDirectory() as folder, socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = int(s.getsockname()[1])
        s.close()
        plan.save(Path(folder) / "plan.json")
        torch.multiprocessing.start_processes(  # type: ignore[attr-defined,no-untyped-call]
            _work, (Path(folder), port, rounds), nprocs=plan.num_devices, start_method="forkserver"
        )
        answer = read_json(Path(folder) / "answer.json", *_ANSWER)
    results = [WayResult(**{**way, "seconds": tuple(way["seconds"])}) for way in answer["ways"]]
    return results, answer["remap_seconds"]


def _work(rank: int, folder: Path, port: int, rounds: int) -> None:
    torch.set_num_threads(1)
    disable(WARNING)
    warnings.simplefilter("ignore")
    plan = Plan.load(folder / "plan.json")
    world = plan.num_devices
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed.init_process_group("gloo")
    remap = PlanRemap(plan, {})
    batches = [_batch(plan, np.random.default_rng([at, rank])) for at in range(_BATCHES)]
    remapped, remap_seconds = [], []
    for batch in [*batches, *batches]:
        begin = time.perf_counter()
        remapped.append(remap(batch))
        remap_seconds.append(time.perf_counter() - begin)
    ways: dict[str, Callable[[int], Tensor]] = {
        "whole tables": _whole(plan, batches),
        "two outputs": _two_outputs(plan, remap, remapped),
        "planned": _planned(plan, remapped),
    }
    sent = {way: _counted(run) for way, run in ways.items()}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for at in range(rounds):
        for way, run in ways.items():
            distributed.barrier()
            begin = time.perf_counter()
            run(at % _BATCHES).sum().backward()
            seconds[way].append(time.perf_counter() - begin)
    if rank == 0:
        rows = [
            {"way": way, "pooled_bytes": sent[way][0], "id_bytes": sent[way][1], "seconds": seconds[way]}
            for way in WAYS
        ]
        content = {"ways": rows, "remap_seconds": remap_seconds[_BATCHES:]}
        write_json(folder / "answer.json", *_ANSWER, content)
    distributed.destroy_process_group()


def _batch(plan: Plan, generator: np.random.Generator) -> KeyedJaggedTensor:
    samples = plan.batch_size // plan.num_devices
    rows: dict[str, int] = {}
    for table in plan.tables:
        for feature in features_of(table):
            rows[feature] = min(rows.get(feature, table.num_embeddings), table.num_embeddings)
    ids = [(n * generator.random(samples) ** 4).astype(np.int64) for n in rows.values()]
    lengths = torch.ones(len(rows) * samples, dtype=torch.int64)
    return KeyedJaggedTensor(list(rows), torch.from_numpy(np.concatenate(ids)), lengths=lengths)


def _table_wise(configs: list[EmbeddingBagConfig], devices: list[int]) -> DistributedModelParallel:
    tables = EmbeddingBagCollection(tables=configs, device=torch.device("meta"))
    apply_optimizer_in_backward(RowWiseAdagrad, tables.parameters(), {"lr": 0.01})
    placed = {
        c.name: parameter_sharding(table_wise(c.num_embeddings, c.embedding_dim, d, "fused"), "cpu", 1)
        for c, d in zip(configs, devices, strict=True)
    }
    plan = ShardingPlan(plan={"": EmbeddingModuleShardingPlan(placed)})
    return DistributedModelParallel(tables, plan=plan, sharders=[EmbeddingBagCollectionSharder()])


def _config(name: str, rows: int, columns: int, features: tuple[str, ...]) -> EmbeddingBagConfig:
    return EmbeddingBagConfig(
        name=name, num_embeddings=rows, embedding_dim=columns, feature_names=list(features)
    )


def _whole(plan: Plan, batches: list[KeyedJaggedTensor]) -> Callable[[int], Tensor]:
    def config(t: TablePlan) -> EmbeddingBagConfig:
        return _config(t.name, t.num_embeddings, t.embedding_dim, features_of(t))

    model = _table_wise([config(t) for t in plan.tables], [t.devices[0] for t in plan.tables])
    return lambda at: model(batches[at]).values()


def _two_outputs(plan: Plan, remap: PlanRemap, remapped: list[KeyedJaggedTensor]) -> Callable[[int], Tensor]:
    tables = remap.layout.tables
    model = _table_wise(
        [_config(t.name, t.rows, t.piece.width, t.keys) for t in tables], [t.piece.device for t in tables]
    )
    users: dict[str, int] = {}
    for t in tables:
        for key in t.keys:
            users[key] = users.get(key, 0) + 1
    # Names as TorchRec makes them of each shard of columns: its tiers of all stripes, which add up.
    shards: dict[tuple[str, int, int], list[str]] = {}
    for t in tables:
        for at, key in enumerate(t.keys):
            name = key if users[key] == 1 else f"{key}@{t.name}"
            shards.setdefault((t.piece.table, at, t.piece.columns[0]), []).append(name)

    def run(at: int) -> Tensor:
        pooled = model(remapped[at]).to_dict()
        return torch.cat([reduce(torch.add, (pooled[n] for n in names)) for names in shards.values()], 1)

    return run


def _planned(plan: Plan, remapped: list[KeyedJaggedTensor]) -> Callable[[int], Tensor]:
    tables = PlannedEmbeddingBagCollection(plan, {}, device=torch.device("meta"))
    apply_optimizer_in_backward(RowWiseAdagrad, tier_parameters(tables), {"lr": 0.01})
    model = DistributedModelParallel(tables, plan=sharding_plan(tables), sharders=[TierTablesSharder()])
    return lambda at: model(remapped[at]).values()


def _counted(run: Callable[[int], Tensor]) -> tuple[int, int]:
    """Bytes that all processes' steps exchange: pooled rows and their gradients, ids and lengths."""
    with _counting() as count:
        run(0).sum().backward()
    totals = torch.tensor(count)
    distributed.all_reduce(totals)
    return int(totals[0]), int(totals[1])


@contextlib.contextmanager
def _counting() -> Iterator[list[int]]:
    count = [0, 0]
    plain = distributed.all_to_all_single

    def counting(output: Tensor, input: Tensor, *arguments: Any, **options: Any) -> Any:
        count[0 if input.is_floating_point() else 1] += input.numel() * input.element_size()
        return plain(output, input, *arguments, **options)

    distributed.all_to_all_single = counting
    try:
        yield count
    finally:
        distributed.all_to_all_single = plain
