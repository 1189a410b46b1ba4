"""The process in which TorchRec's planner runs: a request on stdin, its placement on stdout, both JSON."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import (
    EmbeddingShardingPlanner,
    ParameterConstraints,
    Topology,
    shard_estimators,
)
from torchrec.distributed.planner.constants import DEFAULT_PERF_ESTIMATOR
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.estimator import EmbeddingPerfEstimatorFactory
from torchrec.distributed.planner.perf_models import NoopPerfModel
from torchrec.distributed.planner.proposers import (
    EmbeddingOffloadScaleupProposer,
    GreedyProposer,
    GridSearchProposer,
    UniformProposer,
)
from torchrec.distributed.planner.shard_estimators import EmbeddingStorageEstimator
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import PlannerError, ShardingOption
from torchrec.distributed.types import CacheParams, CacheStatistics, PipelineType
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim import RowWiseAdagrad
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward


class AccessCache(CacheStatistics):  # type: ignore[misc]
    """Hit rates of an ideal cache, from a table's access curve."""

    def __init__(self, access: Sequence[Sequence[float]], lookups: float) -> None:
        self._rows, self._share = (np.asarray(values) for values in access)
        self._lookups = lookups

    @property
    def expected_lookups(self) -> float:
        """Different rows that an iteration looks up."""
        return self._lookups

    def expected_miss_rate(self, clf: float) -> float:
        """Share of the lookups that the hottest rows do not take."""
        return float(1.0 - np.interp(clf, self._rows, self._share))

    @property
    def cacheability(self) -> float:
        """The area under the curve of misses: 0 is easy to cache, 1 is hard."""
        return float(np.clip(1.0 - np.trapezoid(self._share, self._rows), 0.0, 1.0))


class BestSoFar(NoopPerfModel):  # type: ignore[misc]
    """TorchRec's own rating of a plan, the slowest device's time; keeps the best plan that it saw."""

    def __init__(self, topology: Topology) -> None:
        super().__init__(topology)
        self.milliseconds = float("inf")
        self.found = 0.0
        """CPU time of this process when it saw that plan."""
        self.placed: list[dict[str, Any]] = []
        self.fitting = 0

    def rate(self, plan: list[ShardingOption]) -> float:
        """Milliseconds."""
        rating = float(super().rate(plan))
        self.fitting += 1
        if rating < self.milliseconds:
            self.found = time.process_time()
            self.milliseconds, self.placed = rating, [_placed(option) for option in plan]
        return rating


