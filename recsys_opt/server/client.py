"""A client of the server: binary queries over connections that are kept open.

    with Client("127.0.0.1", 8080) as client:
        answer = client.predict(dense, ids, within_s=0.025)

`AsyncClient` is the same for asyncio. Both need the standard library and numpy alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import cast

from numpy.typing import ArrayLike

from recsys_opt.errors import InputError, RecsysOptError
from recsys_opt.server import wire
from recsys_opt.server.refusal import KINDS, RefusalError
from recsys_opt.server.wire import Answer

_RETRIED = frozenset({"overloaded", "unavailable"})
"""Refusals of queries that were not admitted: sending them again computes nothing twice."""


class ServerGoneError(RecsysOptError):
    """The server cannot be reached, or went away before it answered."""


class Client:
    """One connection, for one thread.

    A query is sent again where that is safe: when a kept connection turns out to have been closed before a
    byte of an answer came, once; and when the server refused to admit it, `retries` times, after as long as
    it asked for, if that leaves time. A query whose answer does not come in time is never sent again: the
    server may be computing it, and twice the load is the last thing it needs.
    """

    def __init__(
        self, host: str, port: int, *, token: str | None = None, timeout_s: float = 10.0, retries: int = 0
    ) -> None:
        self._address = host, port
        self._lines = _header_lines(host, port, token)
        self._timeout_s = timeout_s
        self._retries = retries
        self._socket: socket.socket | None = None

    def predict(
        self, dense: ArrayLike, ids: ArrayLike, *, within_s: float | None = None, model: str = ""
    ) -> Answer:
        """Probabilities for samples; raises RefusalError with the server's reason, or ServerGoneError.

        dense     [B, D]
        ids       [F, B] int32 or int64
        within_s  in which the answer is wanted; None: the server's SLA
        """
        return self.predict_encoded(wire.encode_query(dense, ids, within_s=within_s, model=model))

    def predict_encoded(self, body: bytes) -> Answer:
        """The answer to a query of `wire.encode_query`."""
        end = time.monotonic() + self._timeout_s
        left = self._retries
        while True:
            status, headers, answer = self.request("POST", "/v1/predict", body)
            if status == 200:
                return wire.decode_answer(answer)
            refusal = refusal_of(status, headers, answer)
            pause = refusal.retry_after_s
            if not left or refusal.code not in _RETRIED or pause is None or time.monotonic() + pause > end:
                raise refusal
            left -= 1
            time.sleep(pause)

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of a GET."""
        status, _, body = self.request("GET", path)
        return status, body

    def request(self, method: str, path: str, body: bytes = b"") -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body of the answer to any request."""
        head = f"{method} {path} HTTP/1.1\r\n{self._lines}content-length: {len(body)}\r\n\r\n"
        message = head.encode("latin-1") + body
        if self._socket is not None:
            with contextlib.suppress(_UnansweredError):  # closed while it was idle: another one is tried
                return self._exchange(self._socket, message)
        try:
            self._socket = socket.create_connection(self._address, self._timeout_s)
        except OSError as error:
            raise ServerGoneError(
                f"{':'.join(map(str, self._address))} cannot be reached: {error}"
            ) from error
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._exchange(self._socket, message)

    def close(self) -> None:
        """Closes the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _exchange(self, connection: socket.socket, message: bytes) -> tuple[int, Mapping[str, str], bytes]:
        answer = _AnswerReader()
        end = time.monotonic() + self._timeout_s
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may have said why, first
                connection.sendall(message)
            while not answer.whole:
                if (left := end - time.monotonic()) <= 0:
                    raise TimeoutError
                connection.settimeout(left)
                answer.add(connection.recv(1 << 18))
        except TimeoutError:
            self.close()
            raise ServerGoneError(f"no answer from the server in {self._timeout_s:g} s") from None
        except OSError as error:
            self.close()
            raise answer.cut_off(error) from None
        except ServerGoneError:
            self.close()
            raise
        if answer.closes:
            self.close()
        return answer.status, answer.headers, answer.body


