"""One trial of `bench quality`: a training run, or the conversion of one, and the row that it leaves."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import shutil
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from recsys_opt.data.dataset import Dataset
from recsys_opt.environment import commit
from recsys_opt.models.saved import describe_model
from recsys_opt.run_folder import RunFolder
from recsys_opt.training.budget import with_chosen_tables
from recsys_opt.training.config import TrainingConfig, replaced
from recsys_opt.training.evaluate import evaluate_run
from recsys_opt.training.initial import convert_run, wanted_tables
from recsys_opt.training.metrics import Metrics
from recsys_opt.training.trainer import train

# Settings that a trial may have of its own, by dotted path, and the range that a search covers; a variant
# without compressed tables is not touched by core_lr. Its range is wide: cores of tensor trains learn best at
# its upper end, the networks of deep hash embeddings below the middle.
CORE_RATE = "optimizer.core_lr"
SPACE: dict[str, tuple[float, float]] = {
    "optimizer.mlp_lr": (0.003, 0.008),
    "optimizer.table_lr": (0.015, 0.1),
    CORE_RATE: (0.001, 0.03),
}

TUNE_RATE = "tune_rate"
"""The setting that only tuned variants have: the share of the learning rates that the second pass has."""

SETTINGS = (*SPACE, TUNE_RATE)
"""All that trials of one variant and seed may differ in."""

AT_THE_END_S = 1e9
"""Between two checkpoints: longer than any trial, which leaves the one at its end."""

CHECKPOINT_EVERY_S = 300.0
"""Between two checkpoints of a trial that can be gone on with: short trials, of which there are many, write
none."""

Row = Mapping[str, Any]
"""A finished trial: its stage, variant, seed and settings, the metrics, the bytes of the tables."""


@dataclass(frozen=True)
class Variant:
    """A way to represent the tables: a name and what it changes in the configuration."""

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    after_dense: bool = False
    """Begins with the trained dense model of the same seed, not with weights drawn from the seed."""
    tuned: bool = False
    """After dense: one more pass over the training rows, at a share of the learning rates; otherwise nothing
    is trained, the tables are converted alone."""


@dataclass(frozen=True)
class Trial:
    """A training run to make."""

    stage: Literal["search", "seeds"]
    variant: Variant
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    keep: bool = False
    """Leave the run as the dense model that other trials of the seed begin with."""

    def folder_name(self) -> str:
        """Its own, since trials of a search run beside each other."""
        words = [self.stage, self.variant.name, self.seed, *self.settings.values()]
        return "-".join(map(str, words))

    def changes(self) -> dict[str, Any]:
        """What it changes in the configuration."""
        return {**self.variant.changes, **{k: v for k, v in self.settings.items() if k != TUNE_RATE}}

    def key(self) -> tuple[Any, ...]:
        """Equal for a trial and its row in a record."""
        return (self.stage, self.variant.name, self.seed, tuple(sorted(self.settings.items())))


def row_key(row: Row) -> tuple[Any, ...]:
    """`Trial.key` of a finished trial."""
    settings = {path: row[path] for path in SETTINGS if path in row}
    return (row["stage"], row["variant"], row["seed"], tuple(sorted(settings.items())))


@dataclass(frozen=True)
class Place:
    """Where trials train."""

    dataset: str
    config: TrainingConfig
    folder: Path
    """For run folders; a trained dense model that later trials begin with stays here."""
    resume: bool = False
    """Go on with the runs that an interrupted command left in the folder. A run then writes a checkpoint
    every `CHECKPOINT_EVERY_S`, and stays until it is done."""

    def dense_run(self, seed: int) -> Path:
        """The dense model of a seed."""
        return self.folder / f"dense-{seed}"


_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Has the kernel end this process when the command that started it ends, however that ends.

    A killed command would leave its trial training to the end, for nobody.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:  # it has ended already
        os._exit(1)


def run_trial(place: Place, trial: Trial) -> Row:
    """Trains one configuration, on one thread if on the CPU: trials run beside each other."""
    if place.config.device == "cpu":
        torch.set_num_threads(1)
    if trial.keep:
        every = CHECKPOINT_EVERY_S if place.resume else AT_THE_END_S
        return _train(place, trial, place.dense_run(trial.seed), checkpoint_every_s=every)
    run, trained = place.folder / trial.folder_name(), trial.variant.tuned or not trial.variant.after_dense
    if not (place.resume and trained):
        shutil.rmtree(run, ignore_errors=True)
    try:
        row = _after_dense(place, trial, run) if trial.variant.after_dense else _train(place, trial, run)
    except BaseException:
        if not place.resume:
            shutil.rmtree(run, ignore_errors=True)
        raise
    shutil.rmtree(run, ignore_errors=True)
    return row


def _train(place: Place, trial: Trial, run: Path, **changes: Any) -> dict[str, Any]:
    every = CHECKPOINT_EVERY_S if place.resume else None
    own = {**trial.changes(), "seed": trial.seed, "checkpoint_every_s": every}
    result = train(
        replaced(place.config, {**own, **changes}),
        place.dataset,
        run,
        resume=trial.keep or place.resume,
        final_checkpoint=trial.keep,
    )
    return _row(trial, result.validation, result.test, run) | {"samples_per_s": result.samples_per_s}


def _after_dense(place: Place, trial: Trial, run: Path) -> dict[str, Any]:
    config: TrainingConfig = replaced(place.config, trial.changes())
    if trial.variant.tuned:
        rates = {path: config.optimizer.learning_rate(kind) for path, kind in _RATES.items()}
        slower = {path: rate * trial.settings[TUNE_RATE] for path, rate in rates.items()}
        return _train(place, trial, run, init_from=str(place.dense_run(trial.seed)), **slower)
    fits = convert_run(place.dense_run(trial.seed), run, config.compression).fits
    dataset = Dataset(place.dataset)
    validation, test = (evaluate_run(run, dataset, split) for split in ("validation", "test"))
    return _row(trial, validation, test, run) | {
        "fit_error": {fit.name: fit.fit_error for fit in fits},
        "weighted_fit_error": {fit.name: fit.weighted_error for fit in fits},
    }


_SHAPES = ("tt_ranks", "tt_p_shapes", "tt_q_shapes")
_RATES: dict[str, Literal["mlp", "cores", "tables"]] = {
    "optimizer.mlp_lr": "mlp",
    "optimizer.table_lr": "tables",
    "optimizer.core_lr": "cores",
}


def tensor_trains(variant: Variant, config: TrainingConfig, dataset: Dataset) -> dict[str, Any]:
    """The shapes of the tensor trains that a variant means, by table, as its rows have them."""
    config, _ = with_chosen_tables(replaced(config, variant.changes), dataset)
    model = config.architecture.build(wanted_tables(config, dataset.info.sparse_columns), device="meta")
    return shapes_by_table(describe_model(config.architecture, model))


def shapes_by_table(model: Mapping[str, Any]) -> dict[str, Any]:
    """Ranks, row and column factors of a described model's tensor trains."""
    return {
        table["name"]: {key: list(table["options"][key]) for key in _SHAPES}
        for table in model["tables"]
        if "tt_ranks" in table["options"]
    }


def _row(trial: Trial, validation: Metrics | None, test: Metrics | None, run: Path) -> dict[str, Any]:
    """A row of the record; a trial of the search says nothing about the test rows."""
    row: dict[str, Any] = {
        "stage": trial.stage,
        "variant": trial.variant.name,
        "seed": trial.seed,
        **trial.settings,
        "commit": commit(),
    }
    for split, metrics in (("validation", validation), ("test", test)):
        if metrics and not (trial.stage == "search" and split == "test"):
            values = metrics.to_json()
            del values["reliability"]
            row |= {f"{split}_{key}": value for key, value in values.items()}
    model = RunFolder(run).description()["model"]
    stored, dense = (sum(t[what] for t in model["tables"]) for what in ("storage_bytes", "dense_bytes"))
    sizes = {"embedding_bytes": stored, "dense_embedding_bytes": dense}
    return row | sizes | {"tensor_trains": shapes_by_table(model)}
