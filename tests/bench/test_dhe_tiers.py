import json

from recsys_opt.cli.main import main
from recsys_opt.training.config import HashingConfig, replaced
from recsys_opt.training.trainer import train
from tests.generated import make_dataset
from tests.training.test_representation import CONFIG


def test_tiers_of_a_trained_run(tmp_path, capsys):
    data = make_dataset(tmp_path / "data", rows=3000)
    train(CONFIG, data.path, tmp_path / "run")
    path = tmp_path / "record.json"
    flags = ["--cache-rows", "100", "--centroids", "0", "1", "--tables", "2", "--record", str(path)]
    assert main(["bench", "dhe-tiers", str(tmp_path / "run"), str(data.path), *flags]) == 0
    exact, computed, approximate = json.loads(path.read_text())["rows"]
    assert abs(computed["logloss"] - exact["logloss"]) < 1e-6  # the first tier changes nothing
    assert computed["rms_error"] == 0
    assert 0 < computed["exact_share"] < 1
    assert approximate["exact_share"] == computed["exact_share"] == 1 - approximate["approximate_share"]
    assert approximate["rms_error"] > 0.3
    assert abs(approximate["logloss"] - exact["logloss"]) > 1e-6
    assert set(approximate["tables"]) == {"C3", "C4"}
    assert "minus exact" in capsys.readouterr().out


def test_refusals(tmp_path, capsys):
    data = make_dataset(tmp_path / "data", rows=200)
    dense = {"representation": None, "hashing": HashingConfig()}
    train(replaced(CONFIG, dense), data.path, tmp_path / "run")
    assert main(["bench", "dhe-tiers", str(tmp_path / "run"), str(data.path)]) == 2
    assert "has no deep hash embedding" in capsys.readouterr().err
    assert main(["bench", "dhe-tiers", "run", "data", "--tables", "0"]) == 2
