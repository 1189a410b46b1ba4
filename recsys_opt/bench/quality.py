"""Quality of dense tables and tensor trains trained the same way.

Settings are chosen on the validation rows, from the same ones for every representation; then come several
seeds, whose test rows are looked at once.
"""

from __future__ import annotations

import math
import random
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from recsys_opt.progress import Progress, SilentProgress
from recsys_opt.training.config import TrainingConfig, replaced
from recsys_opt.training.trainer import TrainResult, train

# Ranges searched, by dotted path; a variant without tensor trains is not touched by core_lr.
SPACE: dict[str, tuple[float, float]] = {
    "optimizer.mlp_lr": (0.003, 0.008),
    "optimizer.table_lr": (0.015, 0.1),
    "optimizer.core_lr": (0.005, 0.03),
}


@dataclass(frozen=True)
class Variant:
    """A way to represent the tables: a name and what it changes in the configuration."""

    name: str
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class Trial:
    """One training run and what it came to."""

    variant: str
    seed: int
    settings: Mapping[str, Any]
    result: TrainResult

    def row(self, stage: str) -> dict[str, Any]:
        """A row of the record; a trial of the search says nothing about the test rows."""
        row: dict[str, Any] = {"stage": stage, "variant": self.variant, "seed": self.seed, **self.settings}
        for split, metrics in (("validation", self.result.validation), ("test", self.result.test)):
            if metrics and not (stage == "search" and split == "test"):
                values = metrics.to_json()
                del values["reliability"]
                row |= {f"{split}_{key}": value for key, value in values.items()}
        row["embedding_bytes"] = self.result.embedding_bytes
        row["dense_embedding_bytes"] = self.result.dense_embedding_bytes
        row["samples_per_s"] = self.result.samples_per_s
        return row


def points(count: int) -> list[dict[str, float]]:
    """`count` settings spread over SPACE, the same on every call and for every variant.

    Each range is cut into `count` parts of equal ratio and every part is used once (a Latin hypercube).
    """
    rng = random.Random(0)
    columns = {}
    for path, (low, high) in SPACE.items():
        places = [(i + 0.5) / count for i in range(count)]
        rng.shuffle(places)
        columns[path] = [round_to_two_digits(low * (high / low) ** p) for p in places]
    return [{path: columns[path][i] for path in SPACE} for i in range(count)]


def round_to_two_digits(value: float) -> float:
    """0.01234 -> 0.012, so that a chosen setting is what one would write."""
    return float(f"{value:.2g}")


def run_trial(task: tuple[str, str, TrainingConfig, Mapping[str, Any]]) -> Trial:
    """Trains one configuration in a temporary run folder, without checkpoints."""
    dataset, variant, config, settings = task
    if config.device == "cpu":
        import torch

        torch.set_num_threads(1)  # trials run beside each other
    with tempfile.TemporaryDirectory() as folder:
        result = train(replaced(config, {"checkpoint_every_s": None}), dataset, Path(folder) / "run")
    return Trial(variant, config.seed, settings, result)


def run_trials(
    tasks: Sequence[tuple[str, str, TrainingConfig, Mapping[str, Any]]],
    jobs: int,
    report: Callable[[Trial], None],
) -> list[Trial]:
    """Runs trials, `jobs` at a time, each in its own process with one thread."""
    trials = []
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for trial in pool.map(run_trial, tasks):
            report(trial)
            trials.append(trial)
    return trials


def search(
    dataset: str,
    config: TrainingConfig,
    variants: Sequence[Variant],
    count: int,
    jobs: int,
    progress: Progress | None = None,
) -> list[Trial]:
    """Trains every variant with the same `count` settings, seed 0."""
    tasks = [
        (dataset, variant.name, replaced(config, {**variant.changes, **point, "seed": 0}), point)
        for variant in variants
        for point in points(count)
    ]
    return _shown(f"search, {count} settings each", tasks, jobs, progress)


def best(trials: Sequence[Trial], variant: str) -> Trial:
    """The trial of a variant with the best validation AUC."""
    return max(
        (t for t in trials if t.variant == variant),
        key=lambda t: t.result.validation.auc or 0.0 if t.result.validation else 0.0,
    )


def seeds(
    dataset: str,
    config: TrainingConfig,
    variants: Sequence[Variant],
    chosen: Mapping[str, Mapping[str, Any]],
    count: int,
    jobs: int,
    progress: Progress | None = None,
) -> list[Trial]:
    """Trains every variant with its chosen settings for seeds 1 .. `count` (the search used seed 0)."""
    tasks = [
        (dataset, v.name, replaced(config, {**v.changes, **chosen[v.name], "seed": seed}), chosen[v.name])
        for seed in range(1, count + 1)
        for v in variants
    ]
    return _shown(f"{count} seeds each", tasks, jobs, progress)


def _shown(
    description: str,
    tasks: Sequence[tuple[str, str, TrainingConfig, Mapping[str, Any]]],
    jobs: int,
    progress: Progress | None,
) -> list[Trial]:
    progress = progress or SilentProgress()
    progress.start(description, len(tasks), "runs")

    def report(trial: Trial) -> None:
        metrics = trial.result.validation
        shown = "-" if metrics is None or metrics.auc is None else f"{metrics.auc:.5f}"
        progress.advance(1, last=f"{trial.variant} validation AUC {shown}")

    trials = run_trials(tasks, jobs, report)
    progress.finish()
    return trials


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 for one value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def paired_difference(a: Sequence[float], b: Sequence[float]) -> dict[str, float]:
    """Mean of a - b over pairs with the same seed, its spread and its standard error."""
    differences = [x - y for x, y in zip(a, b, strict=True)]
    mean, spread = mean_and_spread(differences)
    return {"mean": mean, "spread": spread, "standard_error": spread / math.sqrt(len(differences))}
