import importlib.util
import json
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys_opt import ops
from recsys_opt.data.dataset import Dataset, array_path
from recsys_opt.errors import InputError, RecsysOptError
from recsys_opt.files import FolderLock, read_json, write_json
from recsys_opt.models.recipes import DLRMConfig
from recsys_opt.models.saved import load_model
from recsys_opt.run_folder import CHECKPOINT_FORMAT, VERSION, RunFolder
from recsys_opt.tensor_files import read_tensors
from recsys_opt.training import checkpoint as checkpoint_module
from recsys_opt.training import trainer as trainer_module
from recsys_opt.training.config import CompressionConfig, TrainingConfig, replaced
from recsys_opt.training.evaluate import evaluate, evaluate_run
from recsys_opt.training.initial import initial_model
from recsys_opt.training.optimizers import OptimizerConfig
from recsys_opt.training.schedule import ScheduleConfig
from recsys_opt.training.trainer import train
from tests.generated import COLUMNS, make_dataset
from tests.training.slowed import slow_steps

CONFIG = TrainingConfig(
    architecture=DLRMConfig(bottom_mlp=(16, 8), top_mlp=(16, 1)),
    optimizer=OptimizerConfig(algorithm="adagrad", mlp_lr=0.02, table_lr=0.05, core_lr=0.03),
    schedule=ScheduleConfig(warmup=0.1, decay=0.3),
    batch_size=100,  # does not divide the 4,800 training rows of a part; the last batch is whole
    epochs=2,
    log_every=7,
    evals_per_epoch=3,
)

FBGEMM = {"dense_representation": "fbgemm"}
needs_fbgemm = pytest.mark.skipif(
    importlib.util.find_spec("fbgemm_gpu") is None, reason="fbgemm-gpu-cpu is not installed"
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("data") / "dataset")


def weights(run: Path) -> bytes:
    return (run / "checkpoint" / "model.safetensors").read_bytes()


def lines(run: Path) -> list[dict]:
    """metrics.jsonl without what depends on the clock."""
    return [{k: v for k, v in e.items() if k != "samples_per_s"} for e in RunFolder(run).metrics()]


def interrupt(monkeypatch, step: int, config: TrainingConfig, dataset: Dataset, run: Path, **options) -> None:
    """Trains until an update fails, as if the machine had."""

    class StopError(Exception):
        pass

    update = trainer_module._Training._update

    def failing(self, batch):
        if self.position.step == step:
            raise StopError
        update(self, batch)

    with monkeypatch.context() as patch, pytest.raises(StopError):
        patch.setattr(trainer_module._Training, "_update", failing)
        train(config, dataset.path, run, **options)


def test_training_learns_and_reports(dataset, tmp_path):
    result = train(CONFIG, dataset.path, tmp_path / "run")
    assert result.steps == 2 * 48
    assert result.rows == 2 * 4800
    assert result.test.rows == 600
    assert result.test.auc > 0.65
    assert result.test.logloss < math.log(2)
    assert result.embedding_bytes == result.dense_embedding_bytes == 4 * 8 * sum(COLUMNS)
    entries = RunFolder(tmp_path / "run").metrics()
    evaluations = [(e["split"], e["step"]) for e in entries if e["kind"] == "evaluation"]
    assert evaluations == [("validation", s) for s in (16, 32, 48, 64, 80, 96)] + [("test", 96)]
    steps = [e["step"] for e in entries if e["kind"] == "train"]
    assert steps == sorted({*range(7, 97, 7), 16, 32, 48, 64, 80, 96})
    assert entries[-1]["auc"] == result.test.auc
    assert json.loads(json.dumps(result.to_json()))["test"]["rows"] == 600


