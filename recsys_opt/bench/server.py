"""What a server adds to its models' own time: dispatch, round trips, what it holds when full."""

from __future__ import annotations

import asyncio
import http.client
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_opt import _serving
from recsys_opt.bench.as_served import Serving
from recsys_opt.bench.load import Target, in_loop, samples_for
from recsys_opt.bench.served import cpu_seconds, gauge
from recsys_opt.progress import Progress
from recsys_opt.server import wire
from recsys_opt.server.client import AsyncClient, Client
from recsys_opt.server.wire import Answer
from recsys_opt.serving.profile import Profile, fleet
from recsys_opt.serving.samples import Samples
from recsys_opt.serving.sizes import Sizes

_WARM = 20
_SECONDS_IN_LIMITS = "60s"

Ask = Callable[[bytes], tuple[float, Answer]]
"""Sends an encoded query; its round trip in seconds, and the answer."""


def dispatch_cost(profile: Profile, sla: float, *, batches: int, together: int) -> dict[str, Any]:
    """Time of the scheduler's calls for a query, with so many that arrive at a time.

    Once with calls one after another, and once while the batches take their time, as in a server that has
    nothing else to do: then it sleeps, and its caches are cold when it wakes.
    """
    row: dict[str, Any] = {"what": "dispatch", "arriving": together, "queries": batches * together}
    for name, asleep in (("us_per_query", False), ("us_per_query_from_sleep", True)):
        us = 1e6 * _dispatches(profile, sla, batches, together, asleep)
        row[name] = _summary(us)
    return row


def _dispatches(
    profile: Profile, sla: float, batches: int, together: int, asleep: bool
) -> NDArray[np.float64]:
    """Seconds of a query."""
    devices = fleet(profile)
    scheduler = _serving.Scheduler(devices, _serving.make_policy("adaptive", devices, sla))
    scheduler.set_worker(0, True)
    found = []
    for first in range(0, batches * together, together):
        deadline = time.monotonic() + sla
        spent = -time.perf_counter()
        for number in range(first, first + together):
            scheduler.submit(number, 128, deadline)
        while (batch := scheduler.take(0, 0.0)) is not None:
            _ = batch.queries, batch.first, batch.count
            if asleep:
                spent += time.perf_counter()
                time.sleep(batch.expected)
                spent -= time.perf_counter()
            scheduler.done(0)
            scheduler.dropped(0.0)
        found.append((spent + time.perf_counter()) / together)
    return np.array(found)


def _summary(values: NDArray[np.float64]) -> dict[str, float]:
    percentiles = {f"p{q}": float(np.percentile(values, q)) for q in (50, 95, 99)}
    return {**percentiles, "mean": float(values.mean())}


