"""Service times of paths, measured in processes of their own.

Every path has as many processes as its device has workers, each pinned to a core, with its own model. Paths
take turns, a second or so at a time, so that a drift of the machine meets all of them; within a turn the
sizes come in random order, as they do in a server, and all workers of the path are busy. A size is settled,
and gets no more turns, when the 95 % confidence intervals of its median and its 99th percentile, by order
statistics, are as narrow as asked for.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from recsys_opt.environment import core_wait_s
from recsys_opt.errors import InputError, RecsysOptError
from recsys_opt.progress import Progress, SilentProgress
from recsys_opt.serving.models import FrozenModel, ServingOptions, load_frozen
from recsys_opt.serving.profile import QUANTILES, ServedModel, ServiceTime
from recsys_opt.serving.samples import Samples

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
_TURN_S = 1.0
_FEWEST_RUNS = 30
_NORMAL_95 = 1.959964
_START_S = 600.0
"""Longest wait for a process: to load a model, or for the slowest turn."""

Clock = Literal["wall", "cpu"]


@dataclass(frozen=True)
class MeasureSettings:
    """How long and how finely to measure."""

    sizes: tuple[int, ...] = SIZES
    """Samples of a query."""
    seconds: float = 60.0
    """Limit for each path; sizes that are not settled by then stay so, and are named."""
    p50_within: float = 0.02
    """A size is settled when half its median's interval is within this share of it,"""
    p99_within: float = 0.1
    """and that of its 99th percentile."""
    workers: int = 1
    """Processes of a path that compute at the same time."""
    threads: int = 1
    """Of each."""
    clock: Clock = "wall"
    """wall, or cpu: seconds of the processor, which other programs on the machine lengthen less."""
    idle_s: float = 0.0
    """Pause before each run, as a worker has that waits for queries: caches are colder then."""
    quantiles: int = QUANTILES
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.sizes or any(s < 1 for s in self.sizes) or list(self.sizes) != sorted(set(self.sizes)):
            raise InputError(f"sizes = {list(self.sizes)}; they must be whole numbers from 1 on, ascending")
        for name in ("seconds", "p50_within", "p99_within"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} = {getattr(self, name)}; it must be above 0")
        if not 0 <= self.idle_s < 1:
            raise InputError(f"idle_s = {self.idle_s}; it must be 0 or more, and less than a second")
        for name in ("workers", "threads", "quantiles"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} = {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True)
class PathSource:
    """What a path is made of."""

    name: str
    run: str
    """The run's folder."""
    options: ServingOptions
    device: Literal["cpu", "cuda"]


@dataclass(frozen=True)
class MeasuredPath:
    """What was found of a path."""

    source: PathSource
    request: ServedModel
    representation: str
    fingerprint: str
    bytes: int
    times: tuple[ServiceTime, ...]
    unsettled: tuple[int, ...]
    """Sizes whose intervals are wider than asked for: the time was up."""
    noise: dict[str, float]
    """waited: share of the time that the processes were ready but without a core; switches: times a second
    that they had to leave one."""


@dataclass
class _Turns:
    """A path while it is measured."""

    source: PathSource
    workers: list[tuple[SpawnProcess, Connection]]
    about: dict[str, Any]
    times: dict[int, list[NDArray[np.float64]]] = field(default_factory=dict)
    spent_s: float = 0.0
    waited_s: float = 0.0
    switches: int = 0

    def of(self, size: int) -> NDArray[np.float64]:
        return np.sort(np.concatenate(self.times.get(size, [np.empty(0)])))


def measure_paths(
    sources: Sequence[PathSource],
    samples: Samples,
    settings: MeasureSettings | None = None,
    *,
    progress: Progress | None = None,
) -> list[MeasuredPath]:
    """The paths' service times, in the order of `sources`."""
    settings, progress = settings or MeasureSettings(), progress or SilentProgress()
    rng = np.random.default_rng(settings.seed)
    with _started(sources, samples, settings, progress) as paths:
        progress.start("measuring", settings.seconds * len(paths), "s")
        going = list(paths)
        while going:
            for path in list(going):
                before = path.spent_s
                _turn(path, settings, rng)
                open_sizes = _unsettled(path, settings)
                progress.advance(path.spent_s - before, path=path.source.name, sizes=str(len(open_sizes)))
                if not open_sizes or path.spent_s >= settings.seconds:
                    going.remove(path)
        progress.finish()
        return [_measured(path, settings) for path in paths]


def interval(ordered: NDArray[np.float64], q: float) -> tuple[float, float] | None:
    """The 95 % confidence interval of a quantile of independent values, by order statistics; None if it
    needs values beyond the outermost."""
    n = len(ordered)
    half = _NORMAL_95 * math.sqrt(n * q * (1 - q))
    low, high = math.floor(n * q - half) - 1, math.ceil(n * q + half)
    return (float(ordered[low]), float(ordered[high])) if low >= 0 and high < n else None


def half_width(ordered: NDArray[np.float64], q: float) -> float | None:
    """Half of `interval` as a share of the quantile."""
    found = interval(ordered, q)
    return None if found is None else (found[1] - found[0]) / 2 / float(np.quantile(ordered, q))


