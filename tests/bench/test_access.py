import json

import numpy as np

from recsys_opt.bench import access_counting, access_curves
from recsys_opt.cli.main import main
from recsys_opt.data.dataset import Dataset
from tests.generated import make_dataset


def test_zipf_ids_follow_their_law():
    ids = access_counting.zipf_ids(1000, 200_000, 1.3)
    counts = np.sort(np.bincount(ids, minlength=1000))[::-1] / len(ids)
    edges = np.arange(1, 1002) ** -0.3
    expected = (edges[:-1] - edges[1:]) / (1 - edges[-1])
    np.testing.assert_allclose(counts[:20], expected[:20], atol=0.005)


def test_counting_is_measured_beside_the_alternatives(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(access_counting, "LARGE_TABLE", 50_000)
    ids = access_counting.zipf_ids(50_000, 900, 1.05)[:, None]
    monkeypatch.setattr(
        access_counting, "cases", lambda samples: [access_counting.Case("one", (50_000,), ids)]
    )
    record = tmp_path / "r.json"
    assert main(["bench", "stats", "--samples", "90", "--rounds", "1", "--record", str(record)]) == 0
    rows = json.loads(record.read_text())["rows"]
    assert {"counters, 1 thread", "numpy.bincount", "numpy.add.at"} <= {r["way"] for r in rows}
    assert all(r["lookups"] == 900 and r["lookups_per_s"] > 0 for r in rows)
    assert "M/s" in capsys.readouterr().out


def test_curves_are_judged_by_lookups_they_have_not_seen(tmp_path, capsys):
    data = make_dataset(tmp_path / "data")
    record = tmp_path / "r.json"
    words = ["--rows", "100k", "--lookups", "50k", "--tables", "3", "--batch", "256", "--batches", "2"]
    assert main(["bench", "curves", *words, "--dataset", str(data.path), "--record", str(record)]) == 0
    found = json.loads(record.read_text())
    assert {r["data"] for r in found["rows"]} == {"Zipf 1.05", "trace", "dataset"}
    zipf = {r["way"]: r for r in found["rows"] if r["data"] == "Zipf 1.05"}
    assert zipf["leave one out"]["largest_error"] < 0.01 < zipf["in sample"]["largest_error"]
    trace = {m["way"]: m for m in found["summary"] if m["data"] == "trace"}
    assert (
        trace["leave one out less drift"]["mean_absolute_error"]
        < 0.2 * (trace["in sample"]["mean_absolute_error"])
    )
    assert max(map(len, capsys.readouterr().out.splitlines()[:-1])) <= 100


def test_only_large_columns_are_judged(tmp_path):
    data = make_dataset(tmp_path / "data")
    rows = list(access_curves.later_in_dataset(Dataset(data.path)))
    assert {r["table"] for r in rows} == {"C4"}  # of 5000 ids
