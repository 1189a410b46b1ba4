"""The same bad queries over HTTP in both forms and over gRPC: each is told what is wrong, none does harm."""

import asyncio
import http.client
import json
import os
import resource
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys_opt.server import wire
from recsys_opt.server.client import Client
from recsys_opt.server.refusal import KINDS, RefusalError
from recsys_opt.serving.profile import Profile
from tests.server.served import ServerProcess, make_query, serving, wait_until, write_all
from tests.server.test_serve import metric
from tests.server.test_service import HTTP, start_fails

pytest.importorskip("httptools")
pytest.importorskip("prometheus_client")
GRPC = pytest.importorskip("grpc")
TOKEN = "0123456789abcdef-a-token"


@dataclass
class Bad:
    """A query that is none."""

    dense: np.ndarray
    ids: np.ndarray
    code: str
    said: str
    model: str = ""
    within_s: float | None = None
    json_said: str | None = None
    """Where JSON is told otherwise: its numbers have other places."""


def changed(what: str, at: tuple[int, int], value: float) -> tuple[np.ndarray, np.ndarray]:
    dense, ids = make_query(4)
    (dense if what == "dense" else ids)[at] = value
    return dense, ids


BAD = {
    "an id too large": Bad(
        *changed("ids", (3, 2), 5000),
        "bad_request",
        r"ids\[3, 2\] = 5000 is outside the 5,000 rows of feature C4; ids must be 0 .. 4999",
    ),
    "a negative id": Bad(
        *changed("ids", (0, 1), -1), "bad_request", r"ids\[0, 1\] = -1 is outside the 4 rows of feature C1"
    ),
    "the largest id": Bad(
        *changed("ids", (1, 0), 2**63 - 1), "bad_request", r"ids\[1, 0\] = 9223372036854775807 is outside"
    ),
    "NaN": Bad(
        *changed("dense", (1, 2), np.nan),
        "bad_request",
        r"dense\[1, 2\] = nan; it must be a number of at most 1e\+18",
        json_said="it holds NaN, which is no number",
    ),
    "infinity": Bad(
        *changed("dense", (3, 0), -np.inf),
        "bad_request",
        r"dense\[3, 0\] = -inf",
        json_said="it holds -Infinity, which is no number",
    ),
    "a number too large": Bad(
        *changed("dense", (0, 0), 1e30), "bad_request", r"dense\[0, 0\] = .*e\+30; it must be a number of at"
    ),
    "columns missing": Bad(
        make_query(4)[0][:, :2],
        make_query(4)[1],
        "bad_request",
        r"dense is float32 \[4, 2\]; it must be float32 \[batch, 3\]",
        json_said=r"dense\[0\] has 2 numbers; it must have 3",
    ),
    "a feature missing": Bad(
        make_query(4)[0],
        make_query(4)[1][:3],
        "bad_request",
        r"ids is int64 \[3, 4\]; it must be int32 or int64 \[4, batch\]",
        json_said=r"ids\[0\] has 3 numbers; it must have 4",
    ),
    "no samples": Bad(
        make_query(4)[0][:0], make_query(4)[1][:, :0], "bad_request", "no samples; it must have at least one"
    ),
    "too many samples": Bad(
        *make_query(2001), "too_large", "2,001 samples; at most 2,000 are taken: split it"
    ),
    "another model": Bad(
        *make_query(4), "unknown_model", "no model 'other'; this server has 'dlrm'", "other"
    ),
    "an answer too late": Bad(
        *make_query(4), "bad_request", "within 61 s; the server keeps a query for at most 60 s", "", 61.0
    ),
}

Ask = Callable[[ServerProcess, Bad, str], None]
"""Sends a query with a token; raises RefusalError as the server refuses it."""


def over_http(server: ServerProcess, bad: Bad, token: str, *, cut: int | None = None) -> None:
    with Client(*server.address, token=token) as client:
        body = wire.encode_query(bad.dense, bad.ids, within_s=bad.within_s, model=bad.model)
        client.predict_encoded(body[:cut])


