"""Queries in, answers out: the scheduler, its workers, and the queries in between.

Everything happens on the event loop. A query that arrives is given to the scheduler; a worker that is free is
asked about at once, gets its batch in the memory it shares with the server, and is woken by one small
message; its report wakes the loop, which gives the worker what waits and hands out the answers. There are no
threads that would have to be woken in between.

An engine never changes its models: a reload makes a new engine beside the old one, see
`recsys_opt.server.service`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time

import numpy as np

from recsys_opt._serving import Batch, Policy, Scheduler
from recsys_opt.errors import RecsysOptError
from recsys_opt.server.check import QueryCheck
from recsys_opt.server.fleet import Served
from recsys_opt.server.in_flight import Pending, Reply, Running, Worker
from recsys_opt.server.messages import Report, What
from recsys_opt.server.metrics import EngineMetrics
from recsys_opt.server.refusal import RefusalError
from recsys_opt.server.settings import Settings
from recsys_opt.server.wire import Answer, Query
from recsys_opt.server.worker_process import WorkerProcess

log = logging.getLogger("recsys_opt.server")

MOST_ATTEMPTS = 3
"""Batches of a query that may fail before the query is given up: it may be what ends the workers."""
_TICK_S = 0.25
_MOST_TIMES_MODEL, _MOST_BESIDE_MODEL_S = 2.0, 0.001
"""What a batch takes longer than its model is at most so much its device's slowness; the rest is that this
process had other work, as in an overload, and says nothing of the device."""
_STALL_S = 1.0
"""A tick that comes so much later: this process did not run, nor perhaps its workers."""


class Engine:
    """The models of a profile, served; `submit` calls back once for every query."""

    def __init__(
        self,
        served: Served,
        policy: Policy,
        settings: Settings,
        metrics: EngineMetrics,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        limits = settings.limits
        self.served = served
        self.check = QueryCheck(
            served.profile.model, settings.model_name, limits.max_samples, limits.max_within_s
        )
        self._settings = settings
        self._metrics = metrics
        self._loop = loop
        self._scheduler = Scheduler(served.fleet, policy, max_waiting=limits.max_waiting)
        self._pending: dict[int, Pending] = {}
        self._queries = itertools.count(1)
        self._batches = itertools.count(1)
        self._paths = [p.name for p in served.profile.paths]
        self._workers = [Worker(i, device) for i, device in enumerate(served.devices_of_workers())]
        self._by_process: dict[WorkerProcess, Worker] = {}
        self._closing = False
        self._idle: asyncio.Event = asyncio.Event()
        self._idle.set()
        self._timer: asyncio.TimerHandle | None = None
        self._tick_at = math.inf
        self._patient_until = 0.0
        """Until then nothing is taken to hang."""
        self._wakes_at = math.inf
        for worker in self._workers:
            self._scheduler.set_worker(worker.index, False)

    # Its life.

    async def start(self) -> None:
        """Starts the workers; returns when all have loaded their models, or raises what kept one from it."""
        try:
            for worker in self._workers:
                self._spawn(worker)
            async with asyncio.timeout(self._settings.limits.start_timeout_s):
                await asyncio.gather(*(w.process.ready for w in self._workers if w.process is not None))
        except TimeoutError:
            await self.close()
            raise RecsysOptError(
                f"workers did not load their models in {self._settings.limits.start_timeout_s:g} s"
            ) from None
        except BaseException:
            await self.close()
            raise
        self._tick()

    async def drained(self) -> None:
        """Waits until every query that was admitted is answered."""
        await self._idle.wait()

    async def close(self) -> None:
        """Ends the workers; queries that still wait are refused."""
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        for number in list(self._pending):
            self._refuse(number, RefusalError("unavailable", "the server stops", retry_after_s=1.0))
        self._scheduler.close()
        processes = [w.process for w in self._workers if w.process is not None]
        for process in processes:
            process.stop()
        await asyncio.gather(*(process.gone() for process in processes))

    # Queries.

    def submit(self, query: Query, reply: Reply) -> int:
        """Admits a query, whose `reply` will be called once; raises RefusalError where it is not admitted.

        Returns the query's number, for `drop`.
        """
        self.check.check(query)
        now = time.monotonic()
        deadline = now + (query.within_s or self._settings.sla_s)
        number = next(self._queries)
        if not self._scheduler.submit(number, query.samples, deadline):
            raise self._overloaded(query)
        out = np.empty(query.samples, np.float32)
        self._pending[number] = Pending(query, reply, now, deadline, out)
        self._idle.clear()
        self._feed(now)
        return number

    def drop(self, number: int) -> None:
        """Nobody waits for the query any more; its `reply` is not called."""
        if self._pending.pop(number, None) is not None:
            self._scheduler.drop(number)
            self._forget_dropped()
            self._metrics.outcome("gone")
            self._after_answers()

    @property
    def waiting_samples(self) -> int:
        """Samples of admitted queries that no worker computes yet."""
        return int(self._scheduler.statistics()["waiting_samples"])

    @property
    def unanswered(self) -> int:
        """Queries admitted and not answered."""
        return len(self._pending)

    @property
    def available_workers(self) -> int:
        """Workers that compute."""
        return sum(w.available for w in self._workers)

    def pids(self) -> dict[str, int]:
        """The workers' processes, by name."""
        return {w.process.task.name: w.process.pid for w in self._workers if w.process is not None}

    def busy_s(self) -> dict[str, float]:
        """Seconds since when each device's running batches run, summed."""
        now = time.monotonic()
        busy = dict.fromkeys((w.device for w in self._workers), 0.0)
        for worker in self._workers:
            if worker.running is not None:
                busy[worker.device] += now - worker.running.started
        return busy

    # Batches.

    def _feed(self, now: float | None = None) -> None:
        """Gives every free worker what the scheduler has for it.

        now  when that which is the reason happened: from then on the worker is taken up by its batch, so that
             batches that follow one another leave no time between them
        """
        now = now or time.monotonic()
        for worker in self._workers:
            if worker.available and worker.running is None:
                batch = self._scheduler.take(worker.index, 0.0)
                if batch is not None:
                    self._start(worker, batch, now)
        self._forget_dropped()
        wake = self._scheduler.wake_at
        if wake < self._wakes_at:  # the policy lets a worker wait
            self._wakes_at = wake
            self._loop.call_later(max(1e-4, wake - time.monotonic()), self._woken, wake)

    def _woken(self, at: float) -> None:
        if at == self._wakes_at and not self._closing:
            self._wakes_at = math.inf
            self._feed()

    def _start(self, worker: Worker, batch: Batch, started: float) -> None:
        process = worker.process
        assert process is not None
        worker.running = Running.of(next(self._batches), batch, started)
        width = worker.running.write(process.slots, self._pending)
        process.compute(self.served.path_in_worker[batch.path], width)

    def worker_reported(self, process: WorkerProcess, report: Report) -> None:
        """A worker has computed its batch, or could not."""
        worker = self._by_process[process]
        running = worker.running
        if running is None:
            return
        if report.what is What.FAILED:
            log.error("worker %s: %s", process.task.name, report.text)
            self._failed(worker, report.text)
            self._scheduler.set_worker(worker.index, True)
            worker.available = True
            self._feed()
            return
        name = self._paths[running.path]
        running.read(process.slots, self._pending, name)
        worker.running = None
        now = time.monotonic()  # as the scheduler counts: what was copied to and fro is the batch's time
        most = _MOST_TIMES_MODEL * report.seconds + _MOST_BESIDE_MODEL_S
        finished = self._scheduler.done(worker.index, min(now - running.started, most))
        self._feed(now)  # the worker first: the answers below are written while it computes
        for query in finished:
            self._answer(query.query, running, now, report.seconds)
        self._metrics.batch(name, worker.device, running.size, now - running.started, report.seconds)
        self._after_answers()

    def _answer(self, number: int, running: Running, now: float, model_s: float) -> None:
        pending = self._pending.pop(number, None)
        if pending is None:
            return
        total = now - pending.admitted
        self._metrics.outcome("answered", total, late=now > pending.deadline)
        pending.reply(
            Answer(
                pending.out,
                pending.paths,
                running.started - pending.admitted,
                now - running.started,
                model_s,
                total,
                running.number,
                running.size,
            ),
        )

    def _forget_dropped(self) -> None:
        """Tells those who wait for queries that the scheduler has given up."""
        for number in self._scheduler.dropped(0.0):
            pending = self._pending.get(number)
            if pending is not None:
                within = 1e3 * (pending.deadline - pending.admitted)
                self._refuse(
                    number,
                    RefusalError(
                        "late",
                        f"the query could not be answered within {within:g} ms; send it with more time, or "
                        "send fewer",
                        retry_after_s=1.0,
                    ),
                )

    def _refuse(self, number: int, refusal: RefusalError) -> None:
        pending = self._pending.pop(number)
        self._metrics.outcome({"late": "dropped"}.get(refusal.code, "failed"))
        pending.reply(refusal)
        self._after_answers()

    def _overloaded(self, query: Query) -> RefusalError:
        waiting, most = self.waiting_samples, self._settings.limits.max_waiting
        self._metrics.outcome("rejected")
        if self.available_workers == 0:
            return RefusalError("unavailable", "no worker is up; they are being started", retry_after_s=2.0)
        if waiting + query.samples > most:
            why = f"{waiting:,} samples wait already, of {most:,} that may"
        else:
            within = 1e3 * (query.within_s or self._settings.sla_s)
            why = f"{query.samples:,} samples behind {waiting:,} cannot be answered within {within:g} ms"
        return RefusalError("overloaded", f"{why}; send the query again later, or fewer", retry_after_s=1.0)

    def _after_answers(self) -> None:
        if not self._pending:
            self._idle.set()

    # Workers.

    def _spawn(self, worker: Worker) -> None:
        process = WorkerProcess(self.served.task(worker.index), self, self._loop)
        worker.process = process
        worker.since = time.monotonic()
        self._by_process[process] = worker
        process.ready.add_done_callback(lambda _: self._is_ready(worker, process))

    def _is_ready(self, worker: Worker, process: WorkerProcess) -> None:
        if process.ready.cancelled() or process.ready.exception() is not None or self._closing:
            return  # its end is told, too
        if worker.process is process:
            worker.available = True
            self._scheduler.set_worker(worker.index, True)
            self._feed()

    def worker_ended(self, process: WorkerProcess, why: str) -> None:
        """A worker's process is gone: its batch goes back, and another process takes its place."""
        worker = self._by_process.pop(process)
        if self._closing:
            return
        log.error("%s; it is started again", why)
        worker.process = None
        if worker.available:
            self._failed(worker, why)
        worker.restarts += 1
        self._metrics.restarted(worker.device)
        self._loop.call_later(worker.pause_s(), self._respawn, worker)
        self._feed()  # other workers take over what it had

    def _respawn(self, worker: Worker) -> None:
        if self._closing:
            return
        try:
            self._spawn(worker)
        except OSError as error:  # no process, memory or file descriptor to be had: perhaps later
            log.error("worker %s of %s cannot be started: %s", worker.index, worker.device, error)
            self._loop.call_later(worker.pause_s(), self._respawn, worker)

    def _failed(self, worker: Worker, why: str) -> None:
        """The worker's batch will not be: its queries wait again, unless they have failed too often."""
        worker.available = False
        running, worker.running = worker.running, None
        self._scheduler.failed(worker.index)
        for number in {part[0] for part in running.parts} if running is not None else ():
            pending = self._pending.get(number)
            if pending is None:
                continue
            pending.failures += 1
            if pending.failures >= MOST_ATTEMPTS:
                self._scheduler.drop(number)
                self._refuse(
                    number,
                    RefusalError(
                        "failed", f"{pending.failures} batches with this query failed; the last: {why}"
                    ),
                )

    def _tick(self) -> None:
        """Now and then: workers that hang are ended, free ones fed, and no query stays without an answer."""
        now = time.monotonic()
        longest = self._settings.limits.batch_timeout_s
        if now > self._tick_at + _STALL_S:
            self._patient_until = now + longest
        for worker in self._workers:
            running = worker.running
            if running is not None and now > max(running.started + longest, self._patient_until):
                log.error("worker %s computes a batch for too long", worker.index)
                if worker.process is not None:
                    worker.process.kill()
        if self.available_workers == 0:  # the scheduler gives queries up when a worker could have them
            for number in [n for n, p in self._pending.items() if p.deadline < now]:
                self._scheduler.drop(number)
                self._refuse(number, RefusalError("unavailable", "no worker is up", retry_after_s=2.0))
        self._feed()
        # Whatever went wrong, nobody waits for ever.
        overdue = now - longest if now > self._patient_until else -math.inf
        for number in [n for n, p in self._pending.items() if p.deadline < overdue]:
            self._scheduler.drop(number)
            self._refuse(number, RefusalError("failed", "the query was not answered; see the server's log"))
        self._tick_at = now + _TICK_S
        self._timer = self._loop.call_later(_TICK_S, self._tick)
