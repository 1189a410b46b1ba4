import json
from dataclasses import replace

import pytest

from recsys_opt.cli.main import main
from recsys_opt.serving.profile import Profile
from tests.serving.profiles import cpu_gpu_profile
from tests.serving.runs import make_run

QUICK = ["--seconds", "0.3", "--sizes", "1", "64", "256"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder, "first")
    make_run(folder, "second", {"compression.tt_threshold": 500, "compression.tt_rank": 4})
    return folder


def test_a_profile_of_two_runs(runs, tmp_path, capsys):
    out = tmp_path / "profile.json"
    command = ["profile", str(runs / "first"), f"small={runs / 'second'}", *QUICK, "--out", str(out)]
    assert main([*command, "--data", str(runs / "data"), "--accuracy", "small=0.81"]) == 0
    profile = Profile.load(out)
    table, small = profile.paths
    assert (table.name, small.name) == ("table@cpu", "small@cpu")
    assert (table.representation, small.representation) == ("table", "tt")
    assert (table.run, small.run) == ("first", "second")
    assert table.sizes == (1, 64, 256)
    metrics = [json.loads(line) for line in (runs / "first" / "metrics.jsonl").read_text().splitlines()]
    test = [m for m in metrics if m.get("split") == "test"][-1]
    assert table.accuracy == pytest.approx(test["accuracy"], abs=0.002)
    assert table.auc == pytest.approx(test["auc"], abs=1e-4)
    assert table.accuracy_from == "measured on 600 rows of the test split of generated"
    assert (small.accuracy, small.accuracy_from) == (0.81, "given, not measured")
    assert profile.device("cpu").workers == 1
    about = profile.circumstances["cpu"]
    assert about["clock"] == "wall"
    assert set(about["noise"]) == {"table@cpu", "small@cpu"}
    text = capsys.readouterr().out
    assert "table@cpu" in text
    assert "p99 ms" in text
    assert "by wall time on 600 rows of the test split" in text
    assert max(map(len, text.splitlines())) <= 100

    assert main(["profile", "show", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(profile.to_json()))


@pytest.mark.slow
def test_accuracy_without_the_data(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (runs / "data").rename(runs / "away")
    try:
        out = tmp_path / "p.json"
        assert main(["profile", str(runs / "first"), *QUICK, "--out", str(out)]) == 0
        (path,) = Profile.load(out).paths
        assert path.accuracy_from == "training's evaluation on 600 rows of its test split"
        assert "by a power law" in Profile.load(out).circumstances["cpu"]["queries"]
    finally:
        (runs / "away").rename(runs / "data")


def test_mistakes(runs, tmp_path, capsys):
    first, out = str(runs / "first"), str(tmp_path / "p.json")
    make_run(tmp_path, "other", {"architecture.bottom_mlp": (32, 8)})
    for arguments, message in (
        ([first, str(tmp_path / "other")], "are not the same model: embedding_dim 16 and 8"),
        ([str(tmp_path / "nothing")], "has no checkpoint; train it first"),
        ([first, f"table={runs / 'second'}"], "two paths are called 'table'"),
        ([first, "--devices", "cuda"], "there is no CUDA device here"),
        ([first, "--accuracy", "dhe=0.8"], "an accuracy is given for dhe, but the paths are table"),
        ([first, "--data", str(tmp_path)], "is not a whole dataset"),
        ([first, "--workers", "999"], "need 999 cores"),
        ([first, "--sizes", "8", "4"], "ascending"),
    ):
        assert main(["profile", *arguments, "--out", out]) == 2, message
        assert message in capsys.readouterr().err
    for arguments, message in (
        (["--devices", "tpu"], "a device is cpu or cuda"),
        (["--devices", "cpu,cpu"], "given twice"),
        (["--accuracy", "table=78.9"], "an accuracy is a share"),
        (["--accuracy", "0.789"], "it must be NAME=VALUE"),
    ):
        with pytest.raises(SystemExit) as error:
            main(["profile", first, *arguments, "--out", out])
        assert error.value.code == 2
        assert message in capsys.readouterr().err


def test_show_and_merge(tmp_path, capsys):
    cpu, gpu, both = (tmp_path / name for name in ("cpu.json", "gpu.json", "both.json"))
    profile = cpu_gpu_profile()
    profile.with_paths(["table@cpu", "dhe@cpu", "hybrid@cpu"]).save(cpu)
    profile.with_paths(["table@gpu", "dhe@gpu", "hybrid@gpu"]).save(gpu)
    assert main(["profile", "merge", str(cpu), str(gpu), "--out", str(both)]) == 0
    assert Profile.load(both).paths == profile.paths
    text = capsys.readouterr().out
    assert "ASSUMED, not measured: table@gpu, dhe@gpu, hybrid@gpu" in text
    assert main(["profile", "show", str(cpu)]) == 0
    assert "ASSUMED" not in capsys.readouterr().out
    changes = ["--paths", "dhe@gpu,table@cpu", "--accuracy", "dhe=0.9"]
    assert main(["profile", "merge", str(cpu), str(gpu), *changes, "--out", str(both)]) == 0
    table, dhe = Profile.load(both).paths
    assert (table.name, table.accuracy, table.accuracy_from) == ("table@cpu", 0.7879, "")
    assert (dhe.name, dhe.accuracy, dhe.accuracy_from) == ("dhe@gpu", 0.9, "given, not measured")
    capsys.readouterr()
    for wrong, message in (
        (["--paths", "x@cpu"], "no path 'x@cpu'; it has table@cpu"),
        (["--accuracy", "tt=0.5"], "no path tt; it has dhe, hybrid, table"),
    ):
        assert main(["profile", "merge", str(cpu), *wrong, "--out", str(both)]) == 2
        assert message in capsys.readouterr().err
    assert main(["profile", "merge", str(cpu), str(cpu), "--out", str(both)]) == 2
    assert "two paths called 'table@cpu'" in capsys.readouterr().err


def test_an_assumed_gpu(runs, tmp_path, capsys):
    out = tmp_path / "gpu.json"
    command = ["profile", "assume", str(runs / "first"), str(runs / "second"), "--data", str(runs / "data")]
    assert main([*command, "--gpu", "v100", "--out", str(out), "--memory", "200MB"]) == 0
    text = capsys.readouterr().out
    assert "ASSUMED, not measured: table@gpu, tt@gpu (gpu: V100" in text
    assert max(map(len, text.splitlines())) <= 100
    profile = Profile.load(out)
    assert profile.assumed
    assert all(p.assumed and p.times[0].runs == 0 for p in profile.paths)
    assert profile.device("gpu").memory_bytes == 200_000_000
    assert profile.circumstances["gpu"]["figures"]["name"] == "v100"
    assert profile.path("table@gpu").accuracy_from.startswith("measured on 600 rows")
    assert main([*command, "--gpu", "v900", "--out", str(out)]) == 2
    assert "name a preset (h100, v100)" in capsys.readouterr().err


def test_mapping(tmp_path, capsys):
    whole, out = tmp_path / "whole.json", tmp_path / "mapped.json"
    profile = cpu_gpu_profile()
    sizes = {"table": 2160, "dhe": 40, "hybrid": 2200}
    paths = tuple(replace(p, bytes=sizes[p.representation] * 10**6) for p in profile.paths)
    replace(profile, paths=paths).save(whole)
    memory = ["--memory", "cpu=2230MB,gpu=10MB", "--load", "450"]
    assert main(["profile", "map", str(whole), *memory, "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["methods"]
    assert found["mp-rec"]["paths"] == {"cpu": ["hybrid@cpu"], "gpu": []}
    assert found["ours"] == found["exact"]
    assert [p.name for p in Profile.load(out).paths] == ["table@cpu", "dhe@cpu"]
    assert main(["profile", "map", str(whole), "--memory", "gpu=200MB"]) == 0
    text = capsys.readouterr().out
    assert "ASSUMED, not measured: dhe@gpu" in text
    assert max(map(len, text.splitlines())) <= 100
    assert main(["profile", "map", str(whole), "--memory", "cpu=1MB,gpu=1MB"]) == 3
    assert "the nearest is dhe@cpu, which takes 40,000,000 bytes" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["profile", "map", str(whole), "--memory", "2GB"])
    assert "it must be NAME=VALUE, e.g. cpu=2GB" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["profile", "map", str(whole), "--sla", "soon"])
    assert "--sla" in capsys.readouterr().err
