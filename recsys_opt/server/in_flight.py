"""Queries that are not answered yet, the batches they are in, and the workers that compute these."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from recsys_opt._serving import Batch
from recsys_opt.server.refusal import RefusalError
from recsys_opt.server.slots import Slots
from recsys_opt.server.wire import Answer, Query
from recsys_opt.server.worker_process import WorkerProcess
from recsys_opt.serving.as_served import padded

log = logging.getLogger("recsys_opt.server")

Reply = Callable[[Answer | RefusalError], None]
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 30.0
_STEADY_S = 60.0
"""A worker that has run so long is restarted without a pause that grew before."""


@dataclass(slots=True)
class Pending:
    """A query that is admitted and not yet answered."""

    query: Query
    callback: Reply
    admitted: float
    deadline: float
    out: NDArray[np.float32]
    paths: dict[str, int] = field(default_factory=dict)
    failures: int = 0

    def reply(self, answer: Answer | RefusalError) -> None:
        """Whatever is wrong with one client, the others of the batch are answered."""
        try:
            self.callback(answer)
        except Exception:
            log.exception("an answer could not be given")


@dataclass(slots=True)
class Running:
    """A batch that a worker computes."""

    number: int
    path: int
    size: int
    started: float
    parts: list[tuple[int, int, int]]
    """Query, its first sample in the part, their count."""

    @classmethod
    def of(cls, number: int, batch: Batch, started: float) -> Running:
        """A batch of the scheduler's."""
        parts = list(zip(batch.queries, batch.first, batch.count, strict=True))
        return cls(number, batch.path, batch.size, started, parts)

    def write(self, slots: Slots, pending: Mapping[int, Pending]) -> int:
        """Puts its samples into the worker's memory; returns the size that it is computed with."""
        width = padded(self.size)
        dense, ids = slots.dense(width), slots.ids(width)
        dense[self.size :] = 0
        ids[:, self.size :] = 0
        at = 0
        for number, first, count in self.parts:
            own = pending.get(number)
            if own is not None:
                dense[at : at + count] = own.query.dense[first : first + count]
                ids[:, at : at + count] = own.query.ids[:, first : first + count]
            else:  # given up a moment ago: what is there may be no ids of this model's
                dense[at : at + count] = 0
                ids[:, at : at + count] = 0
            at += count
        return width

    def read(self, slots: Slots, pending: Mapping[int, Pending], path: str) -> None:
        """Gives the queries their outputs."""
        outputs = slots.outputs(self.size)
        at = 0
        for number, first, count in self.parts:
            own = pending.get(number)
            if own is not None:
                own.out[first : first + count] = outputs[at : at + count]
                done = own.paths.pop(path, 0)  # the last part's path is the last
                own.paths[path] = done + count
            at += count


class Worker:
    """A place in the scheduler, and the process that fills it at the moment."""

    def __init__(self, index: int, device: str) -> None:
        self.index = index
        self.device = device
        self.process: WorkerProcess | None = None
        self.running: Running | None = None
        self.available = False
        self.since = 0.0
        self.restarts = 0
        self._pause_s = _FIRST_PAUSE_S

    def pause_s(self) -> float:
        """How long to wait until it is started again: longer each time, unless it had run for a while."""
        now = time.monotonic()
        if now - self.since > _STEADY_S:
            self._pause_s = _FIRST_PAUSE_S
        self.since = now
        pause = self._pause_s
        self._pause_s = min(2 * pause, _LONGEST_PAUSE_S)
        return pause
