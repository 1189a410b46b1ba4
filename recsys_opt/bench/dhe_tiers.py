"""A trained model's deep hash embeddings served through a cache: lookups by tier, error, AUC, time.

Stored are the rows of the ids that the training rows look up most often; the lookups of the test rows are
then counted, and the model is evaluated on them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recsys_opt.data.batches import BatchStream
from recsys_opt.data.dataset import Dataset
from recsys_opt.embeddings.dhe import DHEEmbeddingBag
from recsys_opt.embeddings.dhe_cache import CachedDHEBag, CentroidBag, most_frequent, tier_report
from recsys_opt.errors import InputError
from recsys_opt.models.dlrm import DLRM
from recsys_opt.models.saved import load_model
from recsys_opt.progress import Progress
from recsys_opt.training.evaluate import evaluate

_TIMED = 1024
_TIMES = 5


@dataclass(frozen=True)
class Settings:
    """What is measured: every combination; with 0 centroids the ids that are not stored are computed."""

    cache_rows: tuple[int, ...] = (1_000, 10_000)
    """Of a table at most."""
    centroids: tuple[int, ...] = (0, 1, 16, 256)
    tables: int = 5
    """So many of the largest are served through a cache; the others as they are."""

    def __post_init__(self) -> None:
        if min(*self.cache_rows, *self.centroids) < 0 or self.tables < 1:
            raise InputError("rows and centroids must be 0 or more, tables at least 1")


def run(
    folder: Path | str, dataset_path: Path | str, settings: Settings, progress: Progress
) -> list[dict[str, Any]]:
    """Measures; a row for each combination, the first for the model without a cache."""
    model, dataset = load_model(folder), Dataset(dataset_path)
    bags = _largest(model, settings.tables)
    trained, tested = (_lookups(dataset, split, model, bags) for split in ("train", "test"))
    combinations = [(rows, count) for rows in settings.cache_rows for count in settings.centroids]
    progress.start("caches", 1 + len(combinations), "caches")
    exact = evaluate(model, dataset, "test")
    found: list[dict[str, Any]] = [
        {"cache_rows": 0, "centroids": 0, "exact_share": 0.0, "auc": exact.auc, "logloss": exact.logloss}
        | {"bytes": sum(bag.storage_bytes() for bag in bags.values())}
        | {"us_per_id": round(_us_per_id(list(bags.values())), 3)}
    ]
    for rows, count in combinations:
        caches = {}
        for name, bag in bags.items():
            hot = most_frequent(trained[name], rows)
            rare = trained[name][~torch.isin(trained[name], hot)]
            caches[name] = CachedDHEBag.of(bag, hot, centroids=count, cold_ids=rare[: max(4096, 2 * count)])
        reports = [tier_report(caches[name], bags[name], tested[name]) for name in bags]
        metrics = evaluate(model.with_tables(caches), dataset, "test")
        cold = [cache.cold for cache in caches.values()]
        found.append(
            {
                "cache_rows": rows,
                "centroids": count,
                "exact_share": sum(r.exact_share for r in reports) / len(reports),
                "approximate_share": sum(r.approximate_share for r in reports) / len(reports),
                "rms_error": max(r.rms_error for r in reports),
                "max_error": max(r.max_error for r in reports),
                "auc": metrics.auc,
                "logloss": metrics.logloss,
                "bytes": sum(r.bytes for r in reports),
                "us_per_id": round(_us_per_id(cold), 3),
                "tables": {name: r.to_json() for name, r in zip(bags, reports, strict=True)},
            }
        )
        progress.advance(1, cache=f"{rows} rows, {count} centroids")
    progress.finish()
    return found


def _largest(model: DLRM, count: int) -> dict[str, DHEEmbeddingBag]:
    tables = {c.name: model.embeddings.table(c.name) for c in model.embeddings.configs}
    hashed = {name: bag for name, bag in tables.items() if isinstance(bag, DHEEmbeddingBag)}
    if not hashed:
        raise InputError("the run has no deep hash embedding; train one with --representation dhe or select")
    return dict(sorted(hashed.items(), key=lambda item: -item[1].num_embeddings)[:count])


def _lookups(
    dataset: Dataset, split: str, model: DLRM, bags: dict[str, DHEEmbeddingBag]
) -> dict[str, Tensor]:
    """The ids that the rows of a split look up in each table."""
    names = model.embeddings.feature_names
    start, stop = dataset.split(split)
    batches = [batch.values.view(len(names), -1) for batch in BatchStream(dataset, start, stop, 8192)]
    ids = torch.cat(batches, dim=1)
    return {name: ids[names.index(name)].long() for name in bags}


def _us_per_id(bags: Sequence[DHEEmbeddingBag | CentroidBag] | Sequence[Any]) -> float:
    """Time of one row that is not stored, different ids, on one thread; the best of a few."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    best = float("inf")
    try:
        for bag in bags[:1]:
            ids = torch.arange(min(_TIMED, bag.num_embeddings))
            for _ in range(_TIMES):
                began = time.perf_counter()
                with torch.inference_mode():
                    bag.rows(ids)
                best = min(best, (time.perf_counter() - began) / len(ids))
    finally:
        torch.set_num_threads(threads)
    return 1e6 * best


def text(rows: Sequence[dict[str, Any]]) -> str:
    """A table for a person."""
    lines = [
        f"{'rows':>8}{'centroids':>11}{'stored':>9}{'approx.':>9}{'rms':>8}{'max':>8}{'us/id':>8}"
        f"{'MB':>9}{'AUC':>10}{'minus exact':>13}"
    ]
    for row in rows:
        lines.append(
            f"{row['cache_rows']:>8}{row['centroids'] or '-':>11}{row['exact_share']:>9.1%}"
            f"{row.get('approximate_share', 0.0):>9.1%}{row.get('rms_error', 0.0):>8.2f}"
            f"{row.get('max_error', 0.0):>8.2f}{row['us_per_id']:>8.2f}{row['bytes'] / 1e6:>9.2f}"
            f"{row['auc']:>10.5f}{row['auc'] - rows[0]['auc']:>+13.5f}"
        )
    lines.append(
        "rms: error of the approximate answers over the rows' spread (1: one row for all would do as well)\n"
        "max: over their mean norm; us/id: of a row that is not stored; shares: of the test rows' lookups"
    )
    return "\n".join(lines)
