"""What Prometheus reads: queries by outcome, latencies, batches, devices, the queue."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (
    *(0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.035),
    *(0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
_SAMPLES = tuple(float(1 << k) for k in range(15))


class EngineMetrics:
    """Counts of one server, kept over reloads."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        name = "recsys_opt_"
        queries = Counter(
            f"{name}queries",
            "Queries by what became of them",
            ["outcome"],
            registry=self.registry,
        )
        self._outcomes = {
            outcome: queries.labels(outcome)
            for outcome in ("answered", "late", "rejected", "dropped", "failed", "gone", "invalid")
        }
        self._latency = Histogram(
            f"{name}latency_seconds",
            "From a query's admission to its answer",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._service = Histogram(
            f"{name}service_seconds",
            "That a worker is taken up by a batch",
            ["path"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._model = Counter(
            f"{name}model_seconds", "That models computed", ["path"], registry=self.registry
        )
        self._sizes = Histogram(
            f"{name}batch_samples", "Samples of a batch", ["path"], buckets=_SAMPLES, registry=self.registry
        )
        self._samples = Counter(
            f"{name}samples", "Samples computed, by path", ["path"], registry=self.registry
        )
        self._restarts = Counter(
            f"{name}worker_restarts",
            "Workers that had to be started again",
            ["device"],
            registry=self.registry,
        )
        self._reloads = Counter(
            f"{name}reloads", "Reloads of models, by what became of them", ["outcome"], registry=self.registry
        )
        self._busy: dict[str, float] = {}

    def watch(self, state: Callable[[], State]) -> None:
        """Has gauges read from `state` whenever they are asked for."""
        self.registry.register(_Gauges(state, self._busy))

    def outcome(self, what: str, seconds: float | None = None, *, late: bool = False) -> None:
        """A query is done with: answered (in `seconds`), rejected, dropped, failed, gone or invalid.

        One that is answered behind its deadline counts as "late" beside "answered".
        """
        self._outcomes[what].inc()
        if seconds is not None:
            self._latency.observe(seconds)
        if late:
            self._outcomes["late"].inc()

    def batch(self, path: str, device: str, samples: int, service_s: float, model_s: float) -> None:
        """A batch is computed."""
        self._service.labels(path).observe(service_s)
        self._model.labels(path).inc(model_s)
        self._sizes.labels(path).observe(samples)
        self._samples.labels(path).inc(samples)
        self._busy[device] = self._busy.get(device, 0.0) + service_s

    def restarted(self, device: str) -> None:
        """A worker is started again."""
        self._restarts.labels(device).inc()

    def reloaded(self, outcome: str) -> None:
        """A reload is done with: "done" or "failed"."""
        self._reloads.labels(outcome).inc()

    def outcomes(self) -> dict[str, int]:
        """Queries by what became of them, so far; those answered late are among those answered."""
        return {
            name: int(sample.value)
            for name, counter in self._outcomes.items()
            for metric in counter.collect()
            for sample in metric.samples
            if sample.name.endswith("_total")
        }

    def text(self) -> bytes:
        """What Prometheus reads."""
        return generate_latest(self.registry)


@dataclass(frozen=True)
class State:
    """What gauges show."""

    waiting_samples: int
    unanswered: int
    workers: int
    """That compute."""
    connections: int
    ready: bool
    running_s: Mapping[str, float]
    """By device: how long its running batches have run."""


class _Gauges(Collector):
    """Read when they are asked for: nothing is spent on them between."""

    def __init__(self, state: Callable[[], State], busy: Mapping[str, float]) -> None:
        self._state = state
        self._busy = busy

    def collect(self) -> Iterable[Metric]:
        """The present values."""
        state = self._state()
        for name, text, value in (
            ("waiting_samples", "Samples of queries that no worker computes yet", state.waiting_samples),
            ("unanswered_queries", "Queries admitted and not yet answered", state.unanswered),
            ("workers", "Workers that compute", state.workers),
            ("connections", "Open HTTP connections", state.connections),
            ("ready", "Whether queries are taken", int(state.ready)),
        ):
            yield GaugeMetricFamily(f"recsys_opt_{name}", text, value)
        busy = CounterMetricFamily(
            "recsys_opt_device_busy_seconds", "That a device's workers computed, summed", labels=["device"]
        )
        for device in {**self._busy, **state.running_s}:
            busy.add_metric([device], self._busy.get(device, 0.0) + state.running_s.get(device, 0.0))
        yield busy