class TimeUp(BaseException):
    """Not an Exception, which the planner might take for a plan that does not fit."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeUp in the block once this process has had so much CPU time."""

    def stop(*_: object) -> None:
        raise TimeUp

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """Plans; see `recsys_opt.integrations.torchrec.planner`."""
    machine = request["machine"]
    # TorchRec counts bandwidths in bytes a millisecond.
    topology = Topology(
        world_size=machine["num_devices"],
        local_world_size=machine["devices_per_node"],
        compute_device="cuda",
        hbm_cap=machine["hbm_bytes"],
        ddr_cap=machine["uvm_bytes"],
        ssd_cap=0,
        hbm_mem_bw=machine["hbm_bytes_per_s"] / 1e3,
        hbm_to_ddr_mem_bw=machine["uvm_bytes_per_s"] / 1e3,
        intra_host_bw=machine["intra_node_bytes_per_s"] / 1e3,
        inter_host_bw=machine["inter_node_bytes_per_s"] / 1e3,
    )
    constraints = {table["name"]: _constraints(table, request) for table in request["tables"]}
    module = EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(
                num_embeddings=table["num_embeddings"],
                embedding_dim=table["embedding_dim"],
                name=table["name"],
                feature_names=[f"{table['name']}:{at}" for at in range(table["features"])],
            )
            for table in request["tables"]
        ],
        device=torch.device("meta"),
    )
    apply_optimizer_in_backward(RowWiseAdagrad, module.parameters(), {"lr": 0.01})
    proposers = [GridSearchProposer(), GreedyProposer(), GreedyProposer(use_depth=False), UniformProposer()]
    cached = EmbeddingComputeKernel.FUSED_UVM_CACHING.value in request["kernels"]
    if cached and any(table["access"][0] for table in request["tables"]):
        proposers.insert(0, EmbeddingOffloadScaleupProposer())  # before the time is up
    shard_estimators.calculate_pipeline_io_cost = _no_buffers
    estimators = [
        EmbeddingPerfEstimatorFactory.create(
            DEFAULT_PERF_ESTIMATOR, topology=topology, constraints=constraints
        ),
        EmbeddingStorageEstimator(
            topology=topology, constraints=constraints, pipeline_type=PipelineType.TRAIN_SPARSE_DIST
        ),
    ]
    best = BestSoFar(topology)
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=request["batch_size"],
        enumerator=EmbeddingEnumerator(
            topology=topology,
            batch_size=request["batch_size"],
            constraints=constraints,
            estimator=estimators,
        ),
        storage_reservation=FixedPercentageStorageReservation(0.0),
        proposer=proposers,
        performance_model=best,
        stats=[],  # none of its tables hundreds of columns wide
        constraints=constraints,
        debug=False,
    )
    begin = time.process_time()
    finished = True
    try:
        # Its own time limit is looked at between two proposals only, and not while options are listed.
        with time_limit(request["time_limit"]):
            planner.plan(module, [EmbeddingBagCollectionSharder()])
    except PlannerError as error:
        return {"infeasible": " ".join(str(error).split())[:800]}
    except TimeUp:
        finished = False
    return {
        "tables": best.placed,
        "seconds": time.process_time() - begin,
        "found_seconds": best.found - begin if best.placed else 0.0,
        "finished": finished,
        "fitting": best.fitting,
        "estimated_seconds": best.milliseconds / 1e3 if best.placed else 0.0,
    }


def _no_buffers(**_: object) -> int:
    """The bytes that the exchange's buffers take of the memory that tables may take."""
    return 0


def _constraints(table: Mapping[str, Any], request: Mapping[str, Any]) -> ParameterConstraints:
    stats = None
    if table["access"][0]:
        stats = AccessCache(table["access"], table["lookups_of_distinct_rows"])
    return ParameterConstraints(
        sharding_types=request["sharding_types"],
        compute_kernels=[*request["kernels"], EmbeddingComputeKernel.DENSE.value],  # dense: replicated tables
        pooling_factors=[table["lookups_per_sample"] / table["features"]] * table["features"],
        min_partition=_column_width(table["embedding_dim"]),
        cache_params=CacheParams(load_factor=request["load_factor"], stats=stats),
    )


def _column_width(dim: int) -> int:
    """The widest equal shards of at most 128 columns; TorchRec's own default leaves a narrower rest."""
    for shards in range(-(-dim // 128), dim // 4 + 1):
        if dim % shards == 0 and dim // shards % 4 == 0:
            return dim // shards
    return dim


def _placed(option: ShardingOption) -> dict[str, Any]:
    replicated = option.sharding_type == "data_parallel"
    shards = sorted(option.shards, key=lambda s: tuple(s.offset))
    cached = option.compute_kernel == EmbeddingComputeKernel.FUSED_UVM_CACHING.value
    return {
        "name": option.name,
        "sharding_type": option.sharding_type,
        "compute_kernel": option.compute_kernel,
        "cache_load_factor": option.cache_load_factor if cached else None,
        "devices": [s.rank for s in (option.shards if replicated else shards)],
        "columns": [s.size[1] for s in shards],
    }


def main() -> None:
    """One request, one answer."""
    logging.disable(logging.WARNING)
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for the answer alone
        found = answer(json.load(sys.stdin))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
