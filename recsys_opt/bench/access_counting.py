"""Lookups counted a second: our counters beside numpy and polars, on the same ids in one run."""

from __future__ import annotations

import importlib
import importlib.util
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_opt import _access
from recsys_opt.bench.measure import Task, quantile, take_turns
from recsys_opt.data.access_count import CountOptions, count_statistics
from recsys_opt.data.access_counters import count
from recsys_opt.data.access_sampled import LEAST_SLOTS, slots_for
from recsys_opt.data.lookup_sources import BLOCK_ROWS, ArraySource
from recsys_opt.data.synth import SyntheticCriteo, usable_threads
from recsys_opt.progress import Progress, SilentProgress

Array = NDArray[Any]
OURS = "counters, 1 thread"
LARGE_TABLE = 40_000_000
EXPONENT = 1.05
SAMPLE_BYTES = 16_000_000


@dataclass(frozen=True)
class Case:
    """Ids of some tables."""

    name: str
    sizes: tuple[int, ...]
    ids: Array  # [samples, tables]; a column is one table's


def zipf_ids(rows: int, lookups: int, exponent: float, seed: int = 0) -> NDArray[np.int64]:
    """Ids of a power law over all rows of a table; which row is hot has nothing to do with its id."""
    rng = np.random.default_rng(seed)
    # The inverse of the continuous distribution between 1 and rows + 1.
    reach = (rows + 1.0) ** (1 - exponent) - 1
    rank = ((1 + reach * rng.random(lookups)) ** (1 / (1 - exponent))).astype(np.int64) - 1
    multiplier = next(n for n in range(int(0.618 * rows), 2 * rows) if np.gcd(n, rows) == 1)
    found: NDArray[np.int64] = np.minimum(rank, rows - 1) * multiplier % rows
    return found


def cases(samples: int) -> list[Case]:
    """The Kaggle columns with `samples` rows, and tables of 40 M rows with 10 times as many lookups."""
    made = SyntheticCriteo(max(samples, 1000), seed=1)
    sizes = tuple(c.num_embeddings for c in made.sparse_columns)
    kaggle = made.rows(0, samples).sparse
    zipf = zipf_ids(LARGE_TABLE, 10 * samples, EXPONENT)
    uniform = np.random.default_rng(1).integers(0, LARGE_TABLE, 10 * samples)
    return [
        Case("Kaggle, 26 columns of an int32 matrix", sizes, kaggle),
        Case(f"40 M rows, Zipf {EXPONENT}, int64", (LARGE_TABLE,), zipf[:, None]),
        Case("40 M rows, uniform, int32", (LARGE_TABLE,), uniform.astype(np.int32)[:, None]),
    ]


def measure(
    samples: int, *, rounds: int = 7, folder: Path | None = None, progress: Progress | None = None
) -> list[dict[str, Any]]:
    """A row per case and way; ways take turns."""
    progress = progress or SilentProgress()
    rows = []
    for case in cases(samples):
        with tempfile.TemporaryDirectory(dir=folder, prefix="recsys_opt_stats_") as work:
            ways = _ways(case, Path(work))
            progress.start(case.name, rounds * len(ways), "turns")
            turns = take_turns(
                {name: Task(run) for name, run in ways.items()},
                rounds=rounds,
                most_calls=3,
                done=lambda _: progress.advance(1),
            )
            progress.finish()
        for name, found in turns.items():
            timing = found.timing()
            ratios = found.ratios(turns[OURS])
            rows.append(
                {
                    "case": case.name,
                    "way": name,
                    "lookups": case.ids.size,
                    "lookups_per_s": case.ids.size / timing.median_s,
                    "lookups_per_s_p20": case.ids.size / timing.p80_s,
                    "lookups_per_s_p80": case.ids.size / timing.p20_s,
                    "times_as_long": quantile(ratios, 0.5),
                }
            )
    return rows


def _ways(case: Case, work: Path) -> Mapping[str, Callable[[], object]]:
    """What is timed. Counters are added to; the others make theirs anew, for they cannot do otherwise."""
    columns = [case.ids[:, c] for c in range(case.ids.shape[1])]
    counters = [_access.Counters(n) for n in case.sizes]
    plain = [np.zeros(n, dtype=np.uint32) for n in case.sizes]

    def ours(threads: int) -> None:
        for at in range(0, len(case.ids), BLOCK_ROWS):
            block = [column[at : at + BLOCK_ROWS] for column in columns]
            count(counters, block, lambda table, position: f"{table}, {position}", threads=threads)

    def bincount() -> None:
        for column, n in zip(columns, case.sizes, strict=True):
            np.bincount(column, minlength=n)

    def add_at() -> None:
        for column, counts in zip(columns, plain, strict=True):
            np.add.at(counts, column, np.uint32(1))

    ways: dict[str, Callable[[], object]] = {OURS: lambda: ours(1)}
    if usable_threads() > 1:
        ways[f"counters, {usable_threads()} threads"] = lambda: ours(usable_threads())
    seen = [_access.SampledCounters(n, 3 * len(case.ids) // 2 + LEAST_SLOTS, LEAST_SLOTS) for n in case.sizes]
    part = [_access.SampledCounters(n, *slots_for(SAMPLE_BYTES // len(case.sizes))) for n in case.sizes]
    ways["by the rows seen, 1 thread"] = partial(_add, seen, columns)
    ways[f"sampled in {SAMPLE_BYTES // 10**6} MB, 1 thread"] = partial(_add, part, columns)
    np.save(work / "ids.npy", case.ids)
    options = CountOptions(threads=usable_threads())
    ways[f"stats: read, count, rank, write; {usable_threads()} threads"] = lambda: count_statistics(
        ArraySource([work / "ids.npy"]), case.sizes, work / "stats.npz", options, overwrite=True
    )
    ways["numpy.bincount"] = bincount
    ways["numpy.add.at"] = add_at
    if importlib.util.find_spec("polars") is not None:
        ways[f"polars value_counts, {usable_threads()} threads"] = _polars(columns)
    return ways


def _add(counters: Sequence[_access.SampledCounters], columns: Sequence[Array]) -> None:
    for one, column in zip(counters, columns, strict=True):
        one.add(column, False)


def _polars(columns: list[Array]) -> Callable[[], object]:
    pl: Any = importlib.import_module("polars")
    series = [pl.Series(np.ascontiguousarray(column)) for column in columns]

    def run() -> None:
        for s in series:
            s.value_counts()

    return run
