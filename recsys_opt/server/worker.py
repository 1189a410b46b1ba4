"""A worker process: holds the models of its device's paths and computes batches, one at a time.

    python -m recsys_opt.server.worker SOCKET MEMORY < task.json

SOCKET and MEMORY are file descriptors that the server has handed over. The process ends when the server does,
however that ended: then the socket is closed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from recsys_opt.documents import from_document
from recsys_opt.errors import InputError, RecsysOptError
from recsys_opt.server.messages import LIMIT_BYTES, Order, Report, What
from recsys_opt.server.slots import Shape, Slots
from recsys_opt.serving.profile import ServedModel

if TYPE_CHECKING:
    from recsys_opt.server.runner import Runner


@dataclass(frozen=True)
class ModelTask:
    """A model to load."""

    path: str
    """The profile's name of it."""
    run: str
    """The run folder."""
    fingerprint: str | None
    """Of the weights that were profiled."""
    device: str
    """Torch's name of where it computes: "cpu", "cuda"."""
    options: Mapping[str, Any]
    """Of the profile's path."""


@dataclass(frozen=True)
class Task:
    """What a worker is for."""

    name: str
    """For `ps` and messages."""
    models: tuple[ModelTask, ...]
    """By number of the path among the device's own."""
    model: ServedModel
    """What queries look like."""
    samples: int
    """Of the largest batch, padded."""
    cores: tuple[int, ...]
    """That it keeps to; none: any."""
    threads: int
    spin_s: float
    """For how long it waits for the next batch without sleep."""

    def to_json(self) -> str:
        """A JSON text."""
        return json.dumps(dataclasses.asdict(self), allow_nan=False)

    @property
    def shape(self) -> Shape:
        """Of the shared memory."""
        return Shape(
            self.samples,
            self.model.dense_features,
            len(self.model.features),
            4 if max(self.model.cardinalities) <= 1 << 31 else 8,
        )


def main(arguments: list[str]) -> int:
    """Loads the models, reports, and computes until the server is gone."""
    for told_to_stop in (signal.SIGINT, signal.SIGTERM):  # by the terminal: the server says when to end
        signal.signal(told_to_stop, signal.SIG_IGN)
    channel = socket.socket(fileno=int(arguments[0]))
    task = from_document(Task, json.load(sys.stdin), "the worker's task")
    memory = int(arguments[1])
    slots = Slots(memory, task.shape)
    os.close(memory)
    if task.cores:
        os.sched_setaffinity(0, task.cores)
    try:
        from recsys_opt.server.runner import Runner  # torch comes with it

        runner = Runner(task, slots)
    except (RecsysOptError, OSError, RuntimeError, MemoryError) as error:
        what = What.UNFIT if isinstance(error, InputError) else What.FAILED
        channel.send(Report(what, text=f"{task.name}: {error}").pack())
        return 1
    gc.collect()
    gc.freeze()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the server is gone
        channel.send(Report(What.READY).pack())
        while message := _next(channel, task.spin_s):
            channel.send(_compute(Order.unpack(message), runner).pack())
    return 0


def _next(channel: socket.socket, spin_s: float) -> bytes:
    """The next message; for a while without sleep, from which a core wakes late and slow."""
    end = time.perf_counter() + spin_s
    while time.perf_counter() < end:
        with contextlib.suppress(BlockingIOError):
            return channel.recv(LIMIT_BYTES, socket.MSG_DONTWAIT)
    return channel.recv(LIMIT_BYTES)


def _compute(order: Order, runner: Runner) -> Report:
    try:
        begun = time.perf_counter()
        runner.compute(order.path, order.samples)
        return Report(What.DONE, order.number, time.perf_counter() - begun)
    except Exception as error:  # whatever it is, the server must hear of it
        return Report(What.FAILED, order.number, text=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
