"""Which curve tells best what share of the lookups to come the hottest rows will take.

Every way to judge a ranking by the lookups seen (`recsys_opt.data.access_curve`) is held against lookups that
it has not seen: those of a distribution that is known, and those that came later in a trace and a dataset.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_opt import _access
from recsys_opt.data.access_counters import count
from recsys_opt.data.access_curve import AccessCurve, AccessCurves
from recsys_opt.data.dataset import Dataset
from recsys_opt.data.table_traces import TableTraces
from recsys_opt.errors import InputError
from recsys_opt.progress import Progress, SilentProgress

Array = NDArray[Any]
WAYS = {
    "in sample": "in_sample",
    "random halves": "random_halves",
    "time halves": "time_halves",
    "leave one out": "leave_one_out",
    "leave one out less drift": "forecast",
}
HOT_SHARES = (0.01, 0.1, 0.3)
LEAST_ROWS = 1000
"""Smaller tables of a dataset fit anywhere."""
EXPONENT = 1.05


def known(
    num_embeddings: int, lookups: Sequence[int], seed: int = 0, progress: Progress | None = None
) -> Iterator[dict[str, Any]]:
    """A Zipf table whose row probabilities are known: they are the truth that a ranking is judged by."""
    progress = progress or SilentProgress()
    rng = np.random.default_rng(seed)
    probability = np.arange(1, num_embeddings + 1, dtype=np.float64) ** -EXPONENT
    probability /= probability.sum()
    rows = np.arange(num_embeddings, dtype=np.int32 if num_embeddings < 1 << 31 else np.int64)
    progress.start("tables of known truth", len(lookups), "tables")
    for n in lookups:
        halves = []
        total = np.zeros(num_embeddings, dtype=np.int64)
        for _ in range(2):
            drawn = rng.poisson(probability * (n / 2))
            total += drawn
            counters = _access.Counters(num_embeddings)
            counters.add_counts(rows, drawn.astype(np.uint64))
            halves.append(counters)
        ranked = _access.ranked(*halves)
        curves = AccessCurves.of(ranked, halves[1].lookups, num_embeddings)
        # Within a class of equal counts the order is by ids, which tell nothing: its mass is spread evenly.
        mass = _mass_by_count(total, probability, ranked["counts"])
        x = np.concatenate([[0.0], np.cumsum(ranked["rows"]), [num_embeddings]])
        y = np.concatenate([[0.0], np.cumsum(mass), [1.0]])
        yield from _rows(
            f"Zipf {EXPONENT}", f"{n:.0e} lookups", curves, lambda at, x=x, y=y: np.interp(at, x, y)
        )
        progress.advance(1)
    progress.finish()


def _mass_by_count(total: Array, probability: Array, counts: Array) -> Array:
    """Probability of the rows of each of `counts`."""
    where = np.searchsorted(-counts, -total)
    seen = total > 0
    found: Array = np.bincount(where[seen], weights=probability[seen], minlength=len(counts))
    return found


def later_in_trace(
    tables: int, batch_size: int, batches: int, seed: int = 0, progress: Progress | None = None
) -> Iterator[dict[str, Any]]:
    """Tables of `data tables`: ranked by `batches` batches, judged by as many that follow."""
    progress = progress or SilentProgress()
    traces = TableTraces(tables=tables, batch_size=batch_size, seed=seed)
    progress.start("tables of a trace", tables, "tables")
    for t, spec in enumerate(traces.specs):
        ids = [traces.lookups(t, b)[1] for b in range(2 * batches)]
        seen, later = np.concatenate(ids[:batches]), np.concatenate(ids[batches:])
        yield from _later("trace", spec.config.name, spec.config.num_embeddings, seen, later)
        progress.advance(1)
    progress.finish()


def later_in_dataset(
    dataset: Dataset, share: float = 0.5, progress: Progress | None = None
) -> Iterator[dict[str, Any]]:
    """A dataset's large columns: ranked by the first `share` of its rows, judged by the others."""
    progress = progress or SilentProgress()
    parts = [part.sparse for part in dataset.labelled_arrays()]
    columns = [
        c for c, column in enumerate(dataset.info.sparse_columns) if column.num_embeddings >= LEAST_ROWS
    ]
    if not columns:
        raise InputError(f"{dataset.path} has no column of {LEAST_ROWS} ids or more to judge")
    progress.start("columns of the dataset", len(columns), "columns")
    for c in columns:
        ids = np.concatenate([part[:, c] for part in parts])
        middle = int(share * len(ids))
        column = dataset.info.sparse_columns[c]
        yield from _later("dataset", column.name, column.num_embeddings, ids[:middle], ids[middle:])
        progress.advance(1)
    progress.finish()


def _later(data: str, name: str, num_embeddings: int, seen: Array, later: Array) -> Iterator[dict[str, Any]]:
    if len(seen) < 2 or not len(later):
        return
    halves = [_access.Counters(num_embeddings) for _ in range(2)]
    middle = len(seen) // 2
    for counters, part in zip(halves, (seen[:middle], seen[middle:]), strict=True):
        count([counters], [part], lambda _, position: f"{name}, {position}")
    ranked = _access.ranked(*halves)
    curves = AccessCurves.of(ranked, halves[1].lookups, num_embeddings)
    ranking = _access.unpack_ranking(ranked["ids"], ranked["rows"], num_embeddings)
    judged = np.bincount(later, minlength=num_embeddings)
    met = np.concatenate([[0], np.cumsum(judged[ranking]), [len(later)]]) / len(later)
    ranks = np.concatenate([np.arange(len(ranking) + 1), [num_embeddings]])
    # Behind the ranked rows all others follow, of which nothing is known: spread evenly.
    yield from _rows(data, name, curves, lambda at: np.interp(at, ranks, met))


def _rows(data: str, name: str, curves: AccessCurves, truth: Any) -> Iterator[dict[str, Any]]:
    """A row per way: its errors over the curve, and the share of lookups that miss the hottest rows."""
    grid = curves.in_sample.rows
    true = truth(grid)
    for way, attribute in WAYS.items():
        curve: AccessCurve | None = getattr(curves, attribute)
        if curve is None:
            continue
        error = curve.share - true
        row: dict[str, Any] = {
            "data": data,
            "table": name,
            "rows": curve.num_embeddings,
            "way": way,
            "mean_error": float(error.mean()),
            "mean_absolute_error": float(np.abs(error).mean()),
            "largest_error": float(np.abs(error).max()),
            "drift": curves.drift,
        }
        for hot in HOT_SHARES:
            at = max(1.0, hot * curve.num_embeddings)
            row[f"missed_{hot}"] = 1 - curve.share_of(at)
            row[f"truly_missed_{hot}"] = float(1 - truth(at))
        yield row


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means over tables, by data and way."""
    found = []
    for data in dict.fromkeys(r["data"] for r in rows):
        for way in WAYS:
            mine = [r for r in rows if (r["data"], r["way"]) == (data, way)]
            if not mine:
                continue
            entry: dict[str, Any] = {"data": data, "way": way, "tables": len(mine)}
            for key in ("mean_error", "mean_absolute_error", "largest_error"):
                entry[key] = float(np.mean([r[key] for r in mine]))
            for hot in HOT_SHARES:
                told = np.array([r[f"missed_{hot}"] for r in mine])
                true = np.array([r[f"truly_missed_{hot}"] for r in mine])
                entry[f"missed_{hot}"] = float(told.mean())
                entry[f"truly_missed_{hot}"] = float(true.mean())
            found.append(entry)
    return found
