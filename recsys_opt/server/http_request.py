"""An HTTP request, from its headers to its answer, and what answers it."""

from __future__ import annotations

import http
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from recsys_opt.server.refusal import KINDS, RefusalError

JSON = "application/json"
_STATUS_LINES = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n" for s in http.HTTPStatus}


class Connection(Protocol):
    """What a request came by."""

    def answered(self) -> None:
        """One of its requests is answered."""


@dataclass(slots=True)
class Request:
    """A request; `body` is whole when the handler gets it."""

    method: str
    path: str
    headers: Mapping[str, str]
    """Names in lower case; of a name that comes twice, the last."""
    connection: Connection
    keep_alive: bool
    body: bytearray = field(default_factory=bytearray)
    answered: bool = False
    on_lost: Callable[[], None] | None = None
    """Called when the client goes away before the answer."""
    answer_bytes: bytes | None = None

    def answer(
        self,
        status: int,
        body: bytes,
        content_type: str,
        headers: Mapping[str, str] | None = None,
        *,
        close: bool = False,
    ) -> None:
        """Answers; once."""
        if self.answered:
            raise RuntimeError(f"{self.method} {self.path} is answered twice")
        self.answered = True
        self.on_lost = None
        self.keep_alive = self.keep_alive and not close
        lines = [_STATUS_LINES[status], f"content-type: {content_type}\r\ncontent-length: {len(body)}\r\n"]
        lines += [f"{name}: {value}\r\n" for name, value in (headers or {}).items()]
        lines.append("\r\n" if self.keep_alive else "connection: close\r\n\r\n")
        head = "".join(lines).encode("latin-1")
        self.answer_bytes = head if self.method == "HEAD" else head + body
        self.connection.answered()

    def refuse(self, refusal: RefusalError, *, close: bool = False) -> None:
        """Answers with an error."""
        headers = {}
        if refusal.retry_after_s is not None:
            headers["retry-after"] = str(max(1, round(refusal.retry_after_s)))
        if refusal.code == "unauthenticated":
            headers["www-authenticate"] = "Bearer"
        if refusal.code == "method_not_allowed":
            headers["allow"] = "GET, POST"
        document = {"error": {"code": refusal.code, "message": refusal.message}}
        body = json.dumps(document).encode() + b"\n"
        self.answer(KINDS[refusal.code].http_status, body, JSON, headers, close=close)


class Handler(Protocol):
    """What answers requests."""

    def begin(self, request: Request) -> None:
        """The headers are there; raises RefusalError where the body need not be read."""

    def handle(self, request: Request) -> None:
        """The request is whole; answers it now or later, or raises RefusalError."""
