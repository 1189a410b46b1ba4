"""`recsys-opt simulate` and the benchmarks of serving: what they print, write and refuse."""

import csv
import json
from pathlib import Path

import pytest

from recsys_opt.cli.main import main
from recsys_opt.serving.trace import read_trace
from tests.serving.profiles import cpu_gpu_profile


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    path = tmp_path_factory.mktemp("simulate") / "profile.json"
    cpu_gpu_profile().save(path)
    return path


def run(capsys, *arguments) -> tuple[int, str, str]:
    code = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    assert all(len(line) <= 100 for line in captured.out.splitlines()) or "--json" in arguments
    return code, captured.out, captured.err


def rows_of(table: Path) -> list[dict[str, str]]:
    """Of a CSV file whose first lines are comments."""
    return list(csv.DictReader(line for line in table.read_text().splitlines() if not line.startswith("#")))


def test_policies_side_by_side(profile, tmp_path, capsys):
    words = ["simulate", profile, "--load", 1000, "--queries", 20_000, "--policy", "adaptive"]
    words += ["--policy", "mp-rec", "--policy", "earliest-finish", "--policy", "static:table@gpu"]
    code, text, _ = run(capsys, *words, "--policy", "priced", "--csv", tmp_path / "s.csv")
    assert code == 0
    assert text.startswith("ASSUMED, not measured: table@gpu")
    for what in ("inside the SLA", "gain captured", "tables only", "no policy exceeds", "gpu busy"):
        assert what in text
    rows = rows_of(tmp_path / "s.csv")
    assert [r["policy"] for r in rows] == [
        "adaptive",
        "mp-rec",
        "earliest-finish",
        "static:table@gpu",
        "priced",
    ]
    assert 0 < float(rows[0]["utilisation[gpu]"]) < 1
    code, text, _ = run(capsys, *words, "--json")
    found = json.loads(text)
    assert found["accuracy_blind"]["policy"] == "tables only"
    assert len(found["simulations"]) == 4
    assert found["assumption"].startswith("ASSUMED")


def test_page_record_and_against(profile, tmp_path, capsys):
    page, trace = tmp_path / "page.html", tmp_path / "run.npz"
    words = ["--load", 2000, "--seconds", "3s", "--event", "1s:gpu:lost", "--event", "2s:gpu:ok"]
    code, text, _ = run(capsys, "simulate", profile, *words, "--html", page, "--record", trace)
    assert code == 0
    assert f"page    {page}" in text
    html = page.read_text()
    assert html.count("<svg") >= 10
    assert "http" not in html.replace("http-equiv", "")  # nothing from outside
    for what in ("gpu:lost", "Choice of paths by the size of queries", "ASSUMED", "SLA 25 ms"):
        assert what in html
    assert len(read_trace(trace)) == 6000
    code, text, _ = run(capsys, "simulate", profile, "--load", 500, "--queries", 5000, "--record", trace)
    assert code == 0
    code, text, _ = run(capsys, "simulate", profile, "--against", trace)
    assert code == 0
    assert "p99" in text
    assert "recorded batches took" in text


def test_loads_held_and_sweeps(profile, tmp_path, capsys):
    code, text, _ = run(capsys, "simulate", profile, "--load-held", "--policy", "static:table@gpu", "--json")
    assert code == 0
    (held,) = json.loads(text)["held"]
    assert 0 < held["load"] < held["bound"]
    over = "load=200:800:3,sla=10ms,50ms"
    words = ["simulate", profile, "--sweep", over, "--queries", 3000, "--csv", tmp_path / "s.csv"]
    code, text, _ = run(capsys, *words)
    assert code == 0
    assert len([line for line in text.splitlines() if " adaptive " in line]) == 6
    assert [row["policy"] for row in rows_of(tmp_path / "s.csv")] == ["adaptive"] * 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no load; give one"),
        (["--load", "0"], "a load of 0"),
        (["--load", "9", "--sla", "fast"], "'fast' is no time"),
        (["--load", "9", "--policy", "best"], "is no policy"),
        (["--load", "9", "--policy", "static:x"], "no path 'x'"),
        (["--load", "9", "--paths", "x"], "no path 'x'"),
        (["--load", "9", "--sizes", "normal"], "no kind of sizes"),
        (["--load", "9", "--arrivals", "weekly"], "no kind of arrivals"),
        (["--load", "9", "--event", "1s:tpu:lost"], "no device 'tpu'"),
        (["--load", "9", "--sweep", "load=1", "--load-held"], "ask one at a time"),
        (["--against", "none.npz"], "does not exist"),
        (["--load", "9", "--python-policy", "none.py:A"], "does not exist"),
    ],
)
def test_mistakes_are_told(profile, capsys, words, message):
    try:
        code = main(["simulate", str(profile), *words])
    except SystemExit as end:
        code = end.code
    assert code == 2
    assert message in capsys.readouterr().err


def test_policies_are_measured_side_by_side(profile, tmp_path, capsys):
    record = tmp_path / "r.json"
    words = ["--sla", "25ms", "--queries", 2000, "--runs", 2, "--record", record]
    code, text, _ = run(capsys, "bench", "policies", profile, *words)
    assert code == 0
    assert "loads held at 99 %" in text
    rows = json.loads(record.read_text())["rows"]
    held = {r["policy"]: r for r in rows if r["kind"] == "held"}
    assert {"adaptive", "mp-rec", "threshold", "tables only", "static:table@cpu"} <= set(held)
    assert all(0 <= r["load"] <= 1.1 * r["bound"] for r in held.values())
    assert held["adaptive"]["times_mp_rec"] == held["adaptive"]["load"] / held["mp-rec"]["load"]
    assert {r["kind"] for r in rows} == {"held", "load", "change", "paper"}
    assert all(r["assumption"].startswith("ASSUMED") for r in rows)


def test_the_simulator_is_timed_beside_simpy(tmp_path, capsys):
    pytest.importorskip("simpy")
    record = tmp_path / "r.json"
    words = ["--queries", 20_000, "--simpy-queries", 1000, "--rounds", 1, "--record", record]
    code, text, _ = run(capsys, "bench", "serving", *words)
    assert code == 0
    assert "times SimPy" in text
    rows = json.loads(record.read_text())["rows"]
    assert [(r["model"], r["way"]) for r in rows] == [
        ("M/M/1", "recsys-opt"),
        ("M/M/1", "SimPy"),
        ("late binding, batches", "recsys-opt"),
        ("late binding, batches", "SimPy"),
    ]
    assert all(r["answered"] > 0.97 * r["queries"] for r in rows)