def test_a_saved_model_predicts_as_the_trained_one(dataset, tmp_path):
    result = train(CONFIG, dataset.path, tmp_path / "run")
    assert evaluate_run(tmp_path / "run", dataset, "test") == result.test
    model = load_model(tmp_path / "run")
    assert evaluate(model, dataset, "test", batch_size=77).auc == pytest.approx(result.test.auc, abs=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_tensor_trains_are_multiplied_in_the_runs_precision(dataset, tmp_path, monkeypatch, precision):
    """Forward, backward and in evaluations; what the caller had set comes back."""

    def allowed() -> bool:
        setting = ops.tt_allow_bf16(False)
        ops.tt_allow_bf16(setting)
        return setting

    seen = []
    step = trainer_module.ModelOptimizer.step  # after the backward pass
    monkeypatch.setattr(
        trainer_module.ModelOptimizer, "step", lambda self: (seen.append(allowed()), step(self))
    )
    compression = CompressionConfig(tt_tables=("C3", "C4"), tt_rank=16)
    config = replaced(CONFIG, {"precision": precision, "epochs": 1, "compression": compression})
    ops.tt_allow_bf16(precision == "fp32")
    try:
        result = train(config, dataset.path, tmp_path / "run")
        assert set(seen) == {precision == "bf16"}
        assert evaluate_run(tmp_path / "run", dataset, "test") == result.test
        assert allowed() == (precision == "fp32")
    finally:
        ops.tt_allow_bf16(False)


def test_the_same_seed_gives_the_same_weights(dataset, tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        torch.rand(5)  # the caller's random state does not matter
        train(replaced(CONFIG, {"seed": seed, "epochs": 1}), dataset.path, tmp_path / name)
    assert weights(tmp_path / "a") == weights(tmp_path / "b") != weights(tmp_path / "c")
    assert lines(tmp_path / "a") == lines(tmp_path / "b")


def test_training_leaves_the_callers_random_state(dataset, tmp_path):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    train(replaced(CONFIG, {"epochs": 1}), dataset.path, tmp_path / "run")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("algorithm", ["sgd", "adagrad"])
@pytest.mark.parametrize(("every_s", "step"), [(0.0, 1), (0.0, 29), (0.0, 48), (0.0, 73), (1e9, 30)])
def test_a_resumed_run_ends_as_one_never_stopped(dataset, tmp_path, monkeypatch, algorithm, every_s, step):
    config = replaced(CONFIG, {"optimizer.algorithm": algorithm, "checkpoint_every_s": every_s})
    check_resuming(config, step, dataset, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["sgd", "adagrad"])
def test_a_resumed_run_of_tensor_trains_ends_as_one_never_stopped(dataset, tmp_path, monkeypatch, algorithm):
    changes = {"optimizer.algorithm": algorithm, "checkpoint_every_s": 0.0, "epochs": 1}
    config = replaced(CONFIG, changes | {"compression.tt_tables": ("C3", "C4"), "compression.tt_rank": 4})
    assert config.optimizer.table_update == "fused"
    check_resuming(config, 29, dataset, tmp_path, monkeypatch)


@needs_fbgemm
@pytest.mark.parametrize("algorithm", ["sgd", "adagrad"])
def test_a_resumed_run_of_fbgemm_tables_ends_as_one_never_stopped(dataset, tmp_path, monkeypatch, algorithm):
    config = replaced(CONFIG, {"optimizer.algorithm": algorithm, "checkpoint_every_s": 0.0, "epochs": 1})
    config = replaced(config, FBGEMM | {"compression.tt_tables": ("C3",)})
    check_resuming(config, 29, dataset, tmp_path, monkeypatch)


@pytest.mark.parametrize("algorithm", ["sgd", "adagrad"])
@pytest.mark.parametrize("step", [29, 40, 41])  # between and around two choices of the held rows
def test_a_resumed_run_of_held_rows_ends_as_one_never_stopped(
    dataset, tmp_path, monkeypatch, algorithm, step
):
    cache = {"compression.tt_cache_rows": 30, "compression.tt_cache_refresh_every": 20}
    config = replaced(CONFIG, {"optimizer.algorithm": algorithm, "checkpoint_every_s": 0.0, "epochs": 1})
    config = replaced(config, {"compression.tt_tables": ("C3", "C4"), **cache})
    check_resuming(config, step, dataset, tmp_path, monkeypatch)
    held = load_model(tmp_path / "run").embeddings.table("C3").hot.keys
    assert (held >= 0).all()


def check_resuming(config: TrainingConfig, step: int, dataset: Dataset, tmp_path: Path, monkeypatch) -> None:
    train(config, dataset.path, tmp_path / "whole")
    interrupt(monkeypatch, step, config, dataset, tmp_path / "run")
    train(config, dataset.path, tmp_path / "run", resume=True)
    for name in ("model", "optimizer", "trainer"):
        file = Path("checkpoint") / f"{name}.safetensors"
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")


def test_a_finished_run_resumes_to_itself(dataset, tmp_path):
    first = train(CONFIG, dataset.path, tmp_path / "run")
    before = weights(tmp_path / "run"), lines(tmp_path / "run")
    again = train(CONFIG, dataset.path, tmp_path / "run", resume=True)
    assert (weights(tmp_path / "run"), lines(tmp_path / "run")) == before
    assert again.test == first.test
    assert again.validation == first.validation
    assert again.samples_per_s is None


@pytest.mark.parametrize("follow", [True, False])
def test_a_copied_run_resumes(dataset, tmp_path, monkeypatch, follow):
    config = replaced(CONFIG, {"checkpoint_every_s": 0.0})
    train(config, dataset.path, tmp_path / "whole")
    interrupt(monkeypatch, 20, config, dataset, tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "copy", symlinks=not follow)
    if not follow:
        (tmp_path / "copy" / "checkpoint").unlink()  # as a file system without links would
    train(config, dataset.path, tmp_path / "copy", resume=True)
    assert weights(tmp_path / "copy") == weights(tmp_path / "whole")


def test_a_run_folder_is_not_overwritten_nor_written_twice(dataset, tmp_path):
    run = tmp_path / "run"
    with FolderLock(run), pytest.raises(InputError, match="being written by another process"):
        train(CONFIG, dataset.path, run)
    train(replaced(CONFIG, {"epochs": 1}), dataset.path, run)
    with pytest.raises(InputError, match="already holds a run; add --resume"):
        train(CONFIG, dataset.path, run)


def test_resuming_refuses_other_settings_and_data(dataset, tmp_path):
    train(replaced(CONFIG, {"epochs": 1}), dataset.path, tmp_path / "run")
    before = weights(tmp_path / "run")
    changed = replaced(CONFIG, {"optimizer.mlp_lr": 0.5})
    with pytest.raises(InputError, match=r"optimizer\.mlp_lr: 0\.02 -> 0\.5; epochs: 1 -> 2"):
        train(changed, dataset.path, tmp_path / "run", resume=True)
    other = make_dataset(tmp_path / "other", seed=1)
    with pytest.raises(InputError, match=r"dataset input_hash: 'seed 0"):
        train(replaced(CONFIG, {"epochs": 1}), other.path, tmp_path / "run", resume=True)
    assert weights(tmp_path / "run") == before
    free = replaced(CONFIG, {"epochs": 1, "checkpoint_every_s": 5.0})
    train(free, dataset.path, tmp_path / "run", resume=True)


def test_resuming_refuses_a_newer_or_damaged_checkpoint(dataset, tmp_path, monkeypatch):
    config = replaced(CONFIG, {"checkpoint_every_s": 0.0})
    interrupt(monkeypatch, 5, config, dataset, tmp_path / "run")
    file = tmp_path / "run" / "checkpoint" / "checkpoint.json"
    document = read_json(file, CHECKPOINT_FORMAT, VERSION)
    content = {k: v for k, v in document.items() if k not in ("format", "version")}
    write_json(file, CHECKPOINT_FORMAT, VERSION + 1, content)
    with pytest.raises(InputError, match=f"has version {VERSION + 1} of {CHECKPOINT_FORMAT}"):
        train(config, dataset.path, tmp_path / "run", resume=True)
    write_json(file, CHECKPOINT_FORMAT, VERSION, content)
    model = tmp_path / "run" / "checkpoint" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"model\.safetensors is damaged"):
        train(config, dataset.path, tmp_path / "run", resume=True)


def test_a_full_disk_leaves_the_last_checkpoint(dataset, tmp_path, monkeypatch):
    config = replaced(CONFIG, {"checkpoint_every_s": 0.0})
    train(config, dataset.path, tmp_path / "whole")
    write = checkpoint_module.write_tensors

    def full(path: Path, tensors) -> None:
        if path.parent.name.endswith("30") and path.name == "optimizer.safetensors":
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        write(path, tensors)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module, "write_tensors", full)
        with pytest.raises(RecsysOptError, match=r"step 30 .*No space left.*one before it is whole"):
            train(config, dataset.path, tmp_path / "run")
    assert RunFolder(tmp_path / "run").checkpoint_folder().name.endswith("29")
    assert not list((tmp_path / "run").glob(".checkpoint-*30*"))
    train(config, dataset.path, tmp_path / "run", resume=True)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="needs a small file system")
