"""Training a DLRM on a dataset folder into a run folder, from the start or from the last checkpoint."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from recsys_opt import ops
from recsys_opt.data.batches import Batch, BatchStream
from recsys_opt.data.dataset import Dataset
from recsys_opt.environment import environment
from recsys_opt.errors import InputError, RecsysOptError
from recsys_opt.files import FolderLock
from recsys_opt.integrations.tensorboard import ScalarWriter, open_scalar_writer
from recsys_opt.models.saved import describe_model, model_from_description
from recsys_opt.progress import Progress, SilentProgress
from recsys_opt.run_folder import MetricsLog, RunFolder
from recsys_opt.training.budget import with_chosen_tables, with_tables_of
from recsys_opt.training.checkpoint import (
    Checkpoint,
    Position,
    read_checkpoint,
    remove_leftovers,
    write_checkpoint,
)
from recsys_opt.training.config import TrainingConfig, differences, replaced
from recsys_opt.training.evaluate import evaluate, mixed_precision, products_of
from recsys_opt.training.initial import initial_model
from recsys_opt.training.metrics import Metrics, RecentMetrics
from recsys_opt.training.optimizers import ModelOptimizer
from recsys_opt.training.placement import is_placed, place_rows, with_plan


@dataclass(frozen=True)
class TrainResult:
    """What a run came to."""

    run: Path
    steps: int
    """Updates, over the whole run."""
    rows: int
    """Rows trained on, over the whole run."""
    samples_per_s: float | None
    """Speed of this process, without evaluations and checkpoints; None if nothing was left to train."""
    validation: Metrics | None
    """The last evaluation on the validation split; None without one."""
    test: Metrics | None
    """On the test split with the final weights; None without one."""
    embedding_bytes: int
    """Bytes of the embedding tables as they are represented."""
    dense_embedding_bytes: int
    """Bytes of the same tables as plain fp32 rows."""

    def to_json(self) -> dict[str, Any]:
        """JSON values only."""
        return {**dataclasses.asdict(self), "run": str(self.run)}


def train(
    config: TrainingConfig,
    dataset_path: Path | str,
    out: Path | str,
    *,
    resume: bool = False,
    final_checkpoint: bool = True,
    progress: Progress | None = None,
) -> TrainResult:
    """Trains on the dataset's "train" split; evaluates on "validation" on the way and on "test" at the end.

    dataset_path  a dataset folder
    out           the run folder; it must be new, unless `resume`
    resume        go on from the last checkpoint in `out`, or start anew where there is none; on the CPU, with
                  as many threads, the final weights are those of a run that was never interrupted
    final_checkpoint  write one at the end too, where the configuration has any: False for a run of which
                  the metrics are all that is wanted
    """
    dataset = Dataset(dataset_path)
    config = replaced(config, {"architecture.dense_features": len(dataset.info.dense_columns)})
    run = RunFolder(out)
    with FolderLock(run.path), torch.random.fork_rng(), products_of(config.precision):
        remove_leftovers(run)
        if run.exists() and not resume:
            raise InputError(
                f"{run.path} already holds a run; add --resume to go on with it, or choose another folder"
            )
        if run.exists():
            config = with_tables_of(config, run)
        else:
            config, _ = with_chosen_tables(config, dataset, progress)
        config = with_plan(config, dataset)
        return _Training(config, dataset, run, progress or SilentProgress(), final_checkpoint).to_the_end()


class _Training:
    """One run in progress."""

    def __init__(
        self,
        config: TrainingConfig,
        dataset: Dataset,
        run: RunFolder,
        progress: Progress,
        final_checkpoint: bool,
    ) -> None:
        self.config, self.dataset, self.run, self.progress = config, dataset, run, progress
        self.final_checkpoint = final_checkpoint
        self.first_row, stop = dataset.split("train")
        self.epoch_rows = min(stop - self.first_row, config.max_rows or stop)
        if self.epoch_rows == 0:
            raise InputError(f"the training split of {dataset.path} has no rows")
        self.steps_per_epoch = -(-self.epoch_rows // config.batch_size)
        self.total_steps = config.epochs * self.steps_per_epoch
        self.device = _device(config.device)
        checkpoint = self._compatible_checkpoint()
        if checkpoint:
            _, self.model = model_from_description(
                checkpoint.model,
                weights=checkpoint.path / "model.safetensors",
                device=self.device,
                cold_dir=config.placement.cold_dir,
            )
        else:
            self.model = initial_model(config, dataset, self.device, progress)
        self.optimizer = ModelOptimizer(self.model, config.optimizer)
        self.recent = RecentMetrics()
        self.position = Position(step=0, epoch=0, row=0, rows_seen=0, metrics_bytes=0)
        if checkpoint:
            self._restore(checkpoint)
        moved = checkpoint is not None and self._placed_anew(checkpoint)
        self.model_description = describe_model(config.architecture, self.model)
        if checkpoint is None or moved:
            run.write_description(
                {
                    "config": config.to_json(),
                    "dataset": _describe_dataset(dataset),
                    "model": self.model_description,
                    "environment": environment(),
                }
            )
        self.log = MetricsLog(run, self.position.metrics_bytes)
        self.board: ScalarWriter = open_scalar_writer(run.path, self.position.step)
        self.pending: list[tuple[int, Tensor, Tensor]] = []
        self.validation = self._last_validation()
        self.train_s, self.trained_rows = 0.0, 0
        self.interval_s, self.interval_rows = 0.0, 0

    def to_the_end(self) -> TrainResult:
        """Trains what is left, evaluates, closes the files."""
        try:
            self._train()
            test = None
            if self._has_rows("test"):
                test = evaluate(
                    self.model,
                    self.dataset,
                    "test",
                    precision=self.config.precision,
                    progress=self.progress,
                )
                self._record_evaluation("test", test)
            self.log.sync()
        finally:
            self.log.close()
            self.board.close()
        return TrainResult(
            run=self.run.path,
            steps=self.position.step,
            rows=self.position.rows_seen,
            samples_per_s=self.trained_rows / self.train_s if self.trained_rows else None,
            validation=self.validation,
            test=test,
            embedding_bytes=sum(t["storage_bytes"] for t in self.model_description["tables"]),
            dense_embedding_bytes=sum(t["dense_bytes"] for t in self.model_description["tables"]),
        )

    def _train(self) -> None:
        if self.position.step == self.total_steps:
            return
        rows_left = self.config.epochs * self.epoch_rows - self.position.rows_seen
        self.progress.start("training", rows_left, "samples")
        self.model.train()
        saved = time.monotonic()
        while self.position.epoch < self.config.epochs:
            stream = BatchStream(
                self.dataset,
                self.first_row + self.position.row,
                self.first_row + self.epoch_rows,
                self.config.batch_size,
            )
            mark = time.perf_counter()
            for batch in stream:
                self._update(batch)
                self.interval_s += time.perf_counter() - mark
                step, last = self.position.step, self.position.step == self.total_steps
                shown: dict[str, str] = {}
                evaluate_now = self._evaluation_due(step)
                if step % self.config.log_every == 0 or evaluate_now or last:
                    shown = self._log()
                if evaluate_now:
                    shown |= self._validate()
                if self._checkpoint_due(last, time.monotonic() - saved):
                    self._save()
                    saved = time.monotonic()
                self.progress.advance(batch.rows, **shown)
                mark = time.perf_counter()
        self.progress.finish()

    def _update(self, host_batch: Batch) -> None:
        batch = host_batch.to(self.device)
        # Before the backward pass: tables that fuse their update into it need the rate by then.
        self.optimizer.scale_learning_rates(self.config.schedule.factor(self.position.step, self.total_steps))
        with mixed_precision(self.device, self.config.precision):
            logits = self.model(batch.dense, batch.values)
        loss = F.binary_cross_entropy_with_logits(logits.float(), batch.labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.pending.append((self.position.step + 1, logits.detach(), batch.labels))
        self.interval_rows += batch.rows
        row = self.position.row + batch.rows
        epoch_done = row == self.epoch_rows
        self.position = dataclasses.replace(
            self.position,
            step=self.position.step + 1,
            epoch=self.position.epoch + epoch_done,
            row=0 if epoch_done else row,
            rows_seen=self.position.rows_seen + batch.rows,
        )

    def _evaluation_due(self, step: int) -> bool:
        if not self._has_rows("validation"):
            return False
        done = (step - 1) % self.steps_per_epoch + 1  # of this epoch, 1 .. steps_per_epoch
        count, steps = self.config.evals_per_epoch, self.steps_per_epoch
        return done * count // steps > (done - 1) * count // steps

    def _checkpoint_due(self, last: bool, elapsed_s: float) -> bool:
        every = self.config.checkpoint_every_s
        return every is not None and ((last and self.final_checkpoint) or elapsed_s >= every)

    def _collect(self) -> None:
        """Moves predictions of the last updates to `recent`; raises when one is not finite."""
        for step, logits, labels in self.pending:
            if not bool(torch.isfinite(logits).all()):
                raise RecsysOptError(
                    f"training diverged: the model's output at step {step} is not finite. Lower the learning "
                    "rates (--mlp-lr, --table-lr, --core-lr) or add --warmup 0.1, and start a new run"
                )
            self.recent.update(logits, labels)
        self.pending.clear()

    def _log(self) -> dict[str, str]:
        self._collect()
        loss, auc = self.recent.compute()
        rate = self.interval_rows / max(self.interval_s, 1e-9)
        self.train_s += self.interval_s
        self.trained_rows += self.interval_rows
        self.interval_s, self.interval_rows = 0.0, 0
        step = self.position.step
        entry = {
            "kind": "train",
            "step": step,
            "epoch": self.position.rows_seen / self.epoch_rows,
            "rows": self.position.rows_seen,
            "logloss": loss,
            "auc": auc,
            "learning_rate_factor": self.config.schedule.factor(step - 1, self.total_steps),
            "samples_per_s": round(rate, 1),
        }
        self.log.append(entry)
        for name in ("logloss", "auc", "learning_rate_factor", "samples_per_s"):
            self._draw(f"train/{name}", entry[name])
        return {"loss": f"{loss:.4f}", "AUC": "-" if auc is None else f"{auc:.4f}"}

    def _validate(self) -> dict[str, str]:
        metrics = evaluate(self.model, self.dataset, "validation", precision=self.config.precision)
        self.validation = metrics
        self._record_evaluation("validation", metrics)
        return {"validation AUC": "-" if metrics.auc is None else f"{metrics.auc:.4f}"}

    def _record_evaluation(self, split: str, metrics: Metrics) -> None:
        position = self.position
        self.log.append(
            {
                "kind": "evaluation",
                "split": split,
                "step": position.step,
                "epoch": position.rows_seen / self.epoch_rows,
                **metrics.to_json(),
            }
        )
        for name in ("logloss", "auc", "normalised_entropy", "accuracy", "calibration"):
            self._draw(f"{split}/{name}", getattr(metrics, name))

    def _draw(self, name: str, value: Any) -> None:
        if value is not None:
            self.board.add(name, float(value), self.position.step)

    def _save(self) -> None:
        self._collect()
        self.position = dataclasses.replace(self.position, metrics_bytes=self.log.sync())
        write_checkpoint(
            self.run,
            self.position,
            self.model,
            self.optimizer.state_dict(),
            {**self.recent.state(), "torch_rng": torch.get_rng_state()},
            {
                "config": self.config.to_json(),
                "model": self.model_description,
                "dataset": _describe_dataset(self.dataset),
            },
        )

    def _restore(self, checkpoint: Checkpoint) -> None:
        checkpoint.load_model(self.model)
        self.optimizer.load_state_dict(checkpoint.optimizer_state())
        state = checkpoint.trainer_state()
        torch.set_rng_state(state.pop("torch_rng"))
        self.recent.load_state(state)
        self.position = checkpoint.position

    def _placed_anew(self, checkpoint: Checkpoint) -> bool:
        """Moves the rows where the run goes on with another plan; whether it does."""
        now = self.config.placement
        if not now.hot_rows or is_placed(checkpoint.config.get("placement", {}), now):
            return False
        place_rows(self.model, now, self.progress, self.optimizer)
        return True

    def _compatible_checkpoint(self) -> Checkpoint | None:
        """The checkpoint to go on from; refuses a run of another configuration or dataset."""
        if not self.run.exists():
            return None
        description = self.run.description()
        before = TrainingConfig.from_json(description["config"])
        changed = differences(before, self.config)
        if bool(before.placement.hot_rows) != bool(self.config.placement.hot_rows):
            changed.append(f"placement.plan: {before.placement.plan!r} -> {self.config.placement.plan!r}")
        dataset = _describe_dataset(self.dataset)
        changed += [
            f"dataset {key}: {value!r} -> {dataset[key]!r}"
            for key, value in description["dataset"].items()
            if key in _IDENTITY and value != dataset[key]
        ]
        if changed:
            raise InputError(
                f"{self.run.path} cannot go on with other settings than it was started with "
                f"({'; '.join(changed)}); leave them as they were, or start a new run in another folder"
            )
        return read_checkpoint(self.run)

    def _last_validation(self) -> Metrics | None:
        entries = [e for e in self.run.metrics() if e.get("split") == "validation"]
        if not entries:
            return None
        extra = ("kind", "split", "step", "epoch")
        return Metrics.from_json({k: v for k, v in entries[-1].items() if k not in extra})

    def _has_rows(self, split: str) -> bool:
        start, stop = self.dataset.info.splits.get(split, (0, 0))
        return stop > start


# What makes two datasets the same one, wherever they lie.
_IDENTITY = ("name", "input_hash", "labelled_rows", "splits", "num_embeddings")


def _describe_dataset(dataset: Dataset) -> Mapping[str, Any]:
    info = dataset.info
    return {
        "path": str(dataset.path),
        "name": info.name,
        "input_hash": info.input_hash,
        "labelled_rows": info.labelled_rows,
        "splits": {name: list(rows) for name, rows in info.splits.items()},
        "num_embeddings": [column.num_embeddings for column in info.sparse_columns],
        "ids": dict(info.ids),
        "bayes": {k: dict(v) for k, v in info.bayes.items()} if info.bayes else None,
    }


def _device(name: str) -> torch.device:
    if name.startswith("cuda"):
        missing = [op for op in ("dense_bag", "dot_interaction") if not ops.has_cuda_kernel(op)]
        if missing:
            raise InputError(
                f"device = {name!r}, but {' and '.join(missing)} have no CUDA kernel in this installation; "
                "use --device cpu"
            )
        if not torch.cuda.is_available():
            raise InputError(f"device = {name!r}, but torch sees no CUDA device; use --device cpu")
    return torch.device(name)
