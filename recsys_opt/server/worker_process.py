"""The server's side of a worker process: starting it, giving it batches, noticing its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from typing import Protocol

from recsys_opt.errors import InputError, RecsysOptError
from recsys_opt.server.messages import LIMIT_BYTES, Order, Report, What
from recsys_opt.server.slots import Slots, create
from recsys_opt.server.worker import Task


class Owner(Protocol):
    """Who hears of a worker."""

    def worker_reported(self, process: WorkerProcess, report: Report) -> None:
        """A batch is computed, or failed."""

    def worker_ended(self, process: WorkerProcess, why: str) -> None:
        """The process is gone, whatever it was doing; said once."""


class WorkerProcess:
    """A process that computes batches; `ready` is done when its models are loaded.

    Its end is noticed at once: the kernel closes its socket, and the event loop wakes.
    """

    def __init__(self, task: Task, owner: Owner, loop: asyncio.AbstractEventLoop) -> None:
        self.task = task
        self.ready: asyncio.Future[None] = loop.create_future()
        self.ready.add_done_callback(_seen)
        self._owner = owner
        self._loop = loop
        self._ending = False
        self._orders = 0
        memory = create(task.shape)
        self.slots = Slots(memory, task.shape)
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "recsys_opt.server.worker", str(theirs.fileno()), str(memory)],
                stdin=subprocess.PIPE,
                pass_fds=(theirs.fileno(), memory),
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": str(task.threads),
                    # Of matrix products that are kept: several for every padded size of every path.
                    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "65536",
                },
            )
        finally:
            theirs.close()
            os.close(memory)
        assert self._process.stdin is not None
        self._process.stdin.write(task.to_json().encode())
        self._process.stdin.close()
        self._socket.setblocking(False)
        loop.add_reader(self._socket.fileno(), self._read)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def compute(self, path: int, samples: int) -> None:
        """Has the batch in the slots computed."""
        self._orders += 1
        with contextlib.suppress(OSError):  # it has just ended: the reader says so
            self._socket.send(Order(self._orders, path, samples).pack())

    def stop(self) -> None:
        """Has it end when its batch is done; `worker_ended` is not told."""
        if not self._ending:
            self._close()

    def kill(self) -> None:
        """Ends it at once; `worker_ended` is told."""
        self._process.send_signal(signal.SIGKILL)

    async def gone(self) -> None:
        """Waits until the process has ended, and ends it where it does not."""
        for _ in range(200):
            if self._process.poll() is not None:
                return
            await asyncio.sleep(0.01)
        self._process.kill()
        await asyncio.to_thread(self._process.wait)

    def _read(self) -> None:
        try:
            message = self._socket.recv(LIMIT_BYTES)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if not message:
            self._ended()
            return
        report = Report.unpack(message)
        if report.what is What.READY:
            self.ready.set_result(None)
        elif report.number == self._orders and self.ready.done():
            self._owner.worker_reported(self, report)
        elif not self.ready.done():
            kind = InputError if report.what is What.UNFIT else RecsysOptError
            self.ready.set_exception(kind(report.text))

    def _ended(self) -> None:
        self._close()
        code = self._process.poll()
        if code is None:  # the kernel closes the socket before it tells of the end
            try:
                code = self._process.wait(0.5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                code = self._process.wait()
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        why = f"worker {self.task.name} (pid {self.pid}) {how}"
        if not self.ready.done():
            self.ready.set_exception(RecsysOptError(f"{why} before its models were loaded"))
        self._owner.worker_ended(self, why)

    def _close(self) -> None:
        self._ending = True
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        self.slots.close()


def _seen(future: asyncio.Future[None]) -> None:
    """Keeps asyncio from complaining of an exception that nobody waited for."""
    if not future.cancelled():
        future.exception()