@contextlib.contextmanager
def _started(
    sources: Sequence[PathSource], samples: Samples, settings: MeasureSettings, progress: Progress
) -> Iterator[list[_Turns]]:
    """The paths' processes, warm."""
    cores = sorted(os.sched_getaffinity(0))
    needed = settings.workers * settings.threads
    if needed > len(cores) and any(s.device == "cpu" for s in sources):
        raise InputError(
            f"{settings.workers} workers of {settings.threads} threads need {needed} cores; this process may "
            f"use {len(cores)}"
        )
    context = multiprocessing.get_context("spawn")
    paths: list[_Turns] = []
    progress.start("loading models", len(sources), "paths")
    try:
        for source in sources:
            path = _Turns(source, [], {})
            paths.append(path)
            for w in range(settings.workers):
                own = cores[w * settings.threads : (w + 1) * settings.threads]
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=_serve_turns, args=(theirs, source, samples, settings, own, w), daemon=True
                )
                process.start()
                theirs.close()
                path.workers.append((process, ours))
        for path in paths:
            path.about, *_ = [_answer(path, at) for at in range(settings.workers)]
            progress.advance(1, path=path.source.name)
        progress.finish()
        yield paths
    finally:
        for path in paths:
            for process, connection in path.workers:
                connection.close()  # the process ends when it reads the end
                process.join(5)
                if process.is_alive():
                    process.terminate()
                    process.join()


def _answer(path: _Turns, worker: int) -> dict[str, Any]:
    process, connection = path.workers[worker]
    try:
        found = connection.recv() if connection.poll(_START_S) else None
    except (EOFError, ConnectionResetError):
        process.join()
        raise RecsysOptError(
            f"path {path.source.name}: its process ended with code {process.exitcode}; if that is -9, the "
            "models do not fit the memory together: profile fewer runs at a time, and merge"
        ) from None
    if isinstance(found, Exception):
        raise found
    if found is None:
        raise RecsysOptError(f"path {path.source.name}: no answer in {_START_S:.0f} s")
    answer: dict[str, Any] = found
    return answer


def _turn(path: _Turns, settings: MeasureSettings, rng: np.random.Generator) -> None:
    """About a second of runs, every open size for as long as the others."""
    sizes = _unsettled(path, settings)
    share = _TURN_S / len(sizes)
    runs = []
    for size in sizes:
        known = path.of(size)
        each = float(np.median(known)) if len(known) else 0.0
        runs += [size] * (max(1, min(2000, round(share / (each + settings.idle_s)))) if each else 3)
    for _, connection in path.workers:
        with contextlib.suppress(BrokenPipeError):  # it has ended, which its answer tells
            connection.send(rng.permutation(runs).tolist())
    for at in range(len(path.workers)):
        found = _answer(path, at)
        order, seconds = np.array(found["sizes"]), found["seconds"]
        for size in sizes:
            path.times.setdefault(size, []).append(seconds[order == size])
        path.spent_s += found["spent_s"] / len(path.workers)
        path.waited_s += found["waited_s"] / len(path.workers)
        path.switches += found["switches"]


def _unsettled(path: _Turns, settings: MeasureSettings) -> list[int]:
    return [size for size in settings.sizes if not _is_settled(path.of(size), settings)]


def _is_settled(ordered: NDArray[np.float64], settings: MeasureSettings) -> bool:
    widths = [half_width(ordered, q) for q in (0.5, 0.99)] if len(ordered) >= _FEWEST_RUNS else [None]
    limits = (settings.p50_within, settings.p99_within)
    return all(w is not None and w <= limit for w, limit in zip(widths, limits, strict=False))


def _measured(path: _Turns, settings: MeasureSettings) -> MeasuredPath:
    times = []
    for size in settings.sizes:
        ordered = path.of(size)
        widths = {
            name: None if width is None else round(width, 4)
            for name, q in (("p50_within", 0.5), ("p99_within", 0.99))
            for width in [half_width(ordered, q)]
        }
        times.append(ServiceTime.of_samples(size, ordered, settings.quantiles, **widths))
    noise = {
        "waited": round(path.waited_s / max(path.spent_s, 1e-9), 4),
        "switches": round(path.switches / max(path.spent_s, 1e-9), 1),
    }
    unsettled = tuple(_unsettled(path, settings))
    return MeasuredPath(path.source, times=tuple(times), unsettled=unsettled, noise=noise, **path.about)


def _serve_turns(
    connection: Connection,
    source: PathSource,
    samples: Samples,
    settings: MeasureSettings,
    cores: list[int],
    worker: int,
) -> None:
    """A worker's process: loads the model, says what it is, and runs what it is sent until the pipe ends."""
    import torch

    with contextlib.suppress(KeyboardInterrupt, EOFError, BrokenPipeError):
        try:
            if source.device == "cpu":
                os.sched_setaffinity(0, cores)
            torch.set_num_threads(settings.threads)
            model = load_frozen(source.run, source.options, device=source.device)
            model.warm_up(settings.sizes)
        except Exception as error:
            connection.send(error)
            return
        about = ("request", "representation", "fingerprint", "bytes")
        connection.send({name: getattr(model, name) for name in about})
        rng = np.random.default_rng([settings.seed, worker])
        clock = time.perf_counter if settings.clock == "wall" else time.process_time
        while True:
            sizes = connection.recv()
            before = _switches(), core_wait_s() or 0.0, time.perf_counter()
            seconds = np.array([_timed(model, samples, size, rng, clock, settings.idle_s) for size in sizes])
            after = _switches(), core_wait_s() or 0.0, time.perf_counter()
            switches, waited, spent = (b - a for a, b in zip(before, after, strict=True))
            connection.send(
                {
                    "sizes": sizes,
                    "seconds": seconds,
                    "switches": switches,
                    "waited_s": waited,
                    "spent_s": spent,
                }
            )


def _timed(
    model: FrozenModel, samples: Samples, size: int, rng: np.random.Generator, clock: Any, idle_s: float
) -> float:
    request = samples.request(size, int(rng.integers(samples.rows)))
    if idle_s:
        time.sleep(idle_s)
    began = clock()
    model.predict(*request, checked=True)
    return float(clock() - began)


def _switches() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
