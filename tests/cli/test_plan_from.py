import json
from pathlib import Path

import pytest

from recsys_opt.cli.main import main
from recsys_opt.plan import Plan
from tests.planner.days import statistics

SIZES = (30000, 9000, 700, 12000, 60, 4000, 2500, 15000)
HARDWARE = "h100:devices=4,hbm=100kB,reserved=0,uvm=20MB"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two days' statistics, and the plan of the first."""
    path = tmp_path_factory.mktemp("from")
    for day in (0, 1):
        statistics(day, SIZES, 6, 0.3, 5000).save(path / f"day{day}.npz")
    make = ["plan", path / "day0.npz", "--embedding-dim", 16, "--hardware", HARDWARE, "--batch-size", 4096]
    assert main([str(a) for a in (*make, "--effort", 0.05, "--out", path / "old.json")]) == 0
    return path


def run(capsys, *arguments) -> tuple[int, str, str]:
    code = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    if "--json" not in arguments:
        assert all(len(line) <= 100 for line in captured.out.splitlines())
    return code, captured.out, captured.err


def test_replan(folder, capsys):
    new = folder / "new.json"
    flags = ["--from", folder / "old.json", "--move-limit", "5%", "--out", new, "--html", folder / "new.html"]
    code, text, _ = run(capsys, "plan", folder / "day1.npz", *flags)
    assert code == 0
    for words in (
        "old.json as it is",
        "its thresholds set anew",
        "without a limit",
        "that moves no more takes less",
    ):
        assert words in text
    assert "asked for" in text
    assert "<svg" in (folder / "new.html").read_text()
    code, text, _ = run(capsys, "plan", folder / "day1.npz", *flags, "--json")
    found = json.loads(text)
    assert found["decision"] == "move"
    assert found["plan"]["between_devices_bytes"] <= found["move_limit_bytes"] == 0.05 * found["model_bytes"]
    assert found["old"]["seconds"] > found["plan"]["seconds"] >= found["plan"]["bound_seconds"]
    assert [t["limit_bytes"] for t in found["trade_off"]][-1] is None
    plan = Plan.load(new)
    assert plan.seconds == found["plan"]["seconds"]
    assert Path(plan.inputs["from"]["path"]).name == "old.json"
    # What reads plans reads it: earlier statistics, which deal some rows, and all.
    assert run(capsys, "plan", "check", new)[0] == 0
    assert run(capsys, "plan", "explain", new, plan.tables[0].name)[0] == 0
    code, text, _ = run(capsys, "plan", "diff", folder / "old.json", new, "--json")
    assert json.loads(text)["between_devices_bytes"] == pytest.approx(
        found["plan"]["between_devices_bytes"], abs=len(SIZES)
    )
    assert run(capsys, "plan", "what-if", new, "--hbm", "+1MB")[0] == 0


def test_too_little_gain_keeps_the_old_plan(folder, capsys):
    kept = folder / "kept.json"
    flags = ["--from", folder / "old.json", "--min-gain", "99%", "--out", kept]
    code, text, _ = run(capsys, "plan", folder / "day1.npz", *flags)
    assert code == 0
    assert "kept" in text
    assert "less than the 99.00% asked for" in text
    assert Plan.load(kept) == Plan.load(folder / "old.json")
    code, text, _ = run(capsys, "plan", folder / "day0.npz", "--from", folder / "old.json", "--json")
    assert json.loads(text)["decision"] == "keep"  # nothing has changed


def test_moves_that_gain_little_are_left_out(folder, capsys, tmp_path):
    """New thresholds are worth it, moves between devices are not."""
    flags = ["--from", folder / "old.json", "--move-limit", "5%", "--out", tmp_path / "stay.json"]
    _, text, _ = run(capsys, "plan", folder / "day1.npz", *flags, "--json")
    found = json.loads(text)
    stay = found["trade_off"][0]
    over = 1 - found["plan"]["seconds"] / stay["seconds"]
    assert found["decision"] == "move"
    assert over < stay["gain"]
    flags += ["--min-gain", str((over + stay["gain"]) / 2)]
    code, text, _ = run(capsys, "plan", folder / "day1.npz", *flags)
    assert code == 0
    assert "tables stay where they are: moves would save another" in text
    _, text, _ = run(capsys, "plan", "diff", folder / "old.json", tmp_path / "stay.json", "--json")
    moved = json.loads(text)
    assert moved["between_devices_bytes"] == 0 < moved["between_tiers_bytes"]


def test_statistics_elsewhere(folder, capsys, tmp_path):
    document = json.loads((folder / "old.json").read_text())
    document["inputs"]["statistics"]["path"] = "gone.npz"
    (tmp_path / "old.json").write_text(json.dumps(document))
    flags = ["--from", tmp_path / "old.json", "--json"]
    code, _, error = run(capsys, "plan", folder / "day1.npz", *flags)
    assert code == 2
    assert "gone.npz, which the plan was made from, does not exist" in error
    assert run(capsys, "plan", folder / "day1.npz", *flags, "--from-stats", folder / "day0.npz")[0] == 0
    code, _, error = run(capsys, "plan", folder / "day1.npz", *flags, "--from-stats", folder / "day1.npz")
    assert code == 2
    assert "has changed since the plan was made" in error


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--move-limit", "-1"], "no number of bytes"),
        (["--move-limit", "nan"], "no number of bytes"),
        (["--move-limit", "nan%"], "must be a finite share"),
        (["--move-limit=-3%"], "0 or larger"),
        (["--min-gain", "nan"], "must be a finite share"),
        (["--min-gain=-0.1"], "0 or larger"),
        (["--min-gain", "much"], "must be a share"),
        (["--hardware", "h100:devices=8"], "the old plan is for 4 devices"),
        (["--embedding-dim", "32"], "embedding_dim = 16 in the old plan and 32"),
        (["--optimizer", "adam"], "optimizer = rowwise_adagrad"),
        (["--baselines"], "leave it out with --from"),
    ],
)
def test_bad_arguments(folder, capsys, flags, message):
    # argparse takes "-1" for a flag unless it is joined to its own.
    flags = [f"{flags[0]}={flags[1]}"] if flags[1:] == ["-1"] else flags
    code, _, error = run(capsys, "plan", folder / "day1.npz", "--from", folder / "old.json", *flags)
    assert code == 2
    assert message in error


def test_the_old_plan_must_be_one_that_can_be_read(folder, capsys, tmp_path):
    document = json.loads((folder / "old.json").read_text())
    newer, other = tmp_path / "newer.json", tmp_path / "other.json"
    newer.write_text(json.dumps({**document, "version": document["version"] + 1}))
    document["tables"][0] |= {"num_embeddings": 31000}
    other.write_text(json.dumps(document))
    for path, message in (
        (newer, "version"),
        (other, "t0 has 31000 rows in"),
        (tmp_path / "no.json", "no.json"),
    ):
        code, _, error = run(capsys, "plan", folder / "day1.npz", "--from", path)
        assert code == 2
        assert message in error


def test_flags_that_need_an_old_plan(folder, capsys):
    for flags in (["--move-limit", "1MB"], ["--min-gain", "1%"], ["--from-stats", "old.npz"]):
        code, _, error = run(capsys, "plan", folder / "day1.npz", "--embedding-dim", 16, *flags)
        assert code == 2
        assert f"{flags[0]} goes with --from" in error
    code, _, error = run(capsys, "plan", folder / "day1.npz")
    assert code == 2
    assert "--embedding-dim D, --tables JSON, or --from PLAN" in error
