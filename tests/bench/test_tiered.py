import json

import pytest

from recsys_opt.bench.tiered import Settings, run
from recsys_opt.cli.main import main
from recsys_opt.errors import InputError
from recsys_opt.progress import SilentProgress

SMALL = {"num_embeddings": 500, "embedding_dim": 4, "batch_sizes": (32,), "rounds": 3, "block_ms": 0.1}


def test_every_candidate_is_measured_at_every_split(tmp_path, capsys):
    record = tmp_path / "record.json"
    words = ["bench", "tiered", "--rows", "500", "--dim", "4", "--hot-share", "0.1", "1", "--rounds", "1"]
    words += ["--batch-size", "16", "--cold-dir", str(tmp_path), "--record", str(record), "--json"]
    assert main(words) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert json.loads(record.read_text())["rows"] == rows
    names = {"nn.EmbeddingBag", "one tier", "tiered, memory", "tiered, file", "tiered, ranks"}
    assert {(r["hot_share"], r["candidate"], r["work"]) for r in rows} == {
        (share, name, work) for share in (0.1, 1) for name in names for work in ("forward", "step")
    }
    hot = {r["hot_share"]: r["hot_lookups"] for r in rows}
    assert hot[1] == 1
    assert 0.5 < hot[0.1] < 0.9  # of Zipf's ids
    assert all(r["median_us"] > 0 and (r["candidate"] == "nn.EmbeddingBag" or r["ratio"] > 0) for r in rows)


def test_many_tables_whole_or_split():
    settings = Settings(
        **SMALL, tables=3, hot_shares=(0.34,), places=("memory", "whole"), algorithm="rowwise_adagrad"
    )
    rows = run(settings, SilentProgress())
    assert {r["candidate"] for r in rows if r["work"] == "step"} == {
        "one tier",
        "tiered, memory",
        "tiered, whole",
    }
    assert {r["tables"] for r in rows} == {3}


def test_pages_go_out_before_each_call(tmp_path):
    settings = Settings(**SMALL, hot_shares=(0.1,), places=("disk", "disk-unasked"), cold_dir=tmp_path)
    rows = run(settings, SilentProgress())
    assert {"tiered, disk", "tiered, disk-unasked"} < {r["candidate"] for r in rows}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hot_shares": (1.5,)}, "hot share 1.5; it must be between 0 and 1"),
        ({"places": ("tape",)}, "there is no place 'tape'; choose from memory, file"),
        ({"device": "cuda"}, "files are for the CPU; device = 'cuda'"),
        ({"algorithm": "adam"}, "algorithm = 'adam'; it must be sgd, adagrad or"),
    ],
)
def test_bad_settings_are_named(change, message):
    with pytest.raises(InputError, match=message):
        Settings(**{**SMALL, **change})
