"""A client of the server: binary queries over connections that are kept open.

    with Client("127.0.0.1", 8080) as client:
        answer = client.predict(dense, ids, within_s=0.025)

`AsyncClient` is the same for asyncio. Both need the standard library and numpy alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import time
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import cast

from numpy.typing import ArrayLike

from recsys_opt.errors import RecsysOptError
from recsys_opt.server import wire
from recsys_opt.server.refusal import KINDS, RefusalError
from recsys_opt.server.wire import Answer

_RETRIED = frozenset({"overloaded", "unavailable"})
"""Refusals of queries that were not admitted: sending them again computes nothing twice."""


class ServerGoneError(RecsysOptError):
    """The server cannot be reached, or went away before it answered."""


class Client:
    """One connection, for one thread.

    A query is sent again where that is safe: when a kept connection turns out to have been closed before the
    query was sent whole or a byte of an answer came, once; and when the server refused to admit it, `retries`
    times, after as long as it asked for, if that leaves time. A query that the server may be computing is
    never sent again: that would double the load just when it is too high.
    """

    def __init__(
        self, host: str, port: int, *, token: str | None = None, timeout_s: float = 10.0, retries: int = 0
    ) -> None:
        self._connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
        self._headers = request_headers(token)
        self._timeout_s = timeout_s
        self._retries = retries

    def predict(
        self, dense: ArrayLike, ids: ArrayLike, *, within_s: float | None = None, model: str = ""
    ) -> Answer:
        """Probabilities for samples; raises RefusalError with the server's reason, or ServerGoneError.

        dense     [B, D]
        ids       [F, B] int32 or int64
        within_s  in which the answer is wanted; None: the server's SLA
        """
        body = wire.encode_query(dense, ids, within_s=within_s, model=model)
        end = time.monotonic() + self._timeout_s
        for left in reversed(range(self._retries + 1)):
            try:
                status, headers, answer = self._send("POST", "/v1/predict", body)
                if status == 200:
                    return wire.decode_answer(answer)
                raise refusal_of(status, headers, answer)
            except RefusalError as refusal:
                pause = refusal.retry_after_s
                if (
                    not left
                    or refusal.code not in _RETRIED
                    or pause is None
                    or time.monotonic() + pause > end
                ):
                    raise
                time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of a GET."""
        status, _, body = self._send("GET", path, None)
        return status, body

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _send(self, method: str, path: str, body: bytes | None) -> tuple[int, Mapping[str, str], bytes]:
        kept = self._connection.sock is not None
        try:
            return self._send_once(method, path, body)
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError) as error:
            self._connection.close()
            if not kept:
                raise ServerGoneError(f"the server closed the connection: {error}") from error
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise ServerGoneError(f"no answer from the server: {error or type(error).__name__}") from error
        try:  # the server had closed the connection while it was idle
            return self._send_once(method, path, body)
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise ServerGoneError(f"no answer from the server: {error or type(error).__name__}") from error

    def _send_once(self, method: str, path: str, body: bytes | None) -> tuple[int, Mapping[str, str], bytes]:
        self._connection.request(method, path, body, self._headers)
        if self._connection.sock is not None:
            self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        response = self._connection.getresponse()
        answer = response.read()
        return response.status, {k.lower(): v for k, v in response.headers.items()}, answer


