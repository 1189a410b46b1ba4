"""A server under load for a long time, with everything beside it that a server has to live with.

Workers are killed and models reloaded while rude clients (`soak_rude`) come and go. Afterwards: has each
query been answered once, with its own answer, and does the server's count agree; has memory grown
(`soak_watch`)?
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_opt.bench.load import Target, in_loop, samples_for
from recsys_opt.bench.served import Served, gauge, served, wait_until_idle
from recsys_opt.bench.soak_rude import RudeClients, Tally
from recsys_opt.bench.soak_verdict import Counts, verdict
from recsys_opt.bench.soak_watch import Watch, children, open_files
from recsys_opt.progress import Progress
from recsys_opt.server import wire
from recsys_opt.server.client import AsyncClient, Client, ServerGoneError
from recsys_opt.server.refusal import RefusalError
from recsys_opt.serving.models import ServingOptions, load_frozen
from recsys_opt.serving.profile import Path as ServedPath
from recsys_opt.serving.profile import Profile
from recsys_opt.serving.samples import Samples
from recsys_opt.serving.sizes import Sizes

POOL = 256
"""Queries that the load is made of, each with its answers known."""
_MOST_SAMPLES, _MOST_BODY = 4096, 4_000_000
_TIMEOUT_S = 300.0
"""Of queries; a machine may be suspended for minutes."""
_MOST_OUTSTANDING = 400
_BEHIND_S = 1.0
"""A plan that lies so far behind begins anew: the machine was suspended."""
_TOLERANCE = 1e-4
_LATENCIES = 200_000


@dataclass(frozen=True)
class Soak:
    """What a soak does."""

    seconds: float = 1800.0
    share: float = 0.8
    """Of the capacity, as measured first."""
    capacity_s: float = 10.0
    """For which it is measured."""
    kill_every_s: float = 45.0
    reload_every_s: float = 300.0
    rude_per_s: float = 8.0
    policy: str = "adaptive"
    sla_s: float = 0.05


@dataclass
class Load:
    """What became of the load's queries."""

    sent: int = 0
    over: Counter[int] = field(default_factory=Counter)
    """How many queries were over so many times."""
    outcomes: Counter[str] = field(default_factory=Counter)
    unasked: int = 0
    """Answers too many: bytes on a connection on which nothing was asked."""
    wrong: list[str] = field(default_factory=list)
    """Answers that are not of their queries."""
    latencies: list[float] = field(default_factory=list)
    replanned: int = 0
    held_back: int = 0
    """Times that too many waited for their answers."""


