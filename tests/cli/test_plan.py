import json

import pytest

from recsys_opt.cli.main import main
from recsys_opt.plan import Plan
from recsys_opt.planner.renumber import with_numbers

HARDWARE = "h100:devices=4,hbm=300kB"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A trace, its statistics and a plan."""
    path = tmp_path_factory.mktemp("plan")
    trace, stats = str(path / "trace"), str(path / "stats.npz")
    assert main(["data", "tables", "--tables", "12", "--batch", "64", "--batches", "3", "--out", trace]) == 0
    assert main(["stats", trace, "--batches", "0:2", "--out", stats]) == 0
    make = [
        "plan",
        stats,
        "--tables",
        trace,
        "--hardware",
        HARDWARE,
        "--batch-size",
        "256",
        "--effort",
        "0.2",
    ]
    assert main([*make, "--out", str(path / "plan.json"), "--html", str(path / "plan.html")]) == 0
    return path


def run(capsys, *arguments) -> tuple[int, str, str]:
    code = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    assert all(len(line) <= 100 for line in captured.out.splitlines()) or "--json" in arguments
    return code, captured.out, captured.err


def test_make(folder, capsys):
    code, text, _ = run(
        capsys,
        "plan",
        folder / "stats.npz",
        "--embedding-dim",
        64,
        "--hardware",
        HARDWARE,
        "--baselines",
        "--torchrec-seconds",
        0,
    )
    assert code == 0
    assert "no plan takes less than" in text
    assert "size-lookup" in text
    assert "assumed, not measured" in text
    plan = Plan.load(folder / "plan.json")
    assert plan.num_devices == 4
    assert plan.batch_size == 256
    assert 0 <= plan.gap < 1
    page = (folder / "plan.html").read_text()
    assert "Access curves and thresholds" in page
    assert page.count("<svg") >= 3
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")


def test_make_is_the_default(folder, capsys):
    flags = [folder / "stats.npz", "--embedding-dim", 16, "--hardware", HARDWARE, "--json"]
    first, second = run(capsys, "plan", *flags), run(capsys, "plan", "make", *flags)
    assert json.loads(first[1])["seconds"] == json.loads(second[1])["seconds"]


def test_show_and_explain(folder, capsys):
    code, text, _ = run(capsys, "plan", "show", folder / "plan.json", "--top", 3)
    assert code == 0
    assert "12 tables on 4 devices" in text
    assert "... and 9 tables" in text
    code, text, _ = run(capsys, "plan", "explain", folder / "plan.json", "table_3")
    assert code == 0
    assert "ways to cut it" in text
    code, text, _ = run(capsys, "plan", "explain", folder / "plan.json", "table_3", "--json")
    explained = json.loads(text)
    assert {o["sharding"] for o in explained["options"]} >= {"table_wise", "column_wise", "row_wise"}
    code, _, error = run(capsys, "plan", "explain", folder / "plan.json", "nobody")
    assert code == 2
    assert "no table 'nobody'" in error


def test_what_if_and_diff(folder, capsys):
    bigger = folder / "bigger.json"
    code, text, _ = run(
        capsys, "plan", "what-if", folder / "plan.json", "--hbm", "+1MB", "--out", bigger, "--json"
    )
    found = json.loads(text)
    assert code == 0
    assert found["after"]["seconds"] <= found["before"]["seconds"]
    assert found["after"]["slow_share"] < found["before"]["slow_share"]
    code, text, _ = run(capsys, "plan", "diff", folder / "plan.json", bigger)
    assert code == 0
    assert "tables change" in text
    code, text, _ = run(capsys, "plan", "diff", folder / "plan.json", folder / "plan.json", "--json")
    assert json.loads(text)["rows"] == 0
    code, text, _ = run(capsys, "plan", "what-if", folder / "plan.json", "--gpus", 2)
    assert code == 0
    code, _, error = run(capsys, "plan", "what-if", folder / "plan.json", "--gpus", 6)
    assert code == 2
    assert "multiple" in error
    code, _, error = run(capsys, "plan", "what-if", folder / "plan.json", "--hbm=-1GB")
    assert code == 2
    assert "would be left" in error


def test_like_devices_are_renumbered(folder, capsys, tmp_path):
    plan, other = Plan.load(folder / "plan.json"), tmp_path / "other.json"
    with_numbers(plan, [2, 0, 3, 1]).save(other)
    code, text, _ = run(capsys, "plan", "diff", folder / "plan.json", other)
    assert code == 0
    assert "like devices renumbered, 0 B would go to other devices" in text
    flags = ["--renumbered", tmp_path / "back.json", "--json"]
    code, text, _ = run(capsys, "plan", "diff", folder / "plan.json", other, *flags)
    found = json.loads(text)
    assert found["between_devices_bytes"] > 0 == found["between_devices_bytes_renumbered"]
    assert Plan.load(tmp_path / "back.json") == plan
    # The same problem, planned again from the permuted plan: nothing moves.
    code, text, _ = run(capsys, "plan", "what-if", other, "--json")
    found = json.loads(text)
    assert found["between_devices_bytes"] == found["between_tiers_bytes"] == 0


def test_diff_of_plans_by_other_statistics(folder, capsys, tmp_path):
    stats, plan = tmp_path / "stats.npz", tmp_path / "plan.json"
    assert main(["stats", str(folder / "trace"), "--batches", "2:3", "--out", str(stats)]) == 0
    capsys.readouterr()  # which names a folder of any length
    make = ["--tables", folder / "trace", "--hardware", HARDWARE, "--batch-size", 256, "--effort", 0.1]
    assert run(capsys, "plan", stats, *make, "--out", plan)[0] == 0
    _, text, _ = run(capsys, "plan", "diff", folder / "plan.json", plan, "--json")
    found = json.loads(text)
    assert found["ranks_compared"]
    assert not found["same_statistics"]
    stats.unlink()
    _, text, _ = run(capsys, "plan", "diff", folder / "plan.json", plan)
    assert "rows whose rank has changed are not counted" in text


def test_check(folder, capsys, tmp_path):
    code, text, _ = run(capsys, "plan", "check", folder / "plan.json")
    assert code == 0
    assert "inputs are unchanged" in " ".join(text.split())
    code, text, _ = run(
        capsys, "plan", "check", folder / "plan.json", "--hardware", "h100:devices=4,hbm=200kB"
    )
    assert code == 1
    assert "stale: the plan is for other hardware" in " ".join(text.split())
    assert "in hbm, which has 200000" in " ".join(text.split())
    other = tmp_path / "other.npz"
    assert main(["stats", str(folder / "trace"), "--batches", "2:3", "--out", str(other)]) == 0
    capsys.readouterr()  # which names a folder of any length
    code, text, _ = run(capsys, "plan", "check", folder / "plan.json", "--stats", other)
    assert code == 1
    assert "has changed since the plan was made" in " ".join(text.split())


def test_a_changed_plan_is_found_out(folder, capsys, tmp_path):
    document = json.loads((folder / "plan.json").read_text())
    document["tables"][0]["hot_rows"] = [0] * len(document["tables"][0]["hot_rows"])
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(document))
    code, text, _ = run(capsys, "plan", "check", path)
    assert code == 1
    assert "the plan says" in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--embedding-dim", "0"], "embedding_dim = 0"),
        (["--embedding-dim", "16", "--pin", "table_1"], "write TABLE=JSON"),
        (["--embedding-dim", "16", "--pin", 'table_1={"tier": "hot"}'], "tier = 'hot'"),
        (["--embedding-dim", "16", "--shardings", "sideways"], "'sideways'"),
        (["--embedding-dim", "16", "--batch-size", "0"], "batch_size = 0"),
        (["--tables", "nowhere.json"], "nowhere.json does not exist"),
        (["--embedding-dim", "16", "--hardware", "abacus"], "abacus"),
    ],
)
def test_bad_arguments(folder, capsys, flags, message):
    code, _, error = run(capsys, "plan", folder / "stats.npz", *flags)
    assert code == 2
    assert message in error


def test_tables_of_another_model(folder, capsys, tmp_path):
    document = json.loads((folder / "trace" / "tables.json").read_text())
    document["tables"][4]["num_embeddings"] += 1
    path = tmp_path / "tables.json"
    path.write_text(json.dumps(document))
    code, _, error = run(capsys, "plan", folder / "stats.npz", "--tables", path)
    assert code == 2
    assert "table_4 has" in error
    document["tables"][4]["name"] = "stranger"
    path.write_text(json.dumps(document))
    code, _, error = run(capsys, "plan", folder / "stats.npz", "--tables", path)
    assert code == 2
    assert "table stranger of the model is not in the statistics" in error


def test_infeasible(folder, capsys):
    flags = ["--embedding-dim", "64", "--hardware", "h100:devices=1,hbm=1MB,uvm=1MB"]
    code, _, error = run(capsys, "plan", folder / "stats.npz", *flags)
    assert code == 3
    assert "smallest change: uvm of" in error
