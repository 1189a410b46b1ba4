"""The server as its clients see it: over sockets, in a process of its own."""

import asyncio
import http.client
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from recsys_opt.server import wire
from recsys_opt.server.client import AsyncClient, Client, ServerGoneError
from recsys_opt.server.refusal import RefusalError
from tests.server.served import ServerProcess, expected, make_query, serving, wait_until, write_all

pytest.importorskip("httptools")
pytest.importorskip("prometheus_client")
GRPC = pytest.importorskip("grpc")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServerProcess]:
    limits = [
        "--max-samples",
        "2000",
        "--max-body",
        "200kB",
        "--header-timeout",
        "1s",
        "--body-timeout",
        "1s",
    ]
    with serving(folder, "--grpc", "127.0.0.1:0", "--sla", "5s", *limits) as running:
        yield running


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Client]:
    with Client(*server.address) as connected:
        yield connected


def metric(client: Client, name: str) -> float:
    """The sum of a metric's samples."""
    status, body = client.get("/metrics")
    assert status == 200
    found = re.findall(rf"^{re.escape(name)}(?:{{.*}})? ([0-9.e+-]+)$", body.decode(), re.MULTILINE)
    assert found, name
    return sum(map(float, found))


@pytest.mark.parametrize("samples", [1, 128, 1024, 2000])
def test_answers_are_the_models(client: Client, folder: Path, samples: int):
    dense, ids = make_query(samples, seed=samples)
    answer = client.predict(dense, ids.astype(np.int32))
    assert sum(answer.paths.values()) == samples
    models = [expected(folder, run, dense, ids) for run in ("table", "tt")]
    if len(answer.paths) == 1:
        (path,) = answer.paths
        np.testing.assert_allclose(answer.probabilities, models[path == "tt@cpu"], atol=1e-5)
    nearest = np.min([np.abs(answer.probabilities - m) for m in models], axis=0)
    assert nearest.max() < 1e-5
    assert 0 <= answer.wait_s <= answer.total_s
    assert 0 < answer.model_s <= answer.service_s <= answer.total_s
    assert 1 <= answer.batch_size <= 1024


def test_many_clients_get_their_own_answers(server: ServerProcess, folder: Path):
    async def ask() -> None:
        async with AsyncClient(*server.address) as client:
            queries = [make_query(1 + seed % 200, seed) for seed in range(120)]
            answers = await asyncio.gather(*(client.predict(d, i) for d, i in queries))
        for (dense, ids), answer in zip(queries, answers, strict=True):
            found = [expected(folder, run, dense, ids) for run in ("table", "tt")]
            assert np.min([np.abs(answer.probabilities - f) for f in found], axis=0).max() < 1e-5
        assert len({a.batch for a in answers}) < len(answers)  # some were computed together

    asyncio.run(ask())


def test_json_answers_as_the_binary_form_does(server: ServerProcess, client: Client):
    dense, ids = make_query(3)
    connection = http.client.HTTPConnection(*server.address, timeout=10)
    body = json.dumps({"dense": dense.tolist(), "ids": ids.T.tolist()})
    connection.request("POST", "/v1/predict", body, {"content-type": "application/json; charset=utf-8"})
    response = connection.getresponse()
    assert response.status == 200
    document = json.loads(response.read())
    np.testing.assert_allclose(document["probabilities"], client.predict(dense, ids).probabilities, atol=0.1)
    assert sum(document["paths"].values()) == 3
    connection.close()


def grpc_call(server: ServerProcess, message: bytes, **call: object) -> bytes:
    with GRPC.insecure_channel(server.ready["grpc"]) as channel:
        return bytes(channel.unary_unary("/recsys_opt.v1.Predictor/Predict")(message, timeout=10, **call))


def test_grpc_answers_as_http_does(server: ServerProcess, folder: Path):
    from recsys_opt.server.grpc_messages import PredictReply, PredictRequest

    dense, ids = make_query(128)
    message = PredictRequest(query=wire.encode_query(dense, ids)).SerializeToString()
    answer = wire.decode_answer(PredictReply.FromString(grpc_call(server, message)).answer)
    (path,) = answer.paths
    np.testing.assert_allclose(
        answer.probabilities, expected(folder, path.partition("@")[0], dense, ids), atol=1e-5
    )
    for bad, code in (
        (b"\xff" * 20, GRPC.StatusCode.INVALID_ARGUMENT),
        (b"", GRPC.StatusCode.INVALID_ARGUMENT),
        (PredictRequest(query=b"RSOQ" + b"\1" * 40).SerializeToString(), GRPC.StatusCode.INVALID_ARGUMENT),
        (
            PredictRequest(query=wire.encode_query(dense, ids, model="x")).SerializeToString(),
            GRPC.StatusCode.NOT_FOUND,
        ),
    ):
        with pytest.raises(GRPC.RpcError) as failed:
            grpc_call(server, bad)
        assert failed.value.code() == code
        assert failed.value.details()


