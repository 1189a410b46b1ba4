"""A running server under MLPerf LoadGen's Server scenario."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from recsys_opt.bench.load import Target, in_loop
from recsys_opt.errors import RecsysOptError
from recsys_opt.integrations.loadgen import ServerScenario, Summary, complete, run_server
from recsys_opt.server import wire
from recsys_opt.server.client import AsyncClient
from recsys_opt.server.refusal import RefusalError
from recsys_opt.serving.samples import Samples
from recsys_opt.serving.sizes import Sizes

log = logging.getLogger("recsys_opt.bench.loadgen")
POOL = 1024
"""Queries that LoadGen chooses from; of as many samples as the sizes say."""
_START_S = 60.0


def drive(
    target: Target, scenario: ServerScenario, samples: Samples, sizes: Sizes, logs: Path
) -> dict[str, Any]:
    """Has LoadGen send queries to the server; what it says, beside our own count of what became of each.

    A query that the server refuses has no answer, and LoadGen knows no such thing: it is completed when its
    time is up, so that LoadGen counts it among the late ones.
    """
    random = np.random.default_rng(scenario.seed)
    bodies = [
        wire.encode_query(
            *samples.request(int(size), int(random.integers(samples.rows))), within_s=scenario.sla_s
        )
        for size in sizes.draw(POOL, random)
    ]
    client = _Client(target, scenario.sla_s, bodies)
    thread = threading.Thread(target=client.run)
    thread.start()
    try:
        client.wait_until_ready()
        summary = run_server(scenario, POOL, client.issue, logs)
    finally:
        client.stop()
        thread.join()
    return client.result(summary)


class _Client:
    """Queries of LoadGen's thread, sent by an event loop in another."""

    def __init__(self, target: Target, sla_s: float, bodies: list[bytes]) -> None:
        self._target, self._sla_s, self._bodies = target, sla_s, bodies
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: AsyncClient | None = None
        self._ready, self._stopped = threading.Event(), asyncio.Event()
        self._error: BaseException | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._issued = 0
        self._over: Counter[int] = Counter()
        """By query: how often it was over."""
        self._outcomes: Counter[str] = Counter()

    def run(self) -> None:
        """The thread of the event loop."""
        try:
            in_loop(self._serve())
        except BaseException as error:
            self._error = error
        finally:
            self._ready.set()

    def wait_until_ready(self) -> None:
        """Until the first answer is there; raises what kept it."""
        if not self._ready.wait(_START_S):
            raise RecsysOptError(f"the server answers no query in {_START_S:g} s")
        if self._error is not None:
            raise self._error

    def issue(self, query: int, sample: int) -> None:
        """Sends a query; on LoadGen's thread."""
        assert self._loop is not None
        self._issued += 1
        self._loop.call_soon_threadsafe(self._send, query, sample, time.monotonic())

    def stop(self) -> None:
        """Ends the thread."""
        if self._loop is not None and self._error is None:
            self._loop.call_soon_threadsafe(self._stopped.set)

    def result(self, summary: Summary) -> dict[str, Any]:
        """All figures, JSON values only."""
        twice = sum(count - 1 for count in self._over.values())
        lost = self._issued - len(self._over)
        failed = self._outcomes["failed"]
        return {
            "valid": summary.valid and not (twice or lost or failed),
            "loadgen_valid": summary.valid,
            "issued": self._issued,
            "answered": self._outcomes["answered"],
            "refused": self._issued - lost - failed - self._outcomes["answered"],
            "failed": failed,
            "answered_twice": twice,
            "never_answered": lost,
            "outcomes": dict(sorted(self._outcomes.items())),
            "loadgen": dict(summary.fields),
        }

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        target = self._target
        async with AsyncClient(target.host, target.port, token=target.token, timeout_s=30.0) as self._client:
            for body in self._bodies[:20]:  # connections and caches are warm when the first query counts
                query = wire.decode_query(body, max_samples=1 << 30)
                await self._client.predict(query.dense, query.ids, within_s=10.0)
            self._ready.set()
            await self._stopped.wait()
            while self._tasks:
                await asyncio.wait(list(self._tasks))

    def _send(self, query: int, sample: int, issued: float) -> None:
        assert self._loop is not None
        task = self._loop.create_task(self._ask(query, sample, issued))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, query: int, sample: int, issued: float) -> None:
        assert self._client is not None
        outcome = "answered"
        try:
            await self._client.predict_encoded(self._bodies[sample])
        except RefusalError as refusal:
            outcome = refusal.code
        except Exception:  # whatever it is: LoadGen waits for the query's end
            log.exception("a query failed")
            outcome = "failed"
        self._outcomes[outcome] += 1
        self._over[query] += 1
        if outcome != "answered":
            await asyncio.sleep(max(0.0, issued + 1.1 * self._sla_s + 0.001 - time.monotonic()))
        complete(query)
