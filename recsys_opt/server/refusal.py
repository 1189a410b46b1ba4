"""What a client is told when its query is not answered: one table of codes for HTTP and gRPC."""

from __future__ import annotations

from dataclasses import dataclass

from recsys_opt.errors import RecsysOptError


@dataclass(frozen=True)
class Kind:
    """A reason, as the two protocols spell it."""

    http_status: int
    grpc_status: str
    """A name of `grpc.StatusCode`."""


KINDS = {
    "bad_request": Kind(400, "INVALID_ARGUMENT"),
    "unauthenticated": Kind(401, "UNAUTHENTICATED"),
    "forbidden": Kind(403, "PERMISSION_DENIED"),
    "unknown_model": Kind(404, "NOT_FOUND"),
    "not_found": Kind(404, "UNIMPLEMENTED"),
    "method_not_allowed": Kind(405, "UNIMPLEMENTED"),
    "too_slow": Kind(408, "DEADLINE_EXCEEDED"),
    "conflict": Kind(409, "ABORTED"),
    "too_large": Kind(413, "INVALID_ARGUMENT"),
    "unsupported_media_type": Kind(415, "INVALID_ARGUMENT"),
    "overloaded": Kind(429, "RESOURCE_EXHAUSTED"),
    "headers_too_large": Kind(431, "INVALID_ARGUMENT"),
    "failed": Kind(500, "INTERNAL"),
    "unavailable": Kind(503, "UNAVAILABLE"),
    "late": Kind(504, "DEADLINE_EXCEEDED"),
}
"""Code -> how each protocol says it."""


class RefusalError(RecsysOptError):
    """A query that is not answered: a code of `KINDS`, and one sentence with value, limit and remedy."""

    def __init__(self, code: str, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s
        """When to try again; None: not, or not without a change."""

    @property
    def kind(self) -> Kind:
        """How the protocols say it."""
        return KINDS[self.code]
