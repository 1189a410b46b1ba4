"""Load for a server: queries sent at a workload's times whatever the server does, and what became of each.

The loop is open: a query is sent when its time has come, also while others wait for their answers, as those
of independent users are. A generator that lags behind its own plan says so: `Load.lag_s`.
"""

from __future__ import annotations

import asyncio
import gc
import json
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from recsys_opt import _serving
from recsys_opt.environment import environment
from recsys_opt.errors import InputError
from recsys_opt.server import wire
from recsys_opt.server.client import AsyncClient, Client, ServerGoneError
from recsys_opt.server.refusal import RefusalError
from recsys_opt.server.wire import Answer
from recsys_opt.serving.profile import ServedModel
from recsys_opt.serving.samples import Samples, dataset_samples, generated_samples
from recsys_opt.serving.simulation import native_workload
from recsys_opt.serving.trace import State, Trace
from recsys_opt.serving.workload import Workload

T = TypeVar("T")
_STATES = {"overloaded": State.REJECTED, "unavailable": State.REJECTED, "late": State.DROPPED}


@dataclass(frozen=True)
class Target:
    """A server, and what it says of itself."""

    host: str
    port: int
    token: str | None = field(default=None, repr=False)

    def describe(self) -> dict[str, Any]:
        """What /v1/models says."""
        document: dict[str, Any] = json.loads(self._get("/v1/models"))
        return document

    def metrics(self) -> str:
        """What /metrics says."""
        return self._get("/metrics").decode()

    def model(self) -> ServedModel:
        """What queries must look like."""
        (model,) = self.describe()["models"]
        features = model["features"]
        return ServedModel(
            model["dense_columns"],
            tuple(f["name"] for f in features),
            tuple(f["rows"] for f in features),
            embedding_dim=1,
        )

    def _get(self, path: str) -> bytes:
        with Client(self.host, self.port, token=self.token) as client:
            status, body = client.get(path)
        if status != 200:
            raise InputError(f"the server at {self.host}:{self.port} says {status}: {body.decode()[:200]}")
        return body


@dataclass(frozen=True, eq=False)
class Plan:
    """Queries: when each is to be sent, and how large it is."""

    arrivals: NDArray[np.float64]
    """Seconds from the beginning."""
    sizes: NDArray[np.int64]
    what: str

    @classmethod
    def of(cls, workload: Workload, seconds: float, seed: int = 0) -> Plan:
        """The workload's queries of so many seconds, the same as those of a simulation with this seed."""
        if not (math.isfinite(seconds) and seconds > 0):
            raise InputError(f"{seconds} s of load; it must be a positive time")
        arrivals, sizes = _drawn(workload, seconds, seed)
        if not len(arrivals):
            raise InputError(f"no query arrives in {seconds:g} s; give a longer time or more load")
        return cls(arrivals, sizes, workload.spec)


@dataclass
class Load:
    """What became of a plan's queries."""

    trace: Trace
    lag_s: NDArray[np.float64]
    """How much later than planned each query was sent."""
    messages: Counter[str]
    """Of refusals and failures, by code."""

    def summary(self) -> dict[str, Any]:
        """Figures; JSON values only."""
        trace, sla = self.trace, self.trace.sla
        answered = trace.answered
        latency = trace.latency[answered]
        span = float(trace.arrival[-1]) if len(trace) > 1 else 0.0
        in_sla = None if sla is None else float((latency <= sla).sum() / len(trace))
        paths = Counter(np.array([*trace.paths, "unknown"])[trace.path[answered]].tolist())
        return {
            "queries": len(trace),
            "samples": int(trace.size.sum()),
            "offered_per_s": len(trace) / span if span else None,
            **{s.name.lower(): int((trace.state == s).sum()) for s in State},
            "in_sla": in_sla,
            "latency_ms": _percentiles(latency),
            "beside_ms": _percentiles((trace.latency - trace.wait - trace.service)[answered]),
            "batch_size": float(trace.batch_size[answered].mean()) if answered.any() else None,
            "paths": dict(sorted(paths.items())),
            "lag_ms": _percentiles(self.lag_s),
            "refusals": dict(self.messages),
        }


def samples_for(target: Target, data: Path | None) -> Samples:
    """Rows of a dataset, or generated ones, that fit the server's model."""
    model = target.model()
    return generated_samples(model) if data is None else dataset_samples(data, model)


def send(
    target: Target,
    plan: Plan,
    samples: Samples,
    *,
    sla: float | None = None,
    timeout_s: float = 30.0,
    seed: int = 0,
    done: Callable[[int], None] = lambda _: None,
) -> Load:
    """Sends a plan's queries, and waits for the last answer.

    sla   that each query asks for; None: the server's
    done  hears of each query that is over
    """
    own_sla = sla if sla is not None else target.describe()["sla_ms"] / 1e3
    return in_loop(_Sender(target, plan, samples, sla, timeout_s, seed, done).run(own_sla))