def test_a_really_full_disk(dataset, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "none", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(RecsysOptError, match="No space left on device"):
            train(replaced(CONFIG, {"checkpoint_every_s": 0.0}), dataset.path, disk / "run")
        assert not list((disk / "run").glob(".checkpoint-*/*.partial"))
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_loss_that_is_not_finite_names_the_step_and_keeps_the_checkpoint(dataset, tmp_path):
    bad = tmp_path / "bad"
    shutil.copytree(dataset.path, bad)
    dense = np.load(array_path(bad, "a", "dense"))
    dense[2345] = np.nan  # row 45 of step 24
    np.save(array_path(bad, "a", "dense"), dense)
    config = replaced(CONFIG, {"checkpoint_every_s": 0.0})
    with pytest.raises(RecsysOptError, match="output at step 24 is not finite"):
        train(config, bad, tmp_path / "run")
    assert RunFolder(tmp_path / "run").checkpoint_folder().name.endswith("23")
    with pytest.raises(RecsysOptError, match=r"at step \d+ is not finite.*Lower the learning"):
        diverging = {"optimizer.algorithm": "sgd", "optimizer.mlp_lr": 1e9, "schedule.warmup": 0.0}
        train(replaced(CONFIG, diverging), dataset.path, tmp_path / "diverged")
    assert RunFolder(tmp_path / "diverged").checkpoint_folder() is None


def test_bf16_stays_near_fp32(dataset, tmp_path):
    fp32 = train(replaced(CONFIG, {"epochs": 1}), dataset.path, tmp_path / "fp32")
    bf16 = train(replaced(CONFIG, {"epochs": 1, "precision": "bf16"}), dataset.path, tmp_path / "bf16")
    assert bf16.test.auc == pytest.approx(fp32.test.auc, abs=0.02)
    assert weights(tmp_path / "fp32") != weights(tmp_path / "bf16")
    assert load_model(tmp_path / "bf16").top[0].weight.dtype == torch.float32


@needs_fbgemm
@pytest.mark.parametrize("algorithm", ["sgd", "adagrad"])
def test_fbgemm_tables_train_as_dense_ones(dataset, tmp_path, algorithm):
    config = replaced(CONFIG, {"optimizer.algorithm": algorithm})
    dense = train(config, dataset.path, tmp_path / "dense")
    fused = train(replaced(config, FBGEMM), dataset.path, tmp_path / "fused")
    assert fused.test.auc == pytest.approx(dense.test.auc, abs=1e-3)
    assert fused.test.logloss == pytest.approx(dense.test.logloss, abs=1e-3)
    assert fused.embedding_bytes == dense.embedding_bytes
    assert evaluate_run(tmp_path / "fused", dataset, "test") == fused.test
    for name in ("model", "optimizer"):  # the files have the same tensors, so that either can be read
        ours, theirs = (
            read_tensors(tmp_path / run / "checkpoint" / f"{name}.safetensors") for run in ("fused", "dense")
        )
        assert set(ours) == set(theirs)
        assert all(ours[k].shape == theirs[k].shape for k in ours)
    moved = load_model(tmp_path / "fused").embeddings.table("C4").materialize()
    start = initial_model(config, dataset, torch.device("cpu")).embeddings.table("C4").materialize()
    assert (moved - start).abs().max() > 0.01
    with pytest.raises(InputError, match="dense_representation: 'dense' -> 'fbgemm'"):
        train(replaced(config, FBGEMM), dataset.path, tmp_path / "dense", resume=True)


def test_max_rows_and_splits_without_rows(tmp_path):
    data = make_dataset(tmp_path / "dataset", rows=1000)
    result = train(replaced(CONFIG, {"max_rows": 250, "epochs": 1}), data.path, tmp_path / "run")
    assert (result.rows, result.steps) == (250, 3)
    document = read_json(data.path / "dataset.json", "recsys_opt.dataset", 1)
    document["splits"] = {"train": [0, 1000]}
    del document["format"], document["version"]
    write_json(data.path / "dataset.json", "recsys_opt.dataset", 1, document)
    result = train(CONFIG, data.path, tmp_path / "all")
    assert result.test is result.validation is None
    document["splits"] = {"train": [5, 5]}
    write_json(data.path / "dataset.json", "recsys_opt.dataset", 1, document)
    with pytest.raises(InputError, match=r"training split .* has no rows"):
        train(CONFIG, data.path, tmp_path / "none")


def test_refusals(dataset, tmp_path):
    unknown = replaced(CONFIG, {"compression": CompressionConfig(tt_tables=("C9",))})
    with pytest.raises(InputError, match="C9"):
        train(unknown, dataset.path, tmp_path / "run")
    if not ops.has_cuda_kernel("dense_bag"):
        with pytest.raises(InputError, match="dense_bag and dot_interaction have no CUDA kernel"):
            train(replaced(CONFIG, {"device": "cuda"}), dataset.path, tmp_path / "gpu")
    train(replaced(CONFIG, {"epochs": 1}), dataset.path, tmp_path / "trained")
    other = make_dataset(tmp_path / "narrow", columns=(5, 5, 5, 5))
    with pytest.raises(InputError, match="prepare the dataset in the same way"):
        evaluate_run(tmp_path / "trained", other, "test")
    with pytest.raises(InputError, match="has no checkpoint"):
        load_model(tmp_path)


def _train_in_a_process(data: Path, run: Path, slower_s: float) -> None:
    torch.set_num_threads(1)
    slow_steps(slower_s)
    changes = {"batch_size": 50, "checkpoint_every_s": 0.02, "epochs": 1}
    train(replaced(CONFIG, changes), data, run, resume=True)


@pytest.mark.slow
def test_twenty_kills_change_nothing(tmp_path):
    """kill -9 at 20 random moments: the last checkpoint is always whole, and the end is the same bytes."""
    data = make_dataset(tmp_path / "dataset", rows=30_000)
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([__name__, "torch.utils.tensorboard"])  # importing takes longest

    def start(run: Path, slower_s: float = 0.0) -> multiprocessing.process.BaseProcess:
        process = processes.Process(target=_train_in_a_process, args=(data.path, run, slower_s))
        process.start()
        return process

    whole = start(tmp_path / "whole")
    whole.join()
    assert whole.exitcode == 0
    rng, run = np.random.default_rng(0), tmp_path / "run"
    for _ in range(20):
        process = start(run, 0.02)
        before, begun = RunFolder(run).checkpoint_folder(), time.monotonic()
        # The moment counts from the first new checkpoint, so that every process gets somewhere.
        while RunFolder(run).checkpoint_folder() == before and process.is_alive():
            assert time.monotonic() < begun + 120
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        found = RunFolder(run).checkpoint_document()
        assert found is not None
        assert found[1]["position"]["step"] > 0
    last = start(run)
    last.join()
    assert last.exitcode == 0
    assert weights(run) == weights(tmp_path / "whole")
    assert lines(run) == lines(tmp_path / "whole")
