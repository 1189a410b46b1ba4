"""The server's life: what it starts with, tokens, reloads, signals."""

import asyncio
import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recsys_opt.cli.main import main
from recsys_opt.server import auth
from recsys_opt.server.client import AsyncClient, Client
from recsys_opt.server.refusal import RefusalError
from recsys_opt.serving.models import weights_fingerprint
from recsys_opt.serving.profile import Profile
from tests.server.served import expected, make_query, serving, wait_until, write_all, write_profile, write_run

pytest.importorskip("httptools")
pytest.importorskip("prometheus_client")
TOKEN = "0123456789abcdef-a-token"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_all(tmp_path)


def test_a_reload_under_load_drops_nothing_and_brings_new_models(folder: Path):
    (folder / "token").write_text(TOKEN + "\n")
    with serving(folder, "--sla", "20s", "--token-file", str(folder / "token")) as server:
        old = {run: expected(folder, run, *make_query(50)) for run in ("table", "tt")}
        write_run(folder / "runs" / "table", tt=False, seed=1)
        write_run(folder / "runs" / "tt", tt=True, seed=1)
        new = {run: expected(folder, run, *make_query(50)) for run in ("table", "tt")}
        seen = []
        done = False

        async def ask(client: AsyncClient) -> None:
            while not done:
                answer = await client.predict(*make_query(50))
                (path,) = answer.paths
                run = path.partition("@")[0]
                is_old = np.abs(answer.probabilities - old[run]).max() < 1e-5
                is_new = np.abs(answer.probabilities - new[run]).max() < 1e-5
                assert is_old != is_new
                seen.append(is_new)

        async def load() -> None:
            nonlocal done
            async with AsyncClient(*server.address, token=TOKEN) as client:
                tasks = [asyncio.create_task(ask(client)) for _ in range(8)]
                with Client(*server.address, token=TOKEN, timeout_s=60) as admin:
                    status, _, body = await asyncio.to_thread(admin.request, "POST", "/v1/reload", b"")
                assert status == 200, body
                before = len(seen)
                while len(seen) < before + 200 and not any(task.done() for task in tasks):
                    await asyncio.sleep(0.01)
                done = True
                await asyncio.gather(*tasks)

        asyncio.run(load())
        first = seen.index(True)
        assert first > 0
        assert all(seen[first + 8 :])  # but for those under way, all are answered by the new models
        summary = server.stop()
        assert summary["queries"]["answered"] == len(seen)
        assert summary["queries"]["failed"] == summary["queries"]["dropped"] == 0


def test_a_reload_that_fails_leaves_the_old_models_serving(folder: Path):
    with serving(folder) as server, Client(*server.address) as client:
        before = client.predict(*make_query(20), within_s=5.0).probabilities
        broken = json.loads((folder / "profile.json").read_text())
        broken["paths"][0]["run"] = "nowhere"
        (folder / "profile.json").write_text(json.dumps(broken))
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: b'reloads_total{outcome="failed"} 1.0' in client.get("/metrics")[1])
        after = client.predict(*make_query(20), within_s=5.0).probabilities
        np.testing.assert_allclose(after, before, atol=0.2)  # of either path
        with pytest.raises(RefusalError, match="SIGHUP") as refused:
            raise_refusal(client, "/v1/reload")
        assert refused.value.code == "forbidden"
        server.process.send_signal(signal.SIGINT)
        server.ended()
        assert "nowhere has no checkpoint" in server.log


def raise_refusal(client: Client, path: str) -> None:
    from recsys_opt.server.client import refusal_of

    raise refusal_of(*client.request("POST", path, b""))