def over_json(server: ServerProcess, bad: Bad, token: str, *, cut: int | None = None) -> None:
    document: dict[str, Any] = {"dense": bad.dense.tolist(), "ids": bad.ids.T.tolist(), "model": bad.model}
    if bad.within_s is not None:
        document["within_ms"] = 1e3 * bad.within_s
    post_json(server, json.dumps(document).encode()[:cut], token)


def post_json(server: ServerProcess, body: bytes, token: str) -> None:
    connection = http.client.HTTPConnection(*server.address, timeout=20)
    headers = {"content-type": "application/json", "authorization": f"Bearer {token}"}
    connection.request("POST", "/v1/predict", body, headers)
    response = connection.getresponse()
    said = json.loads(response.read())
    connection.close()
    if response.status != 200:
        error = said["error"]
        assert KINDS[error["code"]].http_status == response.status
        raise RefusalError(error["code"], error["message"])


def over_grpc(server: ServerProcess, bad: Bad, token: str, *, cut: int | None = None) -> None:
    from recsys_opt.server.grpc_messages import PredictRequest

    body = wire.encode_query(bad.dense, bad.ids, within_s=bad.within_s, model=bad.model)
    message = PredictRequest(query=body[:cut]).SerializeToString()
    metadata = (("authorization", f"Bearer {token}"),)
    with GRPC.insecure_channel(server.ready["grpc"]) as channel:
        call = channel.unary_unary("/recsys_opt.v1.Predictor/Predict")
        try:
            call(message, timeout=20, metadata=metadata)
            return
        except GRPC.RpcError as error:
            failure = error
    code, _, text = failure.details().partition(": ")
    assert KINDS[code].grpc_status == failure.code().name
    raise RefusalError(code, text)


PROTOCOLS = {"HTTP": over_http, "JSON": over_json, "gRPC": over_grpc}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = write_all(tmp_path_factory.mktemp("served"))
    (folder / "token").write_text(TOKEN)
    limits = ["--max-samples", "2000", "--max-json", "200kB", "--token-file", str(folder / "token")]
    with serving(folder, "--grpc", "127.0.0.1:0", "--sla", "10s", *limits) as running:
        yield running


@pytest.fixture
def unharmed(server: ServerProcess) -> Iterator[Client]:
    """Afterwards the server answers, has the workers it had, and waits for nothing."""
    with Client(*server.address, token=TOKEN) as client:
        before = json.loads(client.get("/v1/models")[1])["workers"]
        yield client
        assert len(client.predict(*make_query(4)).probabilities) == 4
        assert json.loads(client.get("/v1/models")[1])["workers"] == before
        assert metric(client, "recsys_opt_unanswered_queries") == 0


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("what", BAD)
def test_a_bad_query_is_told_what_is_wrong(server: ServerProcess, unharmed: Client, what: str, protocol: str):
    bad = BAD[what]
    before = metric(unharmed, "recsys_opt_queries_total")
    said = bad.json_said if protocol == "JSON" and bad.json_said is not None else bad.said
    with pytest.raises(RefusalError, match=said) as refused:
        PROTOCOLS[protocol](server, bad, TOKEN)
    assert refused.value.code == bad.code
    assert metric(unharmed, "recsys_opt_queries_total") == before + 1  # as invalid


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_query_cut_short_anywhere_is_refused(server: ServerProcess, unharmed: Client, protocol: str):
    good = Bad(*make_query(2), "", "")
    PROTOCOLS[protocol](server, good, TOKEN)
    for cut in (0, 1, 31, 33, 50, -1):
        with pytest.raises(RefusalError, match=r"cut short|begins with|0 bytes|no JSON") as refused:
            PROTOCOLS[protocol](server, good, TOKEN, cut=cut)
        assert refused.value.code == "bad_request"


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("token", ["", "x", TOKEN[:-1], TOKEN + "x", "x" * 3000])
def test_a_bad_token_is_refused(server: ServerProcess, unharmed: Client, protocol: str, token: str):
    with pytest.raises(RefusalError, match="token") as refused:
        PROTOCOLS[protocol](server, Bad(*make_query(2), "", ""), token)
    assert refused.value.code == "unauthenticated"
    assert TOKEN not in refused.value.message


