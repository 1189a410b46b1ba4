"""MLPerf's LoadGen as a client; the only place that imports it.

LoadGen decides when each query is sent and times its answer; its own log says whether the run is valid.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from recsys_opt.errors import InputError

try:
    import mlperf_loadgen as lg
except ImportError as error:
    raise InputError(
        "the benchmark needs the package mlcommons-loadgen: pip install mlcommons-loadgen"
    ) from error

SUMMARY = "mlperf_log_summary.txt"
_RESULT = "Result is"


@dataclass(frozen=True)
class ServerScenario:
    """LoadGen's Server scenario: Poisson arrivals, a limit for a percentile of the latencies."""

    qps: float
    """Queries a second."""
    sla_s: float
    """That the share `percentile` of the queries may take."""
    percentile: float = 0.99
    min_seconds: float = 60.0
    min_queries: int = 0
    """LoadGen's early stopping wants some hundreds besides before it calls a percentile met."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("qps", "sla_s", "min_seconds"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} = {value}; it must be positive")
        if not 0 < self.percentile < 1:
            raise InputError(f"percentile = {self.percentile}; it must be between 0 and 1, e.g. 0.99")


@dataclass(frozen=True)
class Summary:
    """What LoadGen wrote about a run."""

    valid: bool
    """Its line "Result is" says VALID."""
    fields: Mapping[str, str]
    """Its lines, as it wrote them."""
    text: str


def run_server(
    scenario: ServerScenario, samples: int, issue: Callable[[int, int], None], logs: Path
) -> Summary:
    """Runs the Server scenario and returns what LoadGen says of it.

    samples  that queries are chosen from
    issue    is called with a query's number and its sample; each query must be completed (`complete`), once,
             or LoadGen waits for ever
    logs     a folder that LoadGen writes its logs to
    """
    failures: list[BaseException] = []

    def issue_all(queries: list[lg.QuerySample]) -> None:
        for query in queries:
            try:
                issue(query.id, query.index)
            except BaseException as error:  # must not go through LoadGen, which would end the process
                failures.append(error)
                complete(query.id)

    with _query_library(samples) as library, _system(issue_all) as system:
        lg.StartTestWithLogSettings(system, library, _settings(scenario), _log_settings(logs))
    if failures:
        raise failures[0]
    return read_summary((logs / SUMMARY).read_text())


def complete(query: int) -> None:
    """Tells LoadGen that a query is answered; from any thread."""
    lg.QuerySamplesComplete([lg.QuerySampleResponse(query, 0, 0)])


def read_summary(text: str) -> Summary:
    """LoadGen's summary."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip(), value.strip())
    if _RESULT not in fields:
        raise InputError(f"LoadGen's summary has no line {_RESULT!r}: {text[:200]!r}")
    return Summary(fields[_RESULT] == "VALID", fields, text)


def _settings(scenario: ServerScenario) -> lg.TestSettings:
    settings = lg.TestSettings()
    settings.scenario = lg.TestScenario.Server
    settings.mode = lg.TestMode.PerformanceOnly
    settings.server_target_qps = scenario.qps
    settings.server_target_latency_ns = int(1e9 * scenario.sla_s)
    settings.server_target_latency_percentile = scenario.percentile
    settings.min_duration_ms = int(1e3 * scenario.min_seconds)
    settings.min_query_count = scenario.min_queries
    settings.qsl_rng_seed = scenario.seed
    settings.sample_index_rng_seed = scenario.seed + 1
    settings.schedule_rng_seed = scenario.seed + 2
    return settings


def _log_settings(logs: Path) -> lg.LogSettings:
    output = lg.LogOutputSettings()
    output.outdir = str(logs)
    output.copy_summary_to_stdout = False
    settings = lg.LogSettings()
    settings.log_output = output
    settings.enable_trace = False
    return settings


@contextlib.contextmanager
def _query_library(samples: int) -> Iterator[int]:
    library = lg.ConstructQSL(samples, samples, lambda _: None, lambda _: None)
    try:
        yield library
    finally:
        lg.DestroyQSL(library)


@contextlib.contextmanager
def _system(issue: Callable[[list[lg.QuerySample]], None]) -> Iterator[int]:
    system = lg.ConstructSUT(issue, lambda: None)
    try:
        yield system
    finally:
        lg.DestroySUT(system)
