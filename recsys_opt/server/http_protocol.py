"""HTTP/1.1 for a server that answers small requests quickly and keeps slow or rude clients from harm.

httptools (llhttp) parses; this protocol holds every connection to limits: bytes of headers and body, seconds
for each, seconds to read an answer, connections at a time. A request goes to the handler when it is whole,
which answers whenever it can; answers go out in the order of the requests. An ASGI server between would
cost a task and several awaits a request, and would leave the time for headers without a limit.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from typing import cast

import httptools

from recsys_opt.server.http_request import Handler, Request
from recsys_opt.server.refusal import RefusalError
from recsys_opt.server.settings import Limits

log = logging.getLogger("recsys_opt.server")
_LINGER_S = 2.0
"""For a client that still sends after it was refused: closing at once would take the answer from it."""
_MOST_PIPELINED = 32
"""Requests of one connection that may come, or wait for their answers, together."""
_LOOK_S = 0.25
_STALL_S = 1.0
"""A look at the connections' times that comes so much later: this process did not run, its clients' bytes may
have come long ago."""


class HttpServer:
    """Connections and their limits."""

    def __init__(self, handler: Handler, limits: Limits, loop: asyncio.AbstractEventLoop) -> None:
        self.handler = handler
        self.limits = limits
        self.loop = loop
        self.connections: set[HttpConnection] = set()
        self.closing = False
        self.reading_bytes = 0
        """Of all bodies that are not whole."""
        self._server: asyncio.Server | None = None
        self._look_at = 0.0
        self._sweep: asyncio.TimerHandle | None = None

    async def listen(self, host: str, port: int) -> tuple[str, int]:
        """Takes connections from now on; returns the address, whose port is a free one where 0 was given."""
        self._server = await self.loop.create_server(
            lambda: HttpConnection(self), host, port, backlog=1024, reuse_address=True
        )
        self._look_at = time.monotonic()
        self._look()
        address = self._server.sockets[0].getsockname()
        return address[0], address[1]

    async def close(self, within_s: float) -> None:
        """Takes no more connections; closes those there are when their requests are answered."""
        self.closing = True
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.close_when_answered()
        end = time.monotonic() + within_s
        while self.connections and time.monotonic() < end:
            await asyncio.sleep(0.01)
        for connection in list(self.connections):
            connection.abort()
        if self._sweep is not None:
            self._sweep.cancel()

    def _look(self) -> None:
        """Ends connections whose time is up. One timer for all: none is set and cancelled by each request."""
        now = time.monotonic()
        late = now - self._look_at
        for connection in list(self.connections):
            if late > _STALL_S:
                connection.postpone(late)
            elif connection.expires < now:
                connection.expire()
        self._look_at = now + _LOOK_S
        self._sweep = self.loop.call_later(_LOOK_S, self._look)


class HttpConnection(asyncio.Protocol):
    """One connection."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._limits = server.limits
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport
        self._waiting: deque[Request] = deque()
        """Requests that are whole and not all answered, in their order."""
        self._request: Request | None = None
        """The one that is being read, from its headers on."""
        self._in_headers = False
        self._head_bytes = 0
        self._url = b""
        self._headers: dict[str, str] = {}
        self._refused = False
        """Nothing more is read; what still comes is thrown away."""
        self._reading = True
        self._can_write = True
        self._close_after = False
        self._came_together = 0
        """Requests in the bytes that came last."""
        self._reads_by = 0.0
        self._writes_by = math.inf

    # From the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        self._transport = cast(asyncio.Transport, transport)
        server = self._server
        full = len(server.connections) >= self._limits.max_connections
        server.connections.add(self)
        self._expire_in(self._limits.header_timeout_s)  # the first request has to come, then idling is fine
        if len(server.connections) > 2 * self._limits.max_connections:  # even refusing has its limit
            self.abort()
        elif full:
            self._refuse_connection(
                RefusalError(
                    "unavailable",
                    f"there are {self._limits.max_connections} connections already; try again later",
                    retry_after_s=1.0,
                )
            )

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone, or the connection was closed."""
        self._server.connections.discard(self)
        self._take_request()
        for request in self._waiting:
            if request.on_lost is not None and not request.answered:
                request.answered = True
                lost, request.on_lost = request.on_lost, None
                lost()
        self._waiting.clear()

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        if self._refused:
            return
        if self._in_headers:
            self._head_bytes += len(data)
        self._came_together = 0
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refused = True  # the request was answered as it stands; what follows is no HTTP/1.1
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__ or error.__cause__
            if isinstance(cause, RefusalError):
                self._refuse_connection(cause)
            else:
                log.error("a request could not be handled", exc_info=cause)
                self._refuse_connection(
                    RefusalError("failed", "the server has a fault; it was written to its log")
                )
        except httptools.HttpParserError as error:
            self._refuse_connection(RefusalError("bad_request", f"this is no HTTP/1.1 request: {error}"))
        else:
            if self._in_headers and self._head_bytes > self._limits.max_header_bytes:
                self._refuse_connection(self._headers_too_large())

    def eof_received(self) -> bool:
        """The client sends no more: it has gone, as far as HTTP clients are concerned."""
        return False

    def pause_writing(self) -> None:
        """The client does not read."""
        self._can_write = False
        self._pause_reading()
        self._writes_by = time.monotonic() + self._limits.write_timeout_s

    def resume_writing(self) -> None:
        """It reads again."""
        self._can_write = True
        self._writes_by = math.inf
        self._write()

    # From the parser.

    def on_message_begin(self) -> None:
        """A request's first byte."""
        self._in_headers = True
        self._head_bytes = 0
        self._url = b""
        self._headers = {}
        self._expire_in(self._limits.header_timeout_s)

    def on_url(self, url: bytes) -> None:
        """A part of the path."""
        self._url += url
        if len(self._url) > self._limits.max_header_bytes:
            raise self._headers_too_large()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header."""
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")
        if len(self._headers) > 100:
            raise self._headers_too_large()

    def on_headers_complete(self) -> None:
        """All of them."""
        self._in_headers = False
        parser = self._parser
        keep = parser.should_keep_alive() and not parser.should_upgrade() and not self._server.closing
        method = parser.get_method().decode("latin-1")
        try:
            path = (httptools.parse_url(self._url).path or b"/").decode("ascii")
        except (httptools.HttpParserInvalidURLError, UnicodeDecodeError):
            raise RefusalError("bad_request", "the request's path is not one") from None
        request = Request(method, path, self._headers, self, keep)
        self._expire_in(self._limits.body_timeout_s)
        self._request = request
        declared = self._headers.get("content-length", "0")
        if declared.isdigit() and int(declared) > self._limits.max_body_bytes:
            raise self._body_too_large(int(declared))
        self._server.handler.begin(request)
        if self._headers.get("expect", "").lower() == "100-continue" and not self._waiting:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        assert self._request is not None
        self._request.body += body
        self._server.reading_bytes += len(body)
        if self._server.reading_bytes > self._limits.max_reading_bytes:
            raise RefusalError(
                "unavailable",
                f"requests of {self._limits.max_reading_bytes:,} bytes are being read already; try later",
                retry_after_s=1.0,
            )
        if len(self._request.body) > self._limits.max_body_bytes:
            raise self._body_too_large(None)

    def on_message_complete(self) -> None:
        """The request is whole."""
        request = self._take_request()
        assert request is not None
        self._came_together += 1
        if max(self._came_together, len(self._waiting) + 1) > _MOST_PIPELINED:
            # Nothing more is read: the rest of these bytes alone could take the server's time for seconds.
            raise RefusalError(
                "overloaded",
                f"more than {_MOST_PIPELINED} requests came at once on one connection; send fewer",
                retry_after_s=1,
            )
        self._waiting.append(request)
        self._expire_in(math.inf)  # the answer is the server's business
        try:
            self._server.handler.handle(request)
        except RefusalError as refusal:
            request.refuse(refusal)
        except Exception:
            log.exception("%s %s could not be handled", request.method, request.path)
            if not request.answered:
                request.refuse(RefusalError("failed", "the server has a fault; it was written to its log"))
        if len(self._waiting) > 1:  # the client is ahead of its answers
            self._pause_reading()

    # Its time.

    @property
    def expires(self) -> float:
        """When the connection is ended unless something happens before."""
        return min(self._reads_by, self._writes_by)

    def postpone(self, seconds: float) -> None:
        """Adds to the connection's time: the server did not run for so long."""
        self._reads_by += seconds
        self._writes_by += seconds

    # Answers.

    def answered(self) -> None:
        """One of the requests that wait is answered."""
        self._write()

    def close_when_answered(self) -> None:
        """Closes when no request is under way."""
        if self._waiting or self._request is not None or self._in_headers:
            self._close_after = True
            for request in self._waiting:
                request.keep_alive = False
        else:
            self._transport.close()

    def expire(self) -> None:
        """The connection's time is up."""
        if self._refused or not self._can_write:
            self.abort()
        elif self._in_headers or self._request is not None:
            what = "headers" if self._in_headers else "body"
            self._refuse_connection(RefusalError("too_slow", f"the request's {what} did not come in time"))
        else:
            self._transport.close()

    def abort(self) -> None:
        """Ends the connection, whatever is under way."""
        self._transport.abort()

    def _write(self) -> None:
        """Writes what is answered, in the order of the requests."""
        waiting = self._waiting
        while waiting and waiting[0].answer_bytes is not None and self._can_write:
            if self._transport.is_closing():
                return
            request = waiting.popleft()
            assert request.answer_bytes is not None
            self._transport.write(request.answer_bytes)
            if not request.keep_alive or (self._close_after and not waiting):
                self._end()
                return
        if self._can_write and len(waiting) <= 1:
            if not waiting and self._request is None and not self._in_headers:
                self._expire_in(self._limits.idle_timeout_s)
            if not self._reading:
                self._reading = True
                self._transport.resume_reading()

    def _end(self) -> None:
        """Closes, when the client has had the time to read why."""
        if not self._refused:
            self._transport.close()
            return
        if not self._reading:  # what still comes is read and thrown away
            self._reading = True
            self._transport.resume_reading()
        if self._can_write and self._transport.can_write_eof():
            self._transport.write_eof()
        self._expire_in(_LINGER_S)

    def _pause_reading(self) -> None:
        if self._reading and not self._transport.is_closing():
            self._reading = False
            self._transport.pause_reading()

    def _refuse_connection(self, refusal: RefusalError) -> None:
        """Answers what is being read with an error, and reads no more of this connection."""
        self._refused = True
        self._in_headers = False
        request = self._take_request() or Request("GET", "", {}, self, False)
        self._waiting.append(request)
        self._expire_in(math.inf)
        request.refuse(refusal, close=True)

    def _take_request(self) -> Request | None:
        """What is being read, if anything; it is no more."""
        request, self._request = self._request, None
        if request is not None:
            self._server.reading_bytes -= len(request.body)
        return request

    def _expire_in(self, seconds: float) -> None:
        self._reads_by = time.monotonic() + seconds

    def _headers_too_large(self) -> RefusalError:
        return RefusalError(
            "headers_too_large",
            f"the request's line and headers have more than {self._limits.max_header_bytes:,} bytes",
        )

    def _body_too_large(self, declared: int | None) -> RefusalError:
        has = "more" if declared is None else f"{declared:,} bytes"
        return RefusalError(
            "too_large",
            f"the body has {has}; at most {self._limits.max_body_bytes:,} bytes are taken: split the query",
        )
