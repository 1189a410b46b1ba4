"""The plan and stats verbs as a person uses them by mistake: one line each, with value, place and remedy."""

import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from recsys_opt.cli.main import main
from recsys_opt.plan import Plan
from recsys_opt.planner.hardware import Hardware

PLAN = [
    "plan",
    "{stats}",
    "--tables",
    "{trace}",
    "--hardware",
    "h100:devices=2,hbm=2MB",
    "--batch-size",
    "64",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace, its statistics, a plan, and files that are none of these."""
    path = tmp_path_factory.mktemp("mistakes")
    names = {"trace": path / "trace", "stats": path / "stats.npz"}
    trace, stats = str(names["trace"]), str(names["stats"])
    assert main(["data", "tables", "--tables", "3", "--batch", "64", "--batches", "2", "--out", trace]) == 0
    assert main(["stats", trace, "--out", stats]) == 0
    make = [word.format(**names) for word in PLAN]
    assert main([*make, "--effort", "0.1", "--out", str(path / "plan.json")]) == 0
    (path / "empty").touch()
    (path / "cut.json").write_text((path / "plan.json").read_text()[:300])
    (path / "cut.npz").write_bytes((path / "stats.npz").read_bytes()[:3000])
    document = json.loads((path / "plan.json").read_text())
    for name, change in (
        ("newer", {"version": 2}),
        ("nan", {"bound_seconds": float("nan")}),
        ("text", {"batch_size": "64"}),
        ("unsure", {"hardware": {"name": "h"}}),
        ("settings", {"settings": {"batch_size": 1, "effort": "x"}}),
    ):
        (path / f"{name}.json").write_text(json.dumps({**document, **change}))
    Hardware.load("h100").save(path / "h100.toml")
    wrong = (path / "h100.toml").read_text().replace("bytes_per_s = 370000000000.0", "bytes_per_s = nan")
    (path / "nan.toml").write_text(wrong)
    np.save(path / "pickled.npy", np.array([{}]), allow_pickle=True)
    (path / "junk.npy").write_bytes(b"junk")
    bad = shutil.copytree(path / "trace", path / "bad_trace")
    values = np.load(bad / "batch_1_values.npy")
    values[5] = 10**12
    np.save(bad / "batch_1_values.npy", values)
    return path


def said(capsys: pytest.CaptureFixture[str], folder: Path, words: list[str]) -> tuple[int | str | None, str]:
    names = {"stats": folder / "stats.npz", "trace": folder / "trace", "plan": folder / "plan.json"}
    capsys.readouterr()
    try:
        code = main([word.format(**names, f=folder) for word in words])
    except SystemExit as stop:  # argparse's
        code = stop.code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return code, captured.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("absent.json", "does not exist; recsys-opt plan STATS --out plan.json writes one"),
        ("empty", "(it is empty), so not a plan; recsys-opt plan STATS"),
        ("cut.json", "is not whole, readable JSON"),
        ("trace", "is a folder; name the file in it that holds a plan"),
        ("stats.npz", "holds numpy arrays, such as access statistics, not a plan"),
        ("trace/tables.json", "is a trace's tables, not a plan"),
        ("newer.json", "has version 2 of recsys_opt.plan; this recsys_opt reads version 1: use the"),
        ("nan.json", "it holds NaN"),
        ("text.json", "batch_size = '64'; it must be a whole number; make the plan again"),
    ],
)
@pytest.mark.parametrize(
    "verb",
    [["show"], ["check"], ["explain", "t"], ["diff", "{plan}"], ["what-if"], ["replay", "{trace}"]],
    ids=lambda verb: verb[0],
)
def test_a_file_that_is_no_plan(capsys, folder: Path, verb: list[str], file: str, told: str):
    code, line = said(capsys, folder, ["plan", verb[0], f"{{f}}/{file}", *verb[1:]])
    assert code == 2
    assert f"{folder}/{file}" in line
    assert told in line


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["plan", "check", "{f}/unsure.json"], "the hardware: source is missing"),
        (["plan", "check", "{f}/settings.json"], "settings.effort = 'x'; it must be a number"),
        (
            ["plan", "{plan}", "--embedding-dim", "8"],
            "it is JSON, such as a plan); make it again with recsys-",
        ),
        (["plan", "{trace}", "--embedding-dim", "8"], "--out stats.npz counts its lookups"),
        (["plan", "{f}/empty", "--embedding-dim", "8"], "(it is empty); make it again with recsys-opt stats"),
        (["plan", "{f}/cut.npz", "--embedding-dim", "8"], "is not whole, readable access statistics"),
        (["plan", "{stats}", "--tables", "{plan}"], "is a plan, not a trace's tables"),
        ([*PLAN, "--hardware", "{f}/nan.toml"], "[intra_node] bytes_per_s = nan; it must be a finite number"),
        ([*PLAN, "--hardware", "{plan}"], "so not hardware; `recsys-opt bench hardware` writes such a file"),
        ([*PLAN, "--hardware", "{f}/empty"], 'begins with format = "recsys_opt.hardware"'),
        ([*PLAN, "--pin", 'table_0={{"devices": 1}}'], "devices = 1; it must be a list of devices"),
        ([*PLAN, "--pin", 'table_0={{"devices": ["1"]}}'], "devices = ['1']; it must be a list of devices"),
        ([*PLAN, "--top", "0"], "argument --top: 0; it must be at least 1"),
        ([*PLAN, "--out", "{trace}"], "trace is a folder; give the name of a file in it"),
        ([*PLAN, "--out", "/dev/null"], "/dev/null is no ordinary file; give the name of one"),
        ([*PLAN, "--html", "{plan}/page.html"], "plan.json is no folder; choose another place"),
        (["plan", "replay", "{plan}", "{trace}", "--threads", "0"], "--threads: 0; it must be at least 1"),
        (["plan", "replay", "{plan}", "{f}/bad_trace"], "batch 1 looks up id 1000000000000 of table_0"),
        (["plan", "replay", "{plan}", "{f}/bad_trace"], "replay lookups of the tables that were planned"),
        (["stats", "{f}/bad_trace", "--out", "{f}/o.npz"], "id 1000000000000 is outside the table's"),
        (["stats", "{f}/junk.npy", "--out", "{f}/o.npz"], "it does not begin as one; write the ids again"),
        (["stats", "{f}/pickled.npy", "--out", "{f}/o.npz"], "cannot be read as a .npy array: "),
        (["stats", "{plan}"], "is no dataset folder (dataset.json)"),
        (["stats", "{trace}"], "give the file to write with --out"),
        (["stats", "{trace}", "--out", "{f}/o.npz", "--memory", "-1"], "it must be a number of bytes, e.g."),
        (["stats", "{trace}", "--out", "{f}/o.npz", "--threads", "-1"], "-1; it must be at least 1"),
        (["stats", "{trace}", "--out", "{f}/empty/o.npz"], "empty is no folder; choose another place"),
    ],
)
def test_arguments_that_do_not_fit(capsys, folder: Path, words: list[str], told: str):
    code, line = said(capsys, folder, words)
    assert code == 2
    assert told in line
    assert not (folder / "o.npz").exists()


def run(*arguments: object, **kwargs) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "recsys_opt.cli.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **kwargs)


def test_a_full_disk_leaves_the_old_file(folder: Path, tmp_path: Path):
    """A limit on the size of files stands in for it: the write fails in the same place."""
    (tmp_path / "new.npz").write_text("old")

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    merge = ["stats", "--merge", folder / "stats.npz", "--out", tmp_path / "new.npz", "--overwrite"]
    done = run(*merge, preexec_fn=limit)
    assert done.returncode == 1
    assert "new.npz: File too large; make room, or choose another place" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "new.npz").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["new.npz"]


@pytest.mark.slow
@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("wait", [0.0, 0.1, 0.3])
def test_an_interrupted_plan_is_whole_or_not_there(folder: Path, tmp_path: Path, by, wait: float):
    out = tmp_path / "plan.json"
    words = [word.format(trace=folder / "trace", stats=folder / "stats.npz") for word in PLAN]
    command = [sys.executable, "-m", "recsys_opt.cli.main", *words, "--effort", "0.1", "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and "_planner" not in Path(f"/proc/{process.pid}/maps").read_text():
        time.sleep(0.01)
    time.sleep(wait)
    process.send_signal(by)
    _, error = process.communicate()
    assert "Traceback" not in error
    if by == signal.SIGINT and process.returncode == 1:
        assert error.startswith("recsys-opt: error: interrupted")
    if out.exists():
        Plan.load(out)
