"""The whole server: engines, HTTP, gRPC, signals; starting, reloading, draining."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from recsys_opt import _serving
from recsys_opt.errors import InputError, RecsysOptError
from recsys_opt.server.engine import Engine
from recsys_opt.server.fleet import Served
from recsys_opt.server.http_protocol import HttpServer
from recsys_opt.server.http_routes import Routes
from recsys_opt.server.metrics import EngineMetrics, State
from recsys_opt.server.refusal import RefusalError
from recsys_opt.server.settings import Settings
from recsys_opt.serving.choices import parse_policy, python_policy
from recsys_opt.serving.simulation import Setup
from recsys_opt.serving.sizes import parse_sizes
from recsys_opt.serving.workload import make_workload, parse_arrivals

log = logging.getLogger("recsys_opt.server")


@dataclass(frozen=True)
class Addresses:
    """Where a server listens: host and port, 0 for a free one; None: not at all."""

    http: tuple[str, int] | None
    grpc: tuple[str, int] | None


class Service:
    """A server.

    A reload makes a new engine (profile, scheduler, workers) beside the old one. When its workers are ready
    it takes the queries that come from then on, and the old one ends when it has answered its own: no query
    is dropped, and each is answered by the models that it was admitted to. Until then both are in memory.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = EngineMetrics()
        self.draining = False
        self.addresses = Addresses(None, None)
        self.reloads = 0
        self._engine: Engine | None = None
        self._loop = asyncio.get_running_loop()
        self._http = HttpServer(Routes(self), settings.limits, self._loop)
        self._grpc: Any = None
        self._cores = os.sched_getaffinity(0)
        self._reloading: asyncio.Task[None] | None = None
        self._retiring: dict[Engine, asyncio.Task[None]] = {}
        self._stop = asyncio.Event()
        self.metrics.watch(self._state)

    # For the protocols.

    @property
    def ready(self) -> bool:
        """Whether queries are taken."""
        return self._engine is not None and not self.draining and self._engine.available_workers > 0

    def engine_for_queries(self) -> Engine:
        """The engine that a query of now goes to; raises RefusalError where none takes it."""
        if self._engine is None or self.draining:
            raise RefusalError(
                "unavailable", "the server stops; send the query to another", retry_after_s=1.0
            )
        return self._engine

    def count_refusal(self, refusal: RefusalError) -> None:
        """Counts a query that was not even one."""
        if refusal.kind.http_status < 429:
            self.metrics.outcome("invalid")

    def describe(self) -> dict[str, Any]:
        """What `/v1/models` says."""
        engine = self.engine_for_queries()
        profile = engine.served.profile
        model = profile.model
        return {
            "models": [
                {
                    "name": self.settings.model_name,
                    "what": model.what,
                    "dense_columns": model.dense_features,
                    "features": [
                        {"name": name, "rows": rows}
                        for name, rows in zip(model.features, model.cardinalities, strict=True)
                    ],
                    "paths": [
                        {
                            "name": p.name,
                            "representation": p.representation,
                            "device": p.device,
                            "accuracy": p.accuracy,
                            "run": p.run,
                            "fingerprint": p.fingerprint,
                        }
                        for p in profile.paths
                    ],
                }
            ],
            "policy": self.settings.policy,
            "sla_ms": 1e3 * self.settings.sla_s,
            "max_samples": self.settings.limits.max_samples,
            "workers": engine.pids(),
            "reloads": self.reloads,
        }

    def reload(self, reply: Callable[[RefusalError | None], None]) -> None:
        """Begins a reload; `reply` gets what kept it from being done, or None."""
        if self._reloading is not None or self.draining:
            raise RefusalError("conflict", "a reload is under way already, or the server stops")
        self._reloading = self._loop.create_task(self._reload(reply))

    # Its life.

    async def start(self, addresses: Addresses) -> None:
        """Loads the models, then listens."""
        self._engine = await self._new_engine()
        http, grpc = addresses.http, addresses.grpc
        if http is not None:
            http = await self._http.listen(*http)
        if grpc is not None:
            from recsys_opt.server.grpc_service import GrpcServer

            self._grpc = GrpcServer(self)
            grpc = (grpc[0], await self._grpc.listen(*grpc))
        self.addresses = Addresses(http, grpc)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._stop.set)
        self._loop.add_signal_handler(signal.SIGHUP, self._hang_up)

    async def run(self) -> None:
        """Serves until SIGTERM or SIGINT, then finishes what was admitted and returns."""
        await self._stop.wait()
        await self.close()

    async def close(self) -> None:
        """Refuses new queries, answers those that wait, and ends the workers."""
        self.draining = True
        within = self.settings.limits.drain_timeout_s
        if self._reloading is not None:
            self._reloading.cancel()
            await asyncio.gather(self._reloading, return_exceptions=True)
        engines = [*self._retiring, *([self._engine] if self._engine else [])]
        log.info("draining: %d queries wait", sum(e.unanswered for e in engines))
        try:
            async with asyncio.timeout(within):
                await asyncio.gather(*(e.drained() for e in engines))
        except TimeoutError:
            log.error("%d queries were not answered in %g s", sum(e.unanswered for e in engines), within)
        await self._http.close(within_s=5.0)
        if self._grpc is not None:
            await self._grpc.close(within_s=5.0)
        await asyncio.gather(*self._retiring.values())
        if self._engine is not None:
            await self._engine.close()

    async def _new_engine(self) -> Engine:
        settings = self.settings
        served = await asyncio.to_thread(Served.of, settings, self._cores)
        chosen = _policy(settings, served)
        engine = Engine(served, chosen, settings, self.metrics, self._loop)
        await engine.start()
        # A worker that wakes on the core that this process runs on would take it from it.
        os.sched_setaffinity(0, served.own_cores())
        return engine

    async def _reload(self, reply: Callable[[RefusalError | None], None]) -> None:
        try:
            engine = await self._new_engine()
        except Exception as error:
            trace = None if isinstance(error, (RecsysOptError, OSError)) else error
            log.error("the models were not reloaded, the old ones go on: %s", error, exc_info=trace)
            self.metrics.reloaded("failed")
            reply(RefusalError("failed", f"the models were not reloaded, the old ones go on: {error}"))
            return
        finally:
            self._reloading = None
        old, self._engine = self._engine, engine
        self.reloads += 1
        self.metrics.reloaded("done")
        log.info("the models are reloaded")
        reply(None)
        if old is not None:
            self._retiring[old] = self._loop.create_task(self._retire(old))

    async def _retire(self, engine: Engine) -> None:
        try:
            async with asyncio.timeout(self.settings.limits.drain_timeout_s):
                await engine.drained()
        except TimeoutError:
            log.error("%d queries of the models before the reload were not answered", engine.unanswered)
        await engine.close()
        del self._retiring[engine]

    def _hang_up(self) -> None:
        try:
            self.reload(lambda _: None)
        except RefusalError as refusal:
            log.error("SIGHUP: %s", refusal)

    def _state(self) -> State:
        engine = self._engine
        return State(
            waiting_samples=engine.waiting_samples if engine else 0,
            unanswered=engine.unanswered if engine else 0,
            workers=engine.available_workers if engine else 0,
            connections=len(self._http.connections),
            ready=self.ready,
            running_s=engine.busy_s() if engine else {},
        )


def _policy(settings: Settings, served: Served) -> _serving.Policy:
    """The policy, as the simulator makes it."""
    name = settings.policy
    if name == "threshold":
        raise InputError(
            "the threshold is tuned to a workload, which a server does not know; tune it with recsys-opt "
            "simulate, then give --policy threshold:small=PATH,large=PATH,size=N"
        )
    chosen = python_policy(name) if ".py:" in name else parse_policy(name)
    workload = make_workload(parse_arrivals("poisson"), parse_sizes("fixed"), 1.0)
    return chosen.make(served.fleet, Setup(served.profile, workload, settings.sla_s))
