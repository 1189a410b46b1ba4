"""What the server and a worker tell each other: small messages over a socket that keeps their bounds.

The batch itself is in the memory they share (`recsys_opt.server.slots`); nothing is pickled.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

_ORDER = struct.Struct("<QII")
_REPORT = struct.Struct("<QId")
LIMIT_BYTES = 4096


@dataclass(frozen=True)
class Order:
    """Compute the batch that is in the slots."""

    number: int
    path: int
    """Number of the path among the worker's own."""
    samples: int

    def pack(self) -> bytes:
        """The message."""
        return _ORDER.pack(self.number, self.path, self.samples)

    @classmethod
    def unpack(cls, message: bytes) -> Order:
        """The inverse."""
        return cls(*_ORDER.unpack(message))


class What(IntEnum):
    """What a worker reports."""

    READY = 0
    """Its models are loaded."""
    DONE = 1
    FAILED = 2
    """The batch, or the loading; the text says why. The worker lives on after a failed batch."""
    UNFIT = 3
    """The models cannot be served as the profile says; the text says why."""


@dataclass(frozen=True)
class Report:
    """A worker's word."""

    what: What
    number: int = 0
    """Of the order; 0: of none."""
    seconds: float = 0.0
    """That the model took."""
    text: str = ""

    def pack(self) -> bytes:
        """The message."""
        head = _REPORT.pack(self.number, self.what, self.seconds)
        return head + self.text.encode()[: LIMIT_BYTES - len(head)]

    @classmethod
    def unpack(cls, message: bytes) -> Report:
        """The inverse."""
        number, what, seconds = _REPORT.unpack_from(message)
        return cls(What(what), number, seconds, message[_REPORT.size :].decode(errors="replace"))
