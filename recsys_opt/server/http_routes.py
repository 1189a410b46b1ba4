"""What the server answers over HTTP.

    POST /v1/predict   a query, binary (application/octet-stream) or JSON; answered in the same form
    GET  /v1/models    the model, its features, the paths that serve it
    POST /v1/reload    reads the profile and the models again, without dropping a query; needs a token
    GET  /healthz      200 while the process works
    GET  /readyz       200 while it takes queries, else 503
    GET  /metrics      for Prometheus

Health, readiness and metrics need no token: probes have none.
"""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING

from recsys_opt.server import json_form, metrics, wire
from recsys_opt.server.auth import check_token
from recsys_opt.server.http_request import JSON, Request
from recsys_opt.server.refusal import RefusalError
from recsys_opt.server.wire import Answer

if TYPE_CHECKING:
    from recsys_opt.server.service import Service

_TEXT = "text/plain; charset=utf-8"
ROUTES = {
    "/v1/predict": ("POST", True),
    "/v1/models": ("GET", True),
    "/v1/reload": ("POST", True),
    "/healthz": ("GET", False),
    "/readyz": ("GET", False),
    "/metrics": ("GET", False),
}
"""Path -> its method, and whether it needs the token."""


class Routes:
    """Answers requests."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def begin(self, request: Request) -> None:
        """Refuses what can be refused by the headers."""
        if request.path not in ROUTES:
            raise RefusalError(
                "not_found", f"there is no {request.path[:100]!r}; there are {', '.join(ROUTES)}"
            )
        method, needs_token = ROUTES[request.path]
        if request.method != method and not (method == "GET" and request.method == "HEAD"):
            raise RefusalError("method_not_allowed", f"{request.path} takes {method}, not {request.method}")
        if needs_token:
            check_token(self._service.settings.token, request.headers.get("authorization"))

    def handle(self, request: Request) -> None:
        """Answers."""
        if request.path == "/v1/predict":
            self._predict(request)
        elif request.path == "/v1/reload":
            self._reload(request)
        elif request.path == "/v1/models":
            request.answer(200, json.dumps(self._service.describe()).encode() + b"\n", JSON)
        elif request.path == "/metrics":
            request.answer(200, self._service.metrics.text(), metrics.CONTENT_TYPE)
        elif request.path == "/healthz" or self._service.ready:
            request.answer(200, b"ok\n", _TEXT)
        else:
            request.answer(503, b"not ready\n", _TEXT)

    def _predict(self, request: Request) -> None:
        service = self._service
        form = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        most = service.settings.limits.max_samples
        try:
            engine = service.engine_for_queries()
            if form == wire.CONTENT_TYPE:
                query = wire.decode_query(request.body, max_samples=most)
            elif form == JSON:
                self._check_json_length(len(request.body))
                query = json_form.decode_query(request.body, engine.served.profile.model, max_samples=most)
            else:
                raise RefusalError(
                    "unsupported_media_type",
                    f"a query is {wire.CONTENT_TYPE} (binary) or {JSON}, not {form[:100] or 'untyped'}",
                )
            number = engine.submit(query, functools.partial(self._reply, request, form))
        except RefusalError as refusal:
            service.count_refusal(refusal)
            raise
        if not request.answered:
            request.on_lost = functools.partial(engine.drop, number)

    def _check_json_length(self, length: int) -> None:
        most = self._service.settings.limits.max_json_bytes
        if length > most:
            raise RefusalError(
                "too_large",
                f"the query has {length:,} bytes of JSON; at most {most:,} are taken: send it as "
                f"{wire.CONTENT_TYPE} (binary), or split it",
            )

    def _reply(self, request: Request, form: str, answer: Answer | RefusalError) -> None:
        if isinstance(answer, RefusalError):
            request.refuse(answer)
        elif form == JSON:
            request.answer(200, json_form.encode_answer(answer), JSON)
        else:
            request.answer(200, wire.encode_answer(answer), wire.CONTENT_TYPE)

    def _reload(self, request: Request) -> None:
        if self._service.settings.token is None:
            raise RefusalError(
                "forbidden", "reloading over HTTP needs a server with a token; send it SIGHUP instead"
            )

        def reply(error: RefusalError | None) -> None:
            if request.answered:  # the client has gone
                return
            if error is not None:
                request.refuse(error)
            else:
                request.answer(200, json.dumps(self._service.describe()).encode() + b"\n", JSON)

        self._service.reload(reply)