def measure(
    serving: Serving,
    *,
    path: str,
    sizes: Sequence[int],
    queries: int,
    seconds: float,
    mix: Sizes,
    policy: str,
    sla: float,
    progress: Progress,
) -> list[dict[str, Any]]:
    """All figures; `path` is the one whose round trips are taken, by a client on the server's own cores."""
    loaded = Profile.load(serving.profile)
    measured = loaded.with_paths([p.name for p in loaded.paths if not p.assumed])
    rows = [dispatch_cost(measured, sla, batches=1000, together=n) for n in (1, 4)]
    progress.start("round trips", 3 * len(sizes), "series")
    limits = ["--max-within", _SECONDS_IN_LIMITS, "--sla", "10s"]
    with serving.server("--paths", path, "--policy", f"static:{path}", *limits, grpc=True) as server:
        target = server.target
        samples = samples_for(target, serving.data)
        for size in sizes:
            for protocol, make in _PROTOCOLS.items():
                ask, close = make(target, server.ready)
                count = queries if protocol != "JSON" else max(queries // 20, 20)  # some take seconds
                rows.append(round_trips(protocol, ask, samples, size, count))
                close()
                progress.advance(1)
        server.stop()
    progress.start("saturation", 1, "runs")
    rows.append(saturation(serving, mix, seconds, policy, sla))
    progress.advance(1)
    return rows


def round_trips(protocol: str, ask: Ask, samples: Samples, size: int, count: int) -> dict[str, Any]:
    """One query after another; what each took beside the model's own time."""
    random = np.random.default_rng(size)
    found = []
    for k in range(_WARM + count):
        body = wire.encode_query(*samples.request(size, int(random.integers(samples.rows))))
        seconds, answer = ask(body)
        if k >= _WARM:
            found.append((seconds, answer.model_s, answer.service_s, answer.total_s))
    trip, model, service, total = 1e3 * np.array(found).T
    row: dict[str, Any] = {"what": "round trip", "protocol": protocol, "size": size, "queries": count}
    for name, values in (
        ("round_trip_ms", trip),
        ("model_ms", model),
        ("added_ms", trip - model),
        ("worker_ms", service - model),
        ("server_ms", total - service),
        ("transport_ms", trip - total),
    ):
        row[name] = _summary(values)
    return row


def saturation(serving: Serving, mix: Sizes, seconds: float, policy: str, sla: float) -> dict[str, Any]:
    """Queries and samples a second with more waiting than can be answered, in a closed loop."""
    outstanding = 32
    with serving.server("--policy", policy, "--sla", f"{sla:g}s") as server:
        target = server.target
        samples = samples_for(target, serving.data)
        before = {name: cpu_seconds(pid) for name, pid in server.pids.items()}
        model_before, begun = gauge(target, "recsys_opt_model_seconds_total"), time.monotonic()
        answered = in_loop(_closed_loop(target, samples, mix, outstanding, seconds))
        span = time.monotonic() - begun
        model_s = gauge(target, "recsys_opt_model_seconds_total") - model_before
        used = {name: cpu_seconds(pid) - before[name] for name, pid in server.pids.items()}
        outcomes = server.stop()
    return {
        "what": "saturation",
        "policy": policy,
        "sizes": mix.spec,
        "outstanding": outstanding,
        "seconds": span,
        "queries_per_s": len(answered) / span,
        "samples_per_s": sum(answered) / span,
        "model_share": model_s / span,
        "server_us_per_query": 1e6 * used["server"] / max(1, outcomes["answered"]),
        "cpu_share": {name: value / span for name, value in used.items()},
        "outcomes": outcomes,
    }


async def _closed_loop(
    target: Target, samples: Samples, mix: Sizes, outstanding: int, seconds: float
) -> list[int]:
    """Sizes of the queries answered."""
    random = np.random.default_rng(0)
    end = time.monotonic() + seconds
    answered: list[int] = []

    async def ask(client: AsyncClient) -> None:
        while time.monotonic() < end:
            size = int(mix.draw(1, random)[0])
            query = samples.request(size, int(random.integers(samples.rows)))
            await client.predict(*query, within_s=30.0)
            answered.append(size)

    async with AsyncClient(target.host, target.port, timeout_s=60.0) as client:
        await asyncio.gather(*(ask(client) for _ in range(outstanding)))
    return answered


def _over_http(target: Target, ready: dict[str, Any]) -> tuple[Ask, Callable[[], None]]:
    client = Client(target.host, target.port, timeout_s=60.0)

    def ask(body: bytes) -> tuple[float, Answer]:
        begun = time.perf_counter()
        answer = client.predict_encoded(body)
        return time.perf_counter() - begun, answer

    return ask, client.close


def _over_grpc(target: Target, ready: dict[str, Any]) -> tuple[Ask, Callable[[], None]]:
    import grpc

    from recsys_opt.server.grpc_messages import METHOD, PredictReply, PredictRequest

    channel = grpc.insecure_channel(ready["grpc"])
    call = channel.unary_unary(
        METHOD,
        request_serializer=PredictRequest.SerializeToString,
        response_deserializer=PredictReply.FromString,
    )

    def ask(body: bytes) -> tuple[float, Answer]:
        begun = time.perf_counter()
        reply = call(PredictRequest(query=body), timeout=60)
        return time.perf_counter() - begun, wire.decode_answer(reply.answer)

    return ask, channel.close


def _over_json(target: Target, ready: dict[str, Any]) -> tuple[Ask, Callable[[], None]]:
    connection = http.client.HTTPConnection(target.host, target.port)

    def ask(body: bytes) -> tuple[float, Answer]:
        query = wire.decode_query(body, max_samples=1 << 30)
        begun = time.perf_counter()
        text = json.dumps({"dense": query.dense.tolist(), "ids": query.ids.T.tolist()})
        connection.request("POST", "/v1/predict", text, {"content-type": "application/json"})
        found = json.loads(connection.getresponse().read())
        seconds = time.perf_counter() - begun
        wait, service, model, total = (found[f"{n}_ms"] / 1e3 for n in ("wait", "service", "model", "total"))
        probabilities = np.array(found["probabilities"], np.float32)
        told = (wait, service, model, total, found["batch"], found["batch_size"])
        return seconds, Answer(probabilities, found["paths"], *told)

    return ask, connection.close


_PROTOCOLS = {"HTTP": _over_http, "gRPC": _over_grpc, "JSON": _over_json}