class AsyncClient:
    """Connections for asyncio: as many as there are queries at a time, kept for the next ones."""

    def __init__(self, host: str, port: int, *, token: str | None = None, timeout_s: float = 10.0) -> None:
        self._host, self._port = host, port
        self._timeout_s = timeout_s
        self.unasked = 0
        """Times that the server sent something on a connection on which nothing was asked."""
        self._free: deque[_Connection] = deque()
        self._head = f"POST /v1/predict HTTP/1.1\r\n{_header_lines(host, port, token)}content-length: "

    async def predict(
        self, dense: ArrayLike, ids: ArrayLike, *, within_s: float | None = None, model: str = ""
    ) -> Answer:
        """As `Client.predict`, without retries."""
        return await self.predict_encoded(wire.encode_query(dense, ids, within_s=within_s, model=model))

    async def predict_encoded(self, body: bytes) -> Answer:
        """The answer to a query of `wire.encode_query`."""
        request = f"{self._head}{len(body)}\r\n\r\n".encode("latin-1") + body
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
                lambda: _Connection(self), self._host, self._port
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


class _AnswerReader:
    """One answer, from the pieces in which it comes."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self.whole = False
        self._received = bytearray()
        self._begin = self._end = 0

    def add(self, piece: bytes) -> None:
        """The next piece; an empty one is the connection's end."""
        if not piece:
            raise self.cut_off(None)
        self._received += piece
        if not self._end:
            at = self._received.find(b"\r\n\r\n")
            if at < 0:
                return
            first, *lines = self._received[:at].decode("latin-1").split("\r\n")
            self.headers = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in lines)}
            length = self.headers.get("content-length", "0")
            try:
                self.status = int(first.split(" ")[1])
                self._begin, self._end = at + 4, at + 4 + int(length)
            except (IndexError, ValueError):
                raise ServerGoneError(f"the answer begins with {first[:60]!r}: it is no HTTP") from None
        self.whole = len(self._received) >= self._end

    @property
    def body(self) -> bytes:
        """Of a whole answer."""
        return bytes(self._received[self._begin : self._end])

    @property
    def closes(self) -> bool:
        """Whether the server closes the connection after it."""
        return self.headers.get("connection") == "close"

    def cut_off(self, error: OSError | None) -> ServerGoneError:
        """What to raise where no more comes."""
        kind = ServerGoneError if self._received else _UnansweredError
        return kind(f"the server closed the connection before its answer{f': {error}' if error else ''}")


class _Connection(asyncio.Protocol):
    """A connection with at most one request under way."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._transport: asyncio.Transport | None = None
        self._reader = _AnswerReader()
        self._answer: asyncio.Future[tuple[int, Mapping[str, str], bytes]] | None = None
        self.usable = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    async def exchange(self, request: bytes) -> tuple[int, Mapping[str, str], bytes]:
        assert self._transport is not None
        self._reader = _AnswerReader()
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def data_received(self, data: bytes) -> None:
        answer, reader = self._answer, self._reader
        if answer is None or answer.done():
            if self.usable:  # else who asked has given up
                self._client.unasked += 1
            self.close()
            return
        try:
            reader.add(data)
        except ServerGoneError as error:
            answer.set_exception(error)
            self.close()
            return
        if reader.whole:
            self.usable = not reader.closes
            self._answer = None
            answer.set_result((reader.status, reader.headers, reader.body))

    def connection_lost(self, exc: Exception | None) -> None:
        self.usable = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(self._reader.cut_off(exc if isinstance(exc, OSError) else None))

    def close(self) -> None:
        self.usable = False
        if self._transport is not None:
            self._transport.close()


def _header_lines(host: str, port: int, token: str | None) -> str:
    lines = [f"host: {host}:{port}", f"content-type: {wire.CONTENT_TYPE}"]
    if token is not None:
        if not token.isprintable():
            raise InputError("the token has characters that no HTTP header can hold")
        lines.append(f"authorization: Bearer {token}")
    return "".join(f"{line}\r\n" for line in lines)


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
