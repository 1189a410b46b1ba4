"""What a server is told at its start."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from recsys_opt.errors import InputError


@dataclass(frozen=True)
class Limits:
    """What keeps one client, or many, from taking the server's memory or time."""

    max_samples: int = 16_384
    """Samples of one query."""
    max_waiting: int = 65_536
    """Samples that may wait for a worker; further queries are refused, to be sent again later."""
    max_body_bytes: int = 16 << 20
    """Bytes of one request."""
    max_reading_bytes: int = 256 << 20
    """Bytes of all requests that are being read at a time, of which a client may send slowly."""
    max_json_bytes: int = 2 << 20
    """Bytes of a query in JSON, which takes the server many times as long to read."""
    max_header_bytes: int = 16 << 10
    """Bytes of one request's line and headers."""
    max_connections: int = 1_024
    """HTTP connections at a time, and gRPC calls."""
    max_within_s: float = 60.0
    """The latest that a query may want its answer."""
    header_timeout_s: float = 10.0
    """From a request's first byte to its last header."""
    body_timeout_s: float = 20.0
    """From its last header to its last byte."""
    write_timeout_s: float = 20.0
    """For a client that does not read its answer."""
    idle_timeout_s: float = 120.0
    """Of a connection without a request."""
    start_timeout_s: float = 600.0
    """For a worker to load its models."""
    batch_timeout_s: float = 30.0
    """For a worker to compute a batch; one that takes longer is ended and started again."""
    drain_timeout_s: float = 60.0
    """For queries to be finished when the server is told to stop."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise InputError(f"{name} = {value}; it must be positive")


@dataclass(frozen=True)
class Settings:
    """A server's models, policy, addresses and limits."""

    profile: Path
    """profile.json."""
    runs: Path
    """The folder that has the run folders which the profile's paths name."""
    policy: str = "adaptive"
    """Name of a policy, as `recsys-opt simulate` knows it."""
    sla_s: float = 0.025
    """Seconds in which a query is to be answered, unless it says otherwise."""
    paths: tuple[str, ...] = ()
    """Paths to serve; none: all that are measured, on devices that this machine has."""
    model_name: str = "dlrm"
    """What queries may call the model."""
    spin_s: float = 0.0005
    """For how long a worker that has computed a batch waits for the next one without sleep, from which a core
    wakes late and slow: its core is taken up for that time."""
    token: str | None = field(default=None, repr=False)
    """What clients must present; None: nothing."""
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not 0 < self.sla_s <= self.limits.max_within_s:
            raise InputError(
                f"sla = {self.sla_s} s; it must be positive and at most {self.limits.max_within_s:g} s"
            )
        if self.token is not None and not self.token:
            raise InputError("the API token is empty; give one, or none")
