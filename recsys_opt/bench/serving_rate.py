"""How many queries the simulator serves in a second of one core, beside SimPy."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from recsys_opt import _serving
from recsys_opt.bench import serving_simpy
from recsys_opt.progress import Progress, SilentProgress
from recsys_opt.serving.sizes import parse_sizes

SIMULATOR, SIMPY = "recsys-opt", "SimPy"
SINGLE, BATCHES = "M/M/1", "late binding, batches"
LOAD = 0.8
RATE, SLA = 8000.0, 0.025  # about .8 of the load that the fleet holds
SIZES = "lognormal:mean=128"
# (device, path, accuracy, seconds of a batch, seconds of a sample): a core and a GPU, of likely times.
PATHS = (
    ("cpu", "table@cpu", 0.7879, 1e-4, 1.4e-5),
    ("cpu", "dhe@cpu", 0.7894, 3e-4, 3e-5),
    ("gpu", "table@gpu", 0.7879, 5e-4, 7e-7),
    ("gpu", "hybrid@gpu", 0.7898, 8e-4, 2.6e-6),
)
_SPREAD = tuple(float(f) for f in np.exp(np.linspace(-0.2, 0.2, 64)))


def measure(
    queries: int, simpy_queries: int, rounds: int, progress: Progress | None = None
) -> list[dict[str, Any]]:
    """Each model in both, in turns; CPU seconds of the process, which has one thread."""
    progress = progress or SilentProgress()
    models: dict[tuple[str, str], tuple[int, Callable[[int, int], int]]] = {
        (SINGLE, SIMULATOR): (queries, _single),
        (SINGLE, SIMPY): (simpy_queries, _single_simpy),
        (BATCHES, SIMULATOR): (queries, _batches),
        (BATCHES, SIMPY): (simpy_queries, _batches_simpy),
    }
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in models}
    answered: dict[tuple[str, str], int] = {}
    progress.start("simulating", rounds * len(models), "runs")
    for round_ in range(rounds):
        for key, (count, run) in models.items():
            began = time.process_time()
            answered[key] = run(count, round_)
            seconds[key].append(time.process_time() - began)
            progress.advance(1)
    rows = []
    for (model, way), (count, _) in models.items():
        own = statistics.median(seconds[model, way])
        rate = count / own
        simpy = simpy_queries / statistics.median(seconds[model, SIMPY])
        rows.append(
            {
                "model": model,
                "way": way,
                "queries": count,
                "answered": answered[model, way],
                "cpu_s": own,
                "slowest_cpu_s": max(seconds[model, way]),
                "queries_per_s": rate,
                "times_simpy": rate / simpy,
            }
        )
    return rows


def bench_fleet() -> _serving.Fleet:
    """A core and a GPU of made-up but likely times."""
    fleet = _serving.Fleet()
    devices = {name: fleet.add_device(name, 1) for name in dict.fromkeys(p[0] for p in PATHS)}
    sizes = np.array([1, 4096])
    for device, name, accuracy, fixed, each in PATHS:
        times = (fixed + each * sizes)[:, None] * np.array(_SPREAD)
        fleet.add_path(name, devices[device], accuracy, sizes, times)
    return fleet


def _single(queries: int, seed: int) -> int:
    fleet = _serving.Fleet()
    times = -np.log1p(-(np.arange(1024) + 0.5) / 1024)
    fleet.add_path("path", fleet.add_device("server", 1), 1.0, np.array([1]), times[None])
    one = _serving.SizeDistribution(np.array([1]), np.array([1.0]))
    found = _serving.simulate(
        fleet,
        _serving.make_policy("static", fleet, 1e9, path="path"),
        _serving.Workload.poisson(LOAD, one),
        sla=1e9,
        queries=queries,
        seed=seed,
    )
    return found.outcomes["in_time"]


def _single_simpy(queries: int, seed: int) -> int:
    return len(serving_simpy.single_queue(queries, LOAD, seed))


def _batches(queries: int, seed: int) -> int:
    fleet = bench_fleet()
    sizes = parse_sizes(SIZES)
    found = _serving.simulate(
        fleet,
        _serving.make_policy("adaptive", fleet, SLA),
        _serving.Workload.poisson(RATE, _serving.SizeDistribution(sizes.values, sizes.weights)),
        sla=SLA,
        queries=queries,
        seed=seed,
    )
    return found.outcomes["in_time"]


def _batches_simpy(queries: int, seed: int) -> int:
    sizes = parse_sizes(SIZES).draw(4096, np.random.default_rng(seed)).tolist()
    paths = [serving_simpy.Path(*path, _SPREAD) for path in PATHS]
    found = serving_simpy.Batches(paths, SLA).run(queries, RATE, sizes, seed)
    return found.outcomes["in_time"]