def test_what_matters_needs_the_token(folder: Path):
    with serving(folder, "--paths", "table@cpu", env={auth.VARIABLE: TOKEN}) as server:
        query = make_query(3)
        with Client(*server.address, token=TOKEN) as client:
            assert len(client.predict(*query, within_s=5.0).probabilities) == 3
        for wrong in (None, "", TOKEN[:-1], TOKEN + "x", "x" * 5000, "\xe9" * 24):
            with Client(*server.address, token=wrong) as client:
                for ask in (
                    lambda c: c.predict(*query),
                    lambda c: raise_refusal(c, "/v1/reload"),
                ):
                    with pytest.raises(RefusalError) as refused:
                        ask(client)
                    assert refused.value.code == "unauthenticated"
                    assert TOKEN not in str(refused.value)
                assert client.get("/v1/models")[0] == 401
                assert (
                    client.get("/healthz")[0] == client.get("/readyz")[0] == client.get("/metrics")[0] == 200
                )
        assert TOKEN not in json.dumps(server.ready)
        server.stop()
        assert TOKEN not in server.log


@pytest.mark.parametrize("text", ["short", "a b" * 10, "", "\xe9" * 20])
def test_a_token_that_is_none_is_refused(tmp_path: Path, text: str):
    (tmp_path / "token").write_text(text)
    with pytest.raises(ValueError, match="at least 16 ASCII characters"):
        auth.read_token(tmp_path / "token")


def start_fails(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str, code: int = 2) -> str:
    """What a start that fails says."""
    capsys.readouterr()
    words = ["serve", "--profile", str(folder / "profile.json"), "--runs", str(folder / "runs"), *arguments]
    try:
        found: int | str | None = main(words)
    except SystemExit as stop:  # argparse's
        found = stop.code
    assert found == code
    said = capsys.readouterr()
    assert said.out == ""
    assert "Traceback" not in said.err
    return said.err.splitlines()[-1]


HTTP = ("--http", "127.0.0.1:0")


def test_a_profile_of_other_weights_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]):
    profile = Profile.load(folder / "profile.json")
    weights = folder / "runs" / "table" / "checkpoint" / "model.safetensors"
    right = replace(profile.paths[0], fingerprint=weights_fingerprint(weights))
    wrong = replace(profile.paths[1], fingerprint="0" * 32)
    replace(profile, paths=(right, wrong)).save(folder / "profile.json")
    assert "not those that were profiled" in start_fails(capsys, folder, *HTTP)
    with serving(folder, "--paths", "table@cpu") as server:
        assert [p["name"] for p in server.ready["models"][0]["paths"]] == ["table@cpu"]


def test_a_profile_of_another_model_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]):
    profile = Profile.load(folder / "profile.json")
    other = replace(profile.model, cardinalities=(4, 60, 700, 4999))
    replace(profile, model=other).save(folder / "profile.json")
    assert "feature C4 has 4,999 and 5,000 rows" in start_fails(capsys, folder, *HTTP)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "nowhere to listen"),
        ((*HTTP, "--paths", "dhe@cpu"), "no path 'dhe@cpu'"),
        ((*HTTP, "--policy", "best"), "'best' is no policy"),
        ((*HTTP, "--policy", "threshold"), "tune it with recsys-opt simulate"),
        ((*HTTP, "--policy", "static:x@cpu"), "x@cpu"),
        ((*HTTP, "--sla", "2min"), "at most 60 s"),
        ((*HTTP, "--sla", "soon"), "no time"),
        (("--http", "127.0.0.1"), "HOST:PORT"),
        ((*HTTP, "--token-file", "nowhere"), "cannot be read"),
        ((*HTTP, "--max-samples", "0"), "max_samples = 0"),
        ((*HTTP, "--runs", "nowhere"), "has no checkpoint"),
    ],
)
def test_what_cannot_be_served_is_said_at_once(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
):
    assert said in start_fails(capsys, folder, *arguments)


def test_what_cannot_be_read_or_listened_on_is_said(folder: Path, capsys: pytest.CaptureFixture[str]):
    write_profile(folder / "other.json")
    shutil.copy(folder / "other.json", folder / "profile.json")
    with serving(folder) as server:
        taken = server.ready["http"]
        assert "address already in use" in start_fails(capsys, folder, "--http", taken, code=1)
    (folder / "profile.json").write_text("{}")
    assert "not a profile" in start_fails(capsys, folder, *HTTP)