def test_our_messages_are_those_of_the_proto_file(tmp_path: Path):
    protoc = pytest.importorskip("grpc_tools.protoc")
    from google.protobuf import descriptor_pb2

    from recsys_opt.server import grpc_messages

    source = Path(grpc_messages.__file__).parent
    out = tmp_path / "predict.bin"
    command = ["protoc", f"-I{source}", f"--descriptor_set_out={out}", str(source / "predict.proto")]
    assert protoc.main(command) == 0
    (file,) = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file
    assert file == grpc_messages.describe()


def test_what_is_wrong_is_said_and_the_connection_goes_on(client: Client):
    dense, ids = make_query(4)
    far = ids.copy()
    far[3, 2] = 5000
    nan = dense.copy()
    nan[0, 0] = np.nan
    for bad, code, said in (
        ((dense, far), "bad_request", "5000 is outside the 5,000 rows of feature C4"),
        ((nan, ids), "bad_request", r"dense\[0, 0\] = nan"),
        ((dense[:0], ids[:, :0]), "bad_request", "no samples"),
        (make_query(2001), "too_large", "2,001 samples; at most 2,000"),
    ):
        with pytest.raises(RefusalError, match=said) as refused:
            client.predict(*bad)
        assert refused.value.code == code
    with pytest.raises(RefusalError, match="no model 'x'") as refused:
        client.predict(dense, ids, model="x")
    assert refused.value.code == "unknown_model"
    assert len(client.predict(dense, ids).probabilities) == 4


def talk(server: ServerProcess, *parts: bytes, pause: float = 0.0) -> bytes:
    """What the server says to raw bytes, until it closes the connection or is silent."""
    with socket.create_connection(server.address, timeout=5) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(pause)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return answer


def post(body: bytes, *headers: str, length: int | None = None) -> bytes:
    head = [f"content-length: {len(body) if length is None else length}", *headers]
    return "\r\n".join(["POST /v1/predict HTTP/1.1", *head, "", ""]).encode() + body


@pytest.mark.parametrize(
    ("request_bytes", "status", "said"),
    [
        (b"\x16\x03\x01 hello TLS\r\n\r\n", 400, "no HTTP/1.1 request"),
        (b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\n\r\n", 431, "more than 16,384 bytes"),
        (b"GET /healthz HTTP/1.1\r\n" + b"".join(b"a%d: b\r\n" % k for k in range(200)), 431, "headers"),
        (b"GET /secret HTTP/1.1\r\n\r\n", 404, "/v1/predict"),
        (b"DELETE /v1/predict HTTP/1.1\r\n\r\n", 405, "takes POST, not DELETE"),
        (post(b"", length=200_001), 413, "200,001 bytes; at most 200,000"),
        (
            b"POST /v1/predict HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"
            + b"8000\r\n"
            + b"x" * 0x8000
            + b"\r\n30000\r\n"
            + b"x" * 0x30000
            + b"\r\n",
            413,
            "at most 200,000",
        ),
        (
            b"POST /v1/predict HTTP/1.1\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            "no HTTP/1.1 request",
        ),
        (post(b"x", "content-type: text/plain", "connection: close"), 415, "text/plain"),
        (post(b"x", "content-type: application/octet-stream", "connection: close"), 400, "1 bytes"),
        (post(b"half", length=100), 408, "body did not come in time"),
        (b"GET /healthz HTT", 408, "headers did not come in time"),
    ],
)
def test_rude_requests_are_refused(
    server: ServerProcess, client: Client, request_bytes: bytes, status: int, said: str
):
    answer = talk(server, request_bytes)
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:200]
    document = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert said in document["error"]["message"]
    assert client.get("/healthz") == (200, b"ok\n")


def test_headers_that_never_end_are_refused_before_their_time_is_up(server: ServerProcess):
    answer = talk(server, b"GET /healthz HTTP/1.1\r\na: ", *[b"x" * 3000] * 8, pause=0.01)
    assert answer.startswith(b"HTTP/1.1 431 ")


def test_an_upgrade_is_not_made(server: ServerProcess):
    answer = talk(
        server, b"GET /healthz HTTP/1.1\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n\x81\x05"
    )
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert b"connection: close" in answer
    assert answer.endswith(b"\r\n\r\nok\n")


def test_pipelined_requests_are_answered_in_their_order(server: ServerProcess):
    queries = [wire.encode_query(*make_query(n)) for n in (500, 1, 300)]
    requests = [post(q, "content-type: application/octet-stream") for q in queries]
    probe = b"GET /healthz HTTP/1.1\r\n\r\n"
    last = b"GET /readyz HTTP/1.1\r\nconnection: close\r\n\r\n"
    answer = talk(server, requests[0] + requests[1] + probe + requests[2] + last)
    lengths = [int(n) for n in re.findall(rb"content-length: (\d+)", answer)]
    assert len(lengths) == 5
    assert lengths[0] > lengths[3] > lengths[1] > lengths[2] == lengths[4] == 3
    assert answer.endswith(b"ok\n")