class AsyncClient:
    """Connections for asyncio: as many as there are queries at a time, kept for the next ones."""

    def __init__(self, host: str, port: int, *, token: str | None = None, timeout_s: float = 10.0) -> None:
        self._host, self._port = host, port
        self._timeout_s = timeout_s
        self._free: deque[_Connection] = deque()
        lines = "".join(f"{name}: {value}\r\n" for name, value in request_headers(token).items())
        self._head = f"POST /v1/predict HTTP/1.1\r\nhost: {host}:{port}\r\n{lines}content-length: "

    async def predict(
        self, dense: ArrayLike, ids: ArrayLike, *, within_s: float | None = None, model: str = ""
    ) -> Answer:
        """As `Client.predict`, without retries."""
        return await self.predict_encoded(wire.encode_query(dense, ids, within_s=within_s, model=model))

    async def predict_encoded(self, body: bytes) -> Answer:
        """The answer to a query of `wire.encode_query`."""
        request = f"{self._head}{len(body)}\r\n\r\n".encode() + body
        try:
            async with asyncio.timeout(self._timeout_s):
                status, headers, answer = await self._exchange(request)
        except TimeoutError:
            raise ServerGoneError(f"no answer from the server in {self._timeout_s:g} s") from None
        if status != 200:
            raise refusal_of(status, headers, answer)
        return wire.decode_answer(answer)

    async def close(self) -> None:
        """Closes the free connections."""
        while self._free:
            self._free.pop().close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _exchange(self, request: bytes) -> tuple[int, Mapping[str, str], bytes]:
        while self._free:
            connection = self._free.pop()
            if connection.usable:
                with contextlib.suppress(_UnansweredError):  # while it was idle: another one is tried
                    return await self._exchange_on(connection, request)
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                _Connection, self._host, self._port
            )
        except OSError as error:
            raise ServerGoneError(f"{self._host}:{self._port} cannot be reached: {error}") from error
        try:
            return await self._exchange_on(connection, request)
        except _UnansweredError as error:
            raise ServerGoneError(str(error)) from None

    async def _exchange_on(
        self, connection: _Connection, request: bytes
    ) -> tuple[int, Mapping[str, str], bytes]:
        try:
            answer = await connection.exchange(request)
        except BaseException:
            connection.close()
            raise
        self._free.append(connection)
        return answer


class _UnansweredError(ServerGoneError):
    """Not a byte of an answer came."""


class _Connection(asyncio.Protocol):
    """A connection with at most one request under way."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._answer: asyncio.Future[tuple[int, Mapping[str, str], bytes]] | None = None
        self._head: tuple[int, Mapping[str, str], int, int] | None = None
        self.usable = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    async def exchange(self, request: bytes) -> tuple[int, Mapping[str, str], bytes]:
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._head is None:
            end = self._received.find(b"\r\n\r\n")
            if end < 0:
                return
            lines = self._received[:end].decode("latin-1").split("\r\n")
            headers = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in lines[1:])}
            length = int(headers.get("content-length", "0"))
            self._head = int(lines[0].split(" ")[1]), headers, end + 4, end + 4 + length
        status, told, begin, end = self._head
        if len(self._received) < end:
            return
        body = bytes(self._received[begin:end])
        del self._received[:end]
        self._head = None
        if told.get("connection") == "close":
            self.usable = False
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            answer.set_result((status, told, body))

    def connection_lost(self, exc: Exception | None) -> None:
        self.usable = False
        if self._answer is not None and not self._answer.done():
            kind = ServerGoneError if self._received else _UnansweredError
            self._answer.set_exception(kind(f"the server closed the connection: {exc or 'no answer'}"))

    def close(self) -> None:
        self.usable = False
        if self._transport is not None:
            self._transport.close()


def request_headers(token: str | None) -> dict[str, str]:
    """Of a binary query."""
    headers = {"content-type": wire.CONTENT_TYPE}
    if token is not None:
        headers["authorization"] = f"Bearer {token}"
    return headers


def refusal_of(status: int, headers: Mapping[str, str], body: bytes) -> RefusalError:
    """The server's error, as it raised it."""
    try:
        error = json.loads(body)["error"]
        code, message = str(error["code"]), str(error["message"])
    except (ValueError, KeyError, TypeError):
        code, message = "", body[:200].decode(errors="replace")
    if code not in KINDS:
        code, message = "failed", f"HTTP {status}: {message}"
    pause = headers.get("retry-after", "")
    return RefusalError(code, message, retry_after_s=float(pause) if pause.isdecimal() else None)