def test_much_json_is_refused_before_it_is_read(server: ServerProcess, unharmed: Client):
    with pytest.raises(
        RefusalError, match=r"300,001 bytes of JSON; at most 200,000 .*binary.*split"
    ) as refused:
        post_json(server, b"[" * 300_001, TOKEN)
    assert refused.value.code == "too_large"


def test_a_grpc_message_larger_than_the_limit_is_refused(server: ServerProcess, unharmed: Client):
    with GRPC.insecure_channel(server.ready["grpc"]) as channel:
        with pytest.raises(GRPC.RpcError) as failed:
            channel.unary_unary("/recsys_opt.v1.Predictor/Predict")(bytes(17 << 20), timeout=20)
        assert failed.value.code() == GRPC.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(GRPC.RpcError) as failed:
            channel.unary_unary("/recsys_opt.v1.Predictor/Guess")(b"", timeout=20)
        assert failed.value.code() == GRPC.StatusCode.UNIMPLEMENTED


def test_a_call_given_up_as_its_answer_comes_does_no_harm():
    from recsys_opt.server.grpc_service import _tell

    async def main() -> None:
        waiting: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        waiting.cancel()
        _tell(waiting, RefusalError("late", "too late"))
        other: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        _tell(other, RefusalError("late", "too late"))
        assert (await other).code == "late"

    asyncio.run(main())


def test_assumed_paths_are_not_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = write_all(tmp_path)
    profile = Profile.load(folder / "profile.json")
    table, tt = profile.paths
    device = replace(profile.devices[0], name="gpu", assumed=True)
    assumed = replace(tt, name="tt@gpu", device="gpu", assumed=True, run=None)
    replace(profile, devices=(*profile.devices, device), paths=(table, assumed)).save(folder / "profile.json")
    said = start_fails(capsys, folder, *HTTP, "--paths", "tt@gpu")
    assert "path tt@gpu is assumed, not measured" in said
    assert "measure it: recsys-opt profile" in said
    with serving(folder) as running:  # what is measured is served without being named
        assert [p["name"] for p in running.ready["models"][0]["paths"]] == ["table@cpu"]
    replace(profile, devices=(device,), paths=(assumed,)).save(folder / "profile.json")
    said = start_fails(capsys, folder, *HTTP)
    assert "are assumed: there is nothing to serve; measure some: recsys-opt profile" in said


@pytest.mark.slow
def test_a_worker_that_cannot_be_started_is_tried_again(tmp_path: Path):
    folder = write_all(tmp_path)
    with serving(folder, "--sla", "20s") as server, Client(*server.address, timeout_s=60) as client:
        assert len(client.predict(*make_query(3)).probabilities) == 3  # the connection is there
        pid = server.process.pid
        had = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (8, had[1]))  # fewer than it has open
        os.kill(server.ready["workers"]["cpu:0"], signal.SIGKILL)
        wait_until(lambda: "cannot be started" in server.log)
        assert client.get("/readyz")[0] == 503
        assert client.get("/healthz")[0] == 200
        resource.prlimit(pid, resource.RLIMIT_NOFILE, had)
        wait_until(lambda: client.get("/readyz")[0] == 200, 60)
        assert len(client.predict(*make_query(3)).probabilities) == 3


@pytest.mark.slow
def test_a_reload_of_what_is_no_profile_is_answered(tmp_path: Path):
    folder = write_all(tmp_path, paths=("table",))
    (folder / "token").write_text(TOKEN)
    with serving(folder, "--token-file", str(folder / "token"), "--sla", "20s") as server:
        (folder / "profile.json").unlink()
        (folder / "profile.json").mkdir()
        with Client(*server.address, token=TOKEN) as client:
            status, _, body = client.request("POST", "/v1/reload")
            assert status == 500
            assert "the old ones go on" in json.loads(body)["error"]["message"]
            assert len(client.predict(*make_query(3)).probabilities) == 3
