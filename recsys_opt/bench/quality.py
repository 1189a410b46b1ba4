"""Quality of dense tables and tensor trains trained the same way.

Settings are chosen on the validation rows, from the same ones for every representation; then come several
seeds, whose test rows are looked at once.
"""

from __future__ import annotations

import math
import random
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

from recsys_opt.bench.quality_trial import (
    SETTINGS,
    SPACE,
    TUNE_RATE,
    Place,
    Row,
    Trial,
    Variant,
    end_with_parent,
    row_key,
    run_trial,
)
from recsys_opt.progress import Progress, SilentProgress

DENSE = Variant("dense", {"compression.tt_threshold": None})


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

    place: Place
    jobs: int = 1
    """Trials at a time, each in a process of its own with one thread."""
    finished: Sequence[Row] = ()
    """Trials that an earlier run made; they are not made again."""
    keep: Callable[[Row], None] = lambda row: None
    """Called with each new row as soon as its trial and all before it are done."""
    progress: Progress = field(default_factory=SilentProgress)

    def search(self, variants: Sequence[Variant], count: int) -> list[Row]:
        """Trains every variant with the same `count` settings, seed 0; those that begin with the dense model
        are left out: they take its settings (see `search_tuning`)."""
        return self._run(
            f"search, {count} settings each",
            [
                Trial("search", variant, 0, point)
                for variant in variants
                if not variant.after_dense
                for point in points(count)
            ],
        )

    def search_tuning(
        self,
        variants: Sequence[Variant],
        chosen: Mapping[str, Mapping[str, Any]],
        rates: Sequence[float],
    ) -> list[Row]:
        """Trains every tuned variant, seed 0, at each of `rates`, from a dense model of its settings."""
        dense = _dense_of(variants)
        start = Trial("search", dense, 0, chosen.get(dense.name, {}), keep=True)
        trials = [
            Trial("search", variant, 0, {**chosen.get(variant.name, {}), TUNE_RATE: rate})
            for variant in variants
            if variant.tuned
            for rate in rates
        ]
        rows = self._run(f"search of the tuning rate, {len(rates)} each", trials, start)
        shutil.rmtree(self.place.dense_run(0), ignore_errors=True)
        return rows

    def seeds(
        self, variants: Sequence[Variant], chosen: Mapping[str, Mapping[str, Any]], count: int
    ) -> list[Row]:
        """Trains every variant with its chosen settings for seeds 1 .. `count` (the search used seed 0)."""
        rows: list[Row] = []
        for seed in range(1, count + 1):
            dense = _dense_of(variants)
            trials = [Trial("seeds", v, seed, chosen.get(v.name, {})) for v in variants]
            start = Trial("seeds", dense, seed, chosen.get(dense.name, {}), keep=True)
            rows += self._run(f"seed {seed} of {count}", trials, start)
            shutil.rmtree(self.place.dense_run(seed), ignore_errors=True)
        return rows

    def _run(self, description: str, trials: Sequence[Trial], start: Trial | None = None) -> list[Row]:
        """The rows of `trials`, in their order; `start` trains the dense model that some begin with."""
        rows = {row_key(row): row for row in self.finished}
        missing = [trial for trial in trials if trial.key() not in rows]
        later = [trial for trial in missing if trial.variant.after_dense]
        first = [trial for trial in missing if not trial.variant.after_dense]
        if later and start is not None:
            first = [start, *(trial for trial in first if trial.key() != start.key())]
        self.progress.start(description, len(first) + len(later), "runs")
        with ProcessPoolExecutor(self.jobs, get_context("spawn"), initializer=end_with_parent) as pool:
            for some in (first, later):
                for row in pool.map(run_trial, [self.place] * len(some), some):
                    if row_key(row) not in rows and any(row_key(row) == t.key() for t in missing):
                        rows[row_key(row)] = row
                        self.keep(row)
                    auc = row.get("validation_auc")
                    shown = "-" if auc is None else f"{auc:.5f}"
                    self.progress.advance(1, last=f"{row['variant']} validation AUC {shown}")
        self.progress.finish()
        return [rows[trial.key()] for trial in trials]


def _dense_of(variants: Sequence[Variant]) -> Variant:
    return next((v for v in variants if v.name == DENSE.name), DENSE)


def best_settings(rows: Sequence[Row], variant: str) -> dict[str, Any]:
    """The settings of a variant's search with the best validation AUC."""
    own = [row for row in rows if row["variant"] == variant]
    found = max(own, key=lambda row: row.get("validation_auc") or 0.0)
    return {path: found[path] for path in SETTINGS if path in found}


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
