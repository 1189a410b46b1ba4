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
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

from recsys_opt.environment import commit
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
    """One training run to make."""

    stage: Literal["search", "seeds"]
    variant: Variant
    seed: int
    settings: Mapping[str, Any]

    def key(self) -> tuple[Any, ...]:
        """Equal for a trial and its row in a record."""
        return (self.stage, self.variant.name, self.seed, tuple(sorted(self.settings.items())))


Row = Mapping[str, Any]
"""A finished trial: its stage, variant, seed and settings, the metrics, the bytes of the tables."""


def row_key(row: Row) -> tuple[Any, ...]:
    """`Trial.key` of a finished trial."""
    settings = {path: row[path] for path in SPACE if path in row}
    return (row["stage"], row["variant"], row["seed"], tuple(sorted(settings.items())))


def make_row(trial: Trial, result: TrainResult) -> dict[str, Any]:
    """A row of the record; a trial of the search says nothing about the test rows."""
    row: dict[str, Any] = {
        "stage": trial.stage,
        "variant": trial.variant.name,
        "seed": trial.seed,
        **trial.settings,
        "commit": commit(),
    }
    for split, metrics in (("validation", result.validation), ("test", result.test)):
        if metrics and not (trial.stage == "search" and split == "test"):
            values = metrics.to_json()
            del values["reliability"]
            row |= {f"{split}_{key}": value for key, value in values.items()}
    row["embedding_bytes"] = result.embedding_bytes
    row["dense_embedding_bytes"] = result.dense_embedding_bytes
    row["samples_per_s"] = result.samples_per_s
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


@dataclass(frozen=True)
class Comparison:
    """Where trials train, and what becomes of each when it is done."""

    dataset: str
    config: TrainingConfig
    jobs: int = 1
    """Trials at a time, each in a process of its own with one thread."""
    finished: Sequence[Row] = ()
    """Trials that an earlier run made; they are not made again."""
    keep: Callable[[Row], None] = lambda row: None
    """Called with each new row as soon as its trial and all before it are done."""
    progress: Progress = field(default_factory=SilentProgress)

    def run(self, description: str, trials: Sequence[Trial]) -> list[Row]:
        """The rows of `trials`, in their order."""
        rows = {row_key(row): row for row in self.finished}
        tasks = [(self.dataset, self.config, trial) for trial in trials if trial.key() not in rows]
        self.progress.start(description, len(tasks), "runs")
        with ProcessPoolExecutor(self.jobs, mp_context=get_context("spawn")) as pool:
            for row in pool.map(_run_trial, tasks):
                rows[row_key(row)] = row
                self.keep(row)
                auc = row.get("validation_auc")
                shown = "-" if auc is None else f"{auc:.5f}"
                self.progress.advance(1, last=f"{row['variant']} validation AUC {shown}")
        self.progress.finish()
        return [rows[trial.key()] for trial in trials]

    def search(self, variants: Sequence[Variant], count: int) -> list[Row]:
        """Trains every variant with the same `count` settings, seed 0."""
        return self.run(
            f"search, {count} settings each",
            [Trial("search", variant, 0, point) for variant in variants for point in points(count)],
        )

    def seeds(
        self, variants: Sequence[Variant], chosen: Mapping[str, Mapping[str, Any]], count: int
    ) -> list[Row]:
        """Trains every variant with its chosen settings for seeds 1 .. `count` (the search used seed 0)."""
        return self.run(
            f"{count} seeds each",
            [Trial("seeds", v, seed, chosen[v.name]) for seed in range(1, count + 1) for v in variants],
        )


def _run_trial(task: tuple[str, TrainingConfig, Trial]) -> dict[str, Any]:
    """Trains one configuration in a temporary run folder, without checkpoints."""
    dataset, config, trial = task
    if config.device == "cpu":
        import torch

        torch.set_num_threads(1)  # trials run beside each other
    changes = {**trial.variant.changes, **trial.settings, "seed": trial.seed, "checkpoint_every_s": None}
    with tempfile.TemporaryDirectory() as folder:
        return make_row(trial, train(replaced(config, changes), dataset, Path(folder) / "run"))


def best_settings(rows: Sequence[Row], variant: str) -> dict[str, Any]:
    """The settings of a variant's search with the best validation AUC."""
    own = [row for row in rows if row["variant"] == variant]
    found = max(own, key=lambda row: row.get("validation_auc") or 0.0)
    return {path: found[path] for path in SPACE}


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 for one value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def paired_difference(a: Sequence[float], b: Sequence[float]) -> dict[str, float]:
    """Mean of a - b over pairs with the same seed, its spread and its standard error."""
    differences = [x - y for x, y in zip(a, b, strict=True)]
    mean, spread = mean_and_spread(differences)
    return {"mean": mean, "spread": spread, "standard_error": spread / math.sqrt(len(differences))}


def summarise(rows: Sequence[Row], names: Sequence[str]) -> dict[str, Any]:
    """Mean and spread per variant, and the paired difference to the first."""
    summary: dict[str, Any] = {}
    values: dict[str, dict[str, list[float]]] = {}
    for name in names:
        own = sorted((r for r in rows if r["variant"] == name), key=lambda r: int(r["seed"]))
        values[name] = {
            what: [r[what] for r in own]
            for what in ("test_auc", "test_logloss", "test_accuracy", "test_calibration")
        }
        summary[name] = {
            "seeds": len(own),
            **{
                what: dict(zip(("mean", "spread"), mean_and_spread(v), strict=True))
                for what, v in values[name].items()
            },
            "test_auc_of_each_seed": values[name]["test_auc"],
            "embedding_bytes": own[0]["embedding_bytes"],
            "smaller": own[0]["dense_embedding_bytes"] / own[0]["embedding_bytes"],
        }
        for what in ("test_auc", "test_logloss") if name != names[0] else ():
            summary[name][f"{what}_difference"] = paired_difference(
                values[name][what], values[names[0]][what]
            )
    return summary