def test_a_query_in_many_pieces_is_one(server: ServerProcess):
    request = post(
        wire.encode_query(*make_query(2)), "content-type: application/octet-stream", "connection: close"
    )
    answer = talk(server, *[request[k : k + 17] for k in range(0, len(request), 17)], pause=0.001)
    assert answer.startswith(b"HTTP/1.1 200 ")
    expecting = post(
        b"", "content-type: application/octet-stream", "expect: 100-continue", "connection: close", length=10
    )
    assert talk(server, expecting, b"0123456789").startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 400 ")


def test_clients_that_go_away_leave_nothing_behind(server: ServerProcess, client: Client):
    request = post(wire.encode_query(*make_query(2000)), "content-type: application/octet-stream")
    before = metric(client, "recsys_opt_queries_total")
    for _ in range(30):
        connection = socket.create_connection(server.address)
        connection.sendall(request)
        connection.close()
    wait_until(lambda: metric(client, "recsys_opt_queries_total") >= before + 30)
    wait_until(lambda: metric(client, "recsys_opt_unanswered_queries") == 0)
    wait_until(lambda: metric(client, "recsys_opt_connections") <= 2)
    assert metric(client, "recsys_opt_waiting_samples") == 0


def test_metrics_and_models_say_what_was_done(client: Client):
    client.predict(*make_query(100))
    for name in (
        "recsys_opt_latency_seconds_count",
        "recsys_opt_service_seconds_sum",
        "recsys_opt_model_seconds_total",
        "recsys_opt_batch_samples_count",
        "recsys_opt_samples_total",
        "recsys_opt_device_busy_seconds_total",
        "recsys_opt_workers",
        "recsys_opt_ready",
    ):
        assert metric(client, name) > 0
    status, body = client.get("/v1/models")
    (model,) = json.loads(body)["models"]
    assert status == 200
    assert [f["name"] for f in model["features"]] == ["C1", "C2", "C3", "C4"]
    assert [p["name"] for p in model["paths"]] == ["table@cpu", "tt@cpu"]


def test_a_worker_that_is_killed_loses_nothing(folder: Path):
    with serving(folder, "--sla", "30s") as server:
        pid = server.ready["workers"]["cpu:0"]
        os.kill(pid, signal.SIGSTOP)  # so that no machine is fast enough to answer all before the kill
        done = []

        async def ask() -> None:
            async with AsyncClient(*server.address, timeout_s=30) as client:
                queries = [make_query(1000, seed) for seed in range(60)]
                tasks = [asyncio.create_task(client.predict(d, i)) for d, i in queries]
                with Client(*server.address) as other:
                    unanswered = 0
                    while unanswered < 60:  # one that comes while no worker is up is refused
                        await asyncio.sleep(0.001)
                        unanswered = await asyncio.to_thread(metric, other, "recsys_opt_unanswered_queries")
                os.kill(pid, signal.SIGKILL)  # one batch runs, others wait
                answers = await asyncio.gather(*tasks)
            for (dense, ids), answer in zip(queries, answers, strict=True):
                found = [expected(folder, run, dense, ids) for run in ("table", "tt")]
                assert np.min([np.abs(answer.probabilities - f) for f in found], axis=0).max() < 1e-5
                done.append(answer)

        asyncio.run(ask())
        with Client(*server.address) as client:
            assert metric(client, "recsys_opt_worker_restarts_total") == 1
            assert json.loads(client.get("/v1/models")[1])["workers"]["cpu:0"] != pid
        assert server.stop()["queries"]["answered"] == len(done) == 60


def test_draining_answers_what_was_admitted(folder: Path):
    with serving(folder, "--sla", "30s") as server:
        outcomes: list[str] = []

        def ask(seed: int) -> None:
            with Client(*server.address) as client:
                try:
                    client.predict(*make_query(2000, seed))
                    outcomes.append("answered")
                except RefusalError as refusal:
                    outcomes.append(refusal.code)
                except ServerGoneError:
                    outcomes.append("gone")

        worker = server.ready["workers"]["cpu:0"]
        os.kill(worker, signal.SIGSTOP)  # nothing is answered before the server is told to stop
        threads = [threading.Thread(target=ask, args=(k,)) for k in range(30)]
        for thread in threads:
            thread.start()
        with Client(*server.address) as client:
            wait_until(lambda: metric(client, "recsys_opt_unanswered_queries") > 3)
        server.process.send_signal(signal.SIGTERM)
        os.kill(worker, signal.SIGCONT)
        summary = server.ended()
        for thread in threads:
            thread.join()
        assert set(outcomes) <= {"answered", "unavailable", "gone"}
        assert summary["queries"]["answered"] == outcomes.count("answered") > 3
        assert summary["queries"]["failed"] == 0