class _Sender:
    def __init__(
        self,
        target: Target,
        plan: Plan,
        samples: Samples,
        sla: float | None,
        timeout_s: float,
        seed: int,
        done: Callable[[int], None],
    ) -> None:
        count = len(plan.arrivals)
        self._target, self._plan, self._samples, self._sla = target, plan, samples, sla
        self._timeout_s, self._done = timeout_s, done
        self._starts = np.random.default_rng(seed).integers(0, samples.rows, count)
        self._sent = np.zeros(count)
        self._state = np.full(count, State.FAILED, np.uint8)
        self._numbers = {n: np.full(count, np.nan) for n in ("latency", "wait", "service")}
        self._batch, self._batch_size = np.full(count, -1, np.int64), np.zeros(count, np.int64)
        self._path = np.full(count, -1, np.int16)
        self._paths: dict[str, int] = {}
        self._messages: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._all_sent = asyncio.Event()
        self._begun = 0.0

    async def run(self, sla: float) -> Load:
        loop = asyncio.get_running_loop()
        async with AsyncClient(
            self._target.host, self._target.port, token=self._target.token, timeout_s=self._timeout_s
        ) as client:
            for size in (1, 128):  # connections and caches are warm when the first query counts
                await client.predict(*self._samples.request(size, 0), within_s=5.0)
            gc.collect()
            gc.freeze()
            self._begun = time.perf_counter()
            thread = threading.Thread(target=self._tell, args=(loop, client), daemon=True)
            thread.start()
            await self._all_sent.wait()
            while self._tasks:
                await asyncio.wait(list(self._tasks))
            thread.join()
            gc.unfreeze()
        trace = Trace(
            self._sent,
            self._plan.sizes,
            self._state,
            **self._numbers,
            path=self._path,
            batch=self._batch,
            batch_size=self._batch_size,
            paths=tuple(self._paths),
            sla=sla,
            circumstances={**environment(), "workload": self._plan.what, "samples": self._samples.what},
        )
        return Load(trace, self._sent - self._plan.arrivals, self._messages)

    def _tell(self, loop: asyncio.AbstractEventLoop, client: AsyncClient) -> None:
        """In a thread: the loop's timers are good for a millisecond, a thread's sleep for a tenth of that."""
        for number, at in enumerate(self._plan.arrivals.tolist()):
            pause = self._begun + at - time.perf_counter()
            if pause > 0:
                time.sleep(pause)
            loop.call_soon_threadsafe(self._send, client, number)
        loop.call_soon_threadsafe(self._all_sent.set)

    def _send(self, client: AsyncClient, number: int) -> None:
        task = asyncio.get_running_loop().create_task(self._ask(client, number))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, client: AsyncClient, number: int) -> None:
        request = self._samples.request(int(self._plan.sizes[number]), int(self._starts[number]))
        body = wire.encode_query(*request, within_s=self._sla)
        sent = time.perf_counter()
        self._sent[number] = sent - self._begun
        try:
            answer = await client.predict_encoded(body)
        except RefusalError as refusal:
            self._state[number] = _STATES.get(refusal.code, State.FAILED)
            self._messages[refusal.code] += 1
        except ServerGoneError:
            self._messages["no answer"] += 1
        else:
            self._answered(number, time.perf_counter() - sent, answer)
        self._done(1)

    def _answered(self, number: int, latency: float, answer: Answer) -> None:
        self._state[number] = State.ANSWERED
        self._numbers["latency"][number] = latency
        self._numbers["wait"][number] = answer.wait_s
        self._numbers["service"][number] = answer.service_s
        self._batch[number], self._batch_size[number] = answer.batch, answer.batch_size
        path = list(answer.paths)[-1]
        self._path[number] = self._paths.setdefault(path, len(self._paths))


def in_loop(work: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns, on uvloop where it is installed: it leaves the server more of the cores."""
    try:
        import uvloop

        factory: Callable[[], asyncio.AbstractEventLoop] | None = uvloop.new_event_loop
    except ImportError:
        factory = None
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(work)


def _drawn(workload: Workload, seconds: float, seed: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Arrivals and sizes as the simulator draws them: it is had answer them on a path that takes no time."""
    expected = max(1.0, workload.rate * seconds)
    count = int(expected + 10 * math.sqrt(expected) + 10)
    fleet = _serving.Fleet()
    fleet.add_path("none", fleet.add_device("none", 1), 1.0, np.array([1 << 20]), np.array([[1e-9]]))
    native = native_workload(workload, count, seed)
    if native.queries is not None:
        count = native.queries
    policy = _serving.make_policy("static", fleet, seconds, path="none")
    found = _serving.simulate(
        fleet, policy, native, sla=seconds, queries=count, seed=seed, record=True
    ).queries
    kept = found["arrival"] < seconds
    return found["arrival"][kept], found["size"][kept].astype(np.int64)


def _percentiles(values: NDArray[np.float64]) -> dict[str, float] | None:
    known = values[np.isfinite(values)]
    if not len(known):
        return None
    found = {f"p{q:g}": round(1e3 * float(np.percentile(known, q)), 4) for q in (50, 95, 99, 99.9)}
    return {**found, "mean": round(1e3 * float(known.mean()), 4), "max": round(1e3 * float(known.max()), 4)}
