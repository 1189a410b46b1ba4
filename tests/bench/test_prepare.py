import json
from pathlib import Path

import numpy as np

from recsys_opt.bench.criteo_text import replicate, write_rows
from recsys_opt.cli.main import main
from recsys_opt.data.criteo import VocabularyIds
from recsys_opt.data.prepare import PrepareOptions, prepare


def test_copies_keep_frequent_values_and_perturb_rare_ones(tmp_path: Path) -> None:
    base = write_rows(tmp_path / "base.txt", 1000, seed=1)
    distinct = replicate(base, tmp_path / "train.txt", 2500)
    info = prepare([tmp_path / "train.txt"], tmp_path / "out", PrepareOptions(ids=VocabularyIds(1))).info
    assert info.labelled_rows == 2500
    found = sum(c.num_embeddings - 2 for c in info.sparse_columns)
    # A perturbed value may meet another one by chance.
    assert 0 <= distinct - found <= 3
    once = prepare([base], tmp_path / "once", PrepareOptions(ids=VocabularyIds(1))).info
    assert found > 1.5 * sum(c.num_embeddings - 2 for c in once.sparse_columns)
    np.testing.assert_array_equal(
        np.load(tmp_path / "out" / "train_dense.npy")[:1000], np.load(tmp_path / "once" / "train_dense.npy")
    )


def test_record(tmp_path: Path) -> None:
    record = tmp_path / "prepare.json"
    flags = [
        "--rows",
        "300",
        "--peer-rows",
        "100",
        "--rounds",
        "1",
        "--threads",
        "2",
        "--work",
        str(tmp_path),
    ]
    assert main(["bench", "prepare", *flags, "--record", str(record)]) == 0
    document = json.loads(record.read_text())
    ours = {(r["candidate"], r["rows"]): r for r in document["rows"]}
    assert ours[("prepare, vocabulary", 300)]["rows_per_cpu_s"] > 0
    assert ours[("prepare, hash", 300)]["peak_rss_bytes"] > 1e6
    assert {r["candidate"] for r in document["rows"]} | set(document["absent"]) >= {"pandas", "polars"}
    assert not list(tmp_path.glob("tmp*"))