class Pool:
    """Queries whose answers by each path are known."""

    def __init__(self, samples: Samples, sizes: Sizes, profile: Profile, runs: Path, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        drawn = np.minimum(sizes.draw(POOL, random), _MOST_SAMPLES)
        queries = [samples.request(int(n), int(random.integers(samples.rows))) for n in drawn]
        self.bodies = [wire.encode_query(*query) for query in queries]
        self.sizes = drawn
        self._answers = {path.name: _answers(path, runs, queries) for path in profile.paths}

    def fault(self, number: int, answer: wire.Answer) -> str | None:
        """What is wrong with an answer to the query; None: nothing."""
        found = answer.probabilities
        if len(found) != self.sizes[number]:
            return f"{len(found)} probabilities for {self.sizes[number]} samples"
        if sum(answer.paths.values()) != len(found) or not set(answer.paths) <= set(self._answers):
            return f"paths {answer.paths} for {len(found)} samples"
        known = [self._answers[name][number] for name in answer.paths]
        away = float(np.min([np.abs(found - k) for k in known], axis=0).max())
        return None if away < _TOLERANCE else f"probabilities {away:g} away from those of {[*answer.paths]}"


def _answers(
    path: ServedPath, runs: Path, queries: list[tuple[NDArray[np.float32], NDArray[np.int32]]]
) -> list[NDArray[np.float32]]:
    options = ServingOptions.from_json(path.options, f"the profile: path {path.name}: options")
    model = load_frozen(runs / (path.run or ""), options, fingerprint=path.fingerprint)
    return [np.array(model.predict(*query)) for query in queries]


def soak(
    profile: Path, runs: Path, work: Soak, sizes: Sizes, *, data: Path | None, token: Path, progress: Progress
) -> dict[str, Any]:
    """Runs the soak; the result's "faults" are what is not as it must be.

    token  a file that has the server's token
    """
    loaded = Profile.load(profile)
    measured = loaded.with_paths([p.name for p in loaded.paths if not p.assumed])
    arguments = ["--policy", work.policy, "--sla", f"{work.sla_s:g}s", "--token-file", str(token)]
    arguments += ["--max-samples", str(_MOST_SAMPLES), "--max-body", str(_MOST_BODY)]
    arguments += ["--header-timeout", "2s", "--body-timeout", "3s", "--write-timeout", "3s"]
    with served(profile, runs, *arguments, grpc=True) as server:
        target = Target(server.target.host, server.target.port, token.read_text().strip())
        samples = samples_for(target, data)
        run = _Run(server, target, work, samples, Pool(samples, sizes, measured, runs), progress)
        return run.run() | {"sizes": sizes.spec}


class _Run:
    def __init__(
        self, server: Served, target: Target, work: Soak, samples: Samples, pool: Pool, progress: Progress
    ) -> None:
        self._server, self._target, self._work = server, target, work
        self._pool, self._samples, self._progress = pool, samples, progress
        self._watch = Watch(server)
        self._load = Load()
        self._kills, self._reloads = Counter[str](), Counter[str]()
        self._changing = asyncio.Lock()
        self._tally = Tally()
        self._over = asyncio.Event()

    def run(self) -> dict[str, Any]:
        """Everything, one after the other."""
        target, work = self._target, self._work
        self._progress.start("capacity", 1, "runs")
        capacity = in_loop(self._capacity())
        self._progress.advance(1)
        wait_until_idle(target)
        workers = len(self._workers())
        before, files_before = self._server_counts(), self._open_files()
        self._progress.start("soak", work.seconds, "s")
        begun = time.monotonic()
        in_loop(self._everything(work.share * capacity))
        seconds = time.monotonic() - begun
        wait_until_idle(target, 60.0)
        _until(lambda: len(children(self._server.process.pid)) == workers == len(self._workers()))
        _until(lambda: gauge(target, "recsys_opt_workers") == workers)
        _until(lambda: self._open_files() <= files_before)
        files = files_before, self._open_files()
        counts = Counts(
            self._load,
            self._tally,
            {name: value - before[name] for name, value in self._server_counts().items()},
            kills=self._kills["killed"],
            restarts=int(gauge(target, "recsys_opt_worker_restarts_total")),
            reloads=dict(self._reloads),
            workers=(workers, len(children(self._server.process.pid))),
            files=files,
        )
        result = verdict(counts, self._watch)
        summary = self._server.stop()
        return {
            "seconds": seconds,
            "capacity_qps": capacity,
            "load_qps": work.share * capacity,
            "share_of_capacity": work.share,
            "policy": work.policy,
            "sla_ms": 1e3 * work.sla_s,
            **result,
            "outcomes_at_end": summary,
        }

    # The load.

    async def _capacity(self) -> float:
        """Queries a second in a closed loop: of the median second, as the machine may be suspended."""
        begun, seconds = time.monotonic(), max(1, round(self._work.capacity_s))
        answered = np.zeros(seconds)
        random = np.random.default_rng(1)

        async def ask(client: AsyncClient) -> None:
            while (second := int(time.monotonic() - begun)) < seconds:
                number = int(random.integers(POOL))
                query = wire.decode_query(self._pool.bodies[number], max_samples=_MOST_SAMPLES)
                with contextlib.suppress(RefusalError):  # late, after a suspension
                    await client.predict(query.dense, query.ids, within_s=30.0)
                    answered[second] += 1

        async with self._client() as client:
            await asyncio.gather(*(ask(client) for _ in range(32)))
        return float(np.median(answered))

    async def _everything(self, rate: float) -> None:
        rude = RudeClients(
            self._target,
            self._server.ready["grpc"],
            self._samples,
            most_samples=_MOST_SAMPLES,
            most_body=_MOST_BODY,
            stalls=lambda: len(self._watch.stalls),
        )
        self._tally = rude.tally
        watching = asyncio.create_task(self._watch.run())
        others: list[Coroutine[Any, Any, None]] = [
            rude.run(self._work.rude_per_s, self._over),
            self._now_and_then(self._work.kill_every_s, self._kill),
            self._now_and_then(self._work.reload_every_s, self._reload),
        ]
        tasks = [asyncio.create_task(other) for other in others]
        try:
            await self._send(rate)
            self._over.set()
            await asyncio.gather(*tasks)
        finally:
            for task in (*tasks, watching):
                task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching

    async def _send(self, rate: float) -> None:
        """Poisson arrivals, whatever the server does, until the time is over and all are answered."""
        random = np.random.default_rng(2)
        begun = time.monotonic()
        due, told = begun, begun
        tasks: set[asyncio.Task[None]] = set()
        async with self._client() as client:
            while (now := time.monotonic()) < begun + self._work.seconds:
                if now - told > 1:
                    self._progress.advance(now - told, answered=f"{self._load.outcomes['answered']:,}")
                    told = now
                if now - due > _BEHIND_S:
                    due = now
                    self._load.replanned += 1
                while due <= now and len(tasks) < _MOST_OUTSTANDING:
                    task = asyncio.create_task(self._ask(client, int(random.integers(POOL))))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
                    due += random.exponential(1 / rate)
                self._load.held_back += len(tasks) >= _MOST_OUTSTANDING
                await asyncio.sleep(max(0.0005, due - time.monotonic()))
            while tasks:
                await asyncio.wait(list(tasks))
            self._load.unasked = client.unasked

    async def _ask(self, client: AsyncClient, number: int) -> None:
        load = self._load
        load.sent += 1
        begun, over = time.monotonic(), 0
        try:
            answer = await client.predict_encoded(self._pool.bodies[number])
            over += 1
            load.outcomes["answered"] += 1
            if len(load.latencies) < _LATENCIES:
                load.latencies.append(time.monotonic() - begun)
            if (fault := self._pool.fault(number, answer)) is not None:
                load.wrong.append(fault)
        except RefusalError as refusal:
            over += 1
            load.outcomes[refusal.code] += 1
        except ServerGoneError as error:
            load.outcomes[f"lost: {error}"] += 1
        load.over[over] += 1

    def _client(self) -> AsyncClient:
        target = self._target
        return AsyncClient(target.host, target.port, token=target.token, timeout_s=_TIMEOUT_S)

    # What happens to the server.

    async def _now_and_then(self, every_s: float, what: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while not self._over.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), every_s)
                return
            await what()

    async def _kill(self) -> None:
        """Ends a worker, each in its turn, unless models are being exchanged."""
        async with self._changing:
            workers = sorted((await asyncio.to_thread(self._workers)).items())
            if workers:
                _, pid = workers[self._kills["killed"] % len(workers)]
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    self._kills["killed"] += 1

    async def _reload(self) -> None:
        async with self._changing:
            status, body = await asyncio.to_thread(self._post_reload)
            self._reloads["done" if status == 200 else f"{status}: {body[:200].decode()}"] += 1

    def _post_reload(self) -> tuple[int, bytes]:
        target = self._target
        with Client(target.host, target.port, token=target.token, timeout_s=_TIMEOUT_S) as client:
            status, _, body = client.request("POST", "/v1/reload")
            return status, body

    # What the server says of itself.

    def _workers(self) -> dict[str, int]:
        workers: dict[str, int] = self._target.describe()["workers"]
        return workers

    def _open_files(self) -> int:
        return open_files(self._server.process.pid)

    def _server_counts(self) -> dict[str, int]:
        name = 'recsys_opt_queries_total{outcome="'
        lines = [line[len(name) :] for line in self._target.metrics().splitlines() if line.startswith(name)]
        return {line.partition('"')[0]: int(float(line.rpartition(" ")[2])) for line in lines}


def _until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Waits for what must come; the verdict says whether it did."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not condition():
        time.sleep(0.1)
