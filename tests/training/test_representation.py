"""Training with deep hash embeddings: for all tables, beside them, or for some."""

import dataclasses

import pytest
import torch

from recsys_opt.errors import InputError
from recsys_opt.models.recipes import DLRMConfig
from recsys_opt.models.saved import load_model
from recsys_opt.run_folder import RunFolder
from recsys_opt.training.config import CompressionConfig, HashingConfig, TrainingConfig, replaced
from recsys_opt.training.evaluate import evaluate_run
from recsys_opt.training.initial import convert_run, initial_model
from recsys_opt.training.optimizers import OptimizerConfig
from recsys_opt.training.trainer import train
from tests.generated import COLUMNS, make_dataset
from tests.training.test_trainer import interrupt, lines, weights

HASHING = HashingConfig(dhe_hashes=32, dhe_widths=(16,), dhe_largest=2)
CONFIG = TrainingConfig(
    architecture=DLRMConfig(bottom_mlp=(16, 8), top_mlp=(16, 1)),
    optimizer=OptimizerConfig(algorithm="adagrad", mlp_lr=0.02, table_lr=0.05, core_lr=0.01),
    hashing=HASHING,
    representation="select",
    batch_size=100,
)
WANTED = {
    "dhe": ["dhe"] * 4,
    "hybrid": ["hybrid"] * 4,
    "select": ["dense", "dense", "dhe", "dhe"],
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("representation") / "data")


@pytest.mark.parametrize("kind", WANTED)
def test_learns_is_saved_and_resumes_to_the_same_weights(dataset, tmp_path, monkeypatch, kind):
    config = replaced(CONFIG, {"representation": kind, "checkpoint_every_s": 0.0})
    result = train(config, dataset.path, tmp_path / "whole")
    assert result.test.auc > 0.6
    tables = RunFolder(tmp_path / "whole").description()["model"]["tables"]
    assert [t["representation"] for t in tables] == WANTED[kind]
    assert result.dense_embedding_bytes == 4 * 8 * sum(COLUMNS)
    assert evaluate_run(tmp_path / "whole", dataset, "test") == result.test
    interrupt(monkeypatch, 20, config, dataset, tmp_path / "cut")
    train(config, dataset.path, tmp_path / "cut", resume=True)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")


def test_updates_stored_or_fused_are_the_same(dataset, tmp_path):
    results = []
    for how in ("fused", "stored"):
        config = replaced(CONFIG, {"representation": "hybrid", "optimizer.table_update": how})
        results.append(train(config, dataset.path, tmp_path / how).test.logloss)
    assert results[0] == pytest.approx(results[1], abs=1e-5)


def test_select_by_name_and_beside_tensor_trains(dataset):
    changes = {"hashing.dhe_tables": ("C1",), "compression.tt_tables": ("C4",), "compression.tt_rank": 4}
    model = initial_model(replaced(CONFIG, changes), dataset, torch.device("cpu"))
    assert [c.representation for c in model.embeddings.configs] == ["dhe", "dense", "dense", "tt"]


def test_hybrid_parts(dataset):
    both = replaced(
        CONFIG, {"representation": "hybrid", "compression.tt_threshold": 700, "compression.tt_rank": 4}
    )
    model = initial_model(both, dataset, torch.device("cpu"))
    assert {c.embedding_dim for c in model.embeddings.configs} == {16}
    assert model.top[0].in_features == 8 + 9 * 8 // 2
    assert [type(model.embeddings.table(n).table).__name__ for n in ("C2", "C3")] == [
        "DenseEmbeddingBag",
        "TTEmbeddingBag",
    ]
    halves = initial_model(replaced(both, {"hashing.hybrid_parts": "halves"}), dataset, torch.device("cpu"))
    assert {c.embedding_dim for c in halves.embeddings.configs} == {8}
    assert halves.top[0].in_features == 8 + 5 * 4 // 2


def test_tensor_trains_without_saying_which(dataset):
    assert replaced(TrainingConfig(), {"representation": "tt"}).compression.tt_threshold == 100_000
    named = {"representation": "tt", "compression.tt_tables": ("C3",)}
    assert replaced(TrainingConfig(), named).compression.tt_threshold is None


def test_conversion_writes_rows_out(dataset, tmp_path):
    result = train(CONFIG, dataset.path, tmp_path / "select")
    fits = convert_run(tmp_path / "select", tmp_path / "written", CompressionConfig()).fits
    assert [(f.name, f.representation, f.fit_error) for f in fits] == [
        ("C3", "dense", 0.0),
        ("C4", "dense", 0.0),
    ]
    assert evaluate_run(tmp_path / "written", dataset, "test").logloss == pytest.approx(
        result.test.logloss, abs=1e-5
    )
    goes_on = replaced(
        CONFIG, {"init_from": str(tmp_path / "select"), "max_rows": 100, "optimizer.core_lr": 0.0}
    )
    train(goes_on, dataset.path, tmp_path / "more")
    for run in ("select", "more"):
        assert load_model(tmp_path / run).embeddings.table("C4").prime == 1_000_003
    other = dataclasses.replace(goes_on, hashing=dataclasses.replace(HASHING, dhe_hashes=64))
    with pytest.raises(InputError, match="dhe_hashes: 32 -> 64"):
        train(other, dataset.path, tmp_path / "other")


def test_two_vectors_cannot_become_one(dataset, tmp_path):
    hybrid = replaced(CONFIG, {"representation": "hybrid", "max_rows": 100})
    train(hybrid, dataset.path, tmp_path / "hybrid")
    with pytest.raises(InputError, match=r"C1 of .* makes 2 vectors of 8"):
        convert_run(tmp_path / "hybrid", tmp_path / "written", CompressionConfig())
    table = {"representation": "table", "hashing": HashingConfig(), "init_from": str(tmp_path / "hybrid")}
    with pytest.raises(InputError, match="makes 2 vectors"):
        train(replaced(hybrid, table), dataset.path, tmp_path / "table")


def test_unknown_tables_are_named(dataset):
    with pytest.raises(InputError, match="dhe_tables names C9, but the tables are C1, C2, C3, C4"):
        initial_model(replaced(CONFIG, {"hashing.dhe_tables": ("C9",)}), dataset, torch.device("cpu"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"representation": "rows"}, "must be one of table, tt, dhe, hybrid, select"),
        ({"representation": "table"}, "add --representation dhe"),
        ({"representation": "dhe", "compression.tt_threshold": 5}, "leaves no table for a tensor train"),
        ({"compression.memory_budget": 1000}, "memory_budget does not count the networks"),
        ({"representation": "hybrid", "compression.tt_cache_rows": 5}, "leave out tt_cache_rows"),
        ({"representation": "dhe", "dense_representation": "fbgemm"}, "has no plain tables"),
        ({"placement.plan": "plan.json"}, "leave out either the plan"),
        ({"hashing.dhe_hashes": 0}, "dhe_hashes = 0"),
        ({"hashing.dhe_widths": (8, 0)}, "dhe_widths = 0"),
        ({"hashing.dhe_largest": 0}, "dhe_largest = 0"),
        ({"hashing.dhe_encoding": "binary"}, "'uniform' or 'gaussian'"),
        ({"hashing.hybrid_parts": "thirds"}, "'features' or 'halves'"),
    ],
)
def test_bad_combinations(change, message):
    with pytest.raises(InputError, match=message):
        replaced(CONFIG, change)
