"""Lookups of many tables with the reuse of a production model, for planners' larger cases.

Modelled on dlrm_datasets (2021): 856 tables, 887 M lookups of 128 M distinct rows in a batch of 65,536, of
which 47 % are touched once, 15 % twice and so on (`PUBLISHED_REUSE`). A mixture of Poisson rates is fitted to
these shares; each table gets its own number of lookups, skew, coverage and pooling factor around it.

A trace folder holds

    tables.json             format "recsys_opt.tables": name, num_embeddings, embedding_dim, pooling_factor,
                            coverage and feature_names of each table; batches and batch_size
    batch_<b>_lengths.npy   i32 [tables, batch_size]: ids of each table's samples
    batch_<b>_values.npy    i64 [lookups]: ids, table after table, sample after sample (torchrec's order)

and any table's lookups in any batch can be made alone: `TableTraces.lookups(table, batch)`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import recsys_opt._synth as _synth
from recsys_opt.data.trace_drift import Drift
from recsys_opt.errors import InputError, RecsysOptError
from recsys_opt.files import FolderLock, atomic_path, write_json
from recsys_opt.progress import Progress, SilentProgress
from recsys_opt.tables import TableConfig

Array = NDArray[Any]
FORMAT = "recsys_opt.tables"
VERSION = 1
FILE_NAME = "tables.json"

REUSE_BINS = ("1", "2", "3-4", "5-8", "9-16", "17-32", "33+")
PUBLISHED_REUSE = (0.47, 0.15, 0.14, 0.11, 0.07, 0.03, 0.03)
PUBLISHED_MEAN_REUSE = 6.9
PUBLISHED_TABLES = 856
PUBLISHED_BATCH = 65_536
PUBLISHED_LOOKUPS = 887e6
MAX_TABLE_ROWS = 40_000_000
POOLING_SPREAD = 1.2
SKEW_SPREAD = 0.4
_BATCHES_PER_DAY = 1 << 32


def reuse_rates() -> tuple[Array, Array]:
    """(rates, rows of each rate per touched row): a Poisson mixture with the published reuse.

    Maximum likelihood by EM on the published shares, with the last bin's rates falling by a power law whose
    exponent gives the published mean.
    """
    low = np.geomspace(0.05, 32, 60)
    edges = [1, 2, 3, 5, 9, 17, 33]
    k = np.arange(400)
    log_factorial = np.array([math.lgamma(i + 1) for i in k])
    poisson = np.exp(k[:, None] * np.log(low) - low - log_factorial[:, None])  # [k, rates]
    bins = np.stack([poisson[a:b].sum(axis=0) for a, b in zip(edges, [*edges[1:], 400], strict=True)])
    seen = 1 - np.exp(-low)
    kernel = bins / seen  # of touched rows
    target = np.array(PUBLISHED_REUSE) / sum(PUBLISHED_REUSE)
    high = np.geomspace(45, 20_000, 30)
    weights = np.full(len(low), 1 / len(low))
    share = target[-1]
    exponent = 1.0
    for _ in range(30):  # what low rates put in the last bin, the high ones leave to them
        goal = target.copy()
        goal[-1] = max(target[-1] - share, 1e-9)
        goal /= goal.sum()
        for _ in range(200):
            weights *= kernel.T @ (goal / np.maximum(kernel @ weights, 1e-300))
        spill = float((kernel[-1] * weights).sum())
        share = max((target[-1] - spill) / (1 - spill), 0.0)
        mean_low = float((weights * low / seen).sum())
        wanted = (PUBLISHED_MEAN_REUSE - (1 - share) * mean_low) / share
        exponent = _solve_exponent(high, wanted)
    tail = high**-exponent
    touched = np.concatenate([weights * (1 - share), tail / tail.sum() * share])
    rates = np.concatenate([low, high])
    return rates[::-1], (touched / (1 - np.exp(-rates)))[::-1]


def _solve_exponent(rates: Array, mean: float) -> float:
    low, high = -2.0, 8.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        weights = rates**-middle
        if float((weights * rates).sum() / weights.sum()) > mean:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


@dataclass(frozen=True)
class TraceSpec:
    """One table of a trace."""

    config: TableConfig
    coverage: float
    """Share of the samples that look anything up."""
    pooling_factor: float
    """Mean ids of a sample that does."""
    widths: tuple[int, ...]
    """Rows of each rate, hottest first; the table's other rows are never touched."""
    masses: tuple[float, ...]
    """Lookups that go to them."""


class TableTraces:
    """Tables and their lookups; the same arguments give the same trace."""

    def __init__(
        self,
        *,
        tables: int = PUBLISHED_TABLES,
        batch_size: int = PUBLISHED_BATCH,
        seed: int = 0,
        embedding_dim: int = 64,
        shrink: int = 1,
        drift: Drift | None = None,
    ) -> None:
        """The tables, on a day.

        shrink  tables with so many times fewer rows: 65,536 / shrink samples have the published reuse
        drift   which day the lookups are of, and how far it is from day 0; the tables are the same every day
        """
        for what, value, least, most in (
            ("tables", tables, 1, 100_000),
            ("batch_size", batch_size, 1, 1 << 31),
            ("seed", seed, 0, (1 << 63) - 1),
            ("embedding_dim", embedding_dim, 1, 1 << 16),
            ("shrink", shrink, 1, 1 << 16),
        ):
            if not least <= value <= most:
                raise InputError(f"{what} = {value}; it must be between {least} and {most}")
        self.batch_size = batch_size
        self.seed = seed
        self.drift = drift or Drift()
        self.specs = _on_day(_draw_specs(tables, seed, embedding_dim, shrink), self.drift, seed)
        self._native = [
            _synth.TraceTable(
                spec.config.num_embeddings,
                seed,
                index,
                width=spec.widths,
                mass=spec.masses,
                coverage=spec.coverage,
                pooling_factor=spec.pooling_factor,
            )
            for index, spec in enumerate(self.specs)
        ]

    def lengths(self, table: int, batch: int) -> NDArray[np.int32]:
        """Ids per sample [batch_size]."""
        return self._native[table].lengths(self._batch(batch), self.batch_size)

    def lookups(self, table: int, batch: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """(lengths [batch_size], values [their sum]) of one table in one batch."""
        lengths = self.lengths(table, batch)
        values = self._native[table].values(self._batch(batch), int(lengths.sum()))
        return lengths, self.drift.rows(values, self.specs[table].config.num_embeddings, self.seed, table)

    def _batch(self, batch: int) -> int:
        return batch + self.drift.day * _BATCHES_PER_DAY


def _on_day(specs: list[TraceSpec], drift: Drift, seed: int) -> list[TraceSpec]:
    """With as many lookups as the day has."""
    found = []
    for spec, factor in zip(specs, drift.lookups(seed, len(specs)), strict=True):
        ids = spec.coverage * spec.pooling_factor * float(factor)
        covered = min(spec.coverage, ids)
        found.append(replace(spec, coverage=covered, pooling_factor=ids / covered) if drift.day else spec)
    return found


def _draw_specs(tables: int, seed: int, embedding_dim: int, shrink: int) -> list[TraceSpec]:
    random = np.random.default_rng([seed, tables])
    rates, per_touched = reuse_rates()
    batch = PUBLISHED_BATCH / shrink  # whose reuse is the published one
    # Ids per sample, spread as a log-normal and scaled to the published number of lookups.
    expected = random.lognormal(0.0, POOLING_SPREAD, tables)
    expected *= PUBLISHED_LOOKUPS / PUBLISHED_TABLES / PUBLISHED_BATCH / expected.mean()
    coverage = np.maximum(random.beta(4.0, 1.0, tables), 0.05)
    skew = random.normal(0.0, SKEW_SPREAD, tables)
    # Rows of each rate per lookup; tilted by the table's skew, with the sum over tables as fitted.
    tilt = np.exp(skew[:, None] * np.log(rates)[None, :])
    lookups = expected * batch
    numbers = lookups[:, None] / PUBLISHED_MEAN_REUSE * per_touched[None, :] * tilt
    numbers *= (lookups.sum() / PUBLISHED_MEAN_REUSE * per_touched / numbers.sum(axis=0))[None, :]
    spare = random.lognormal(0.3, 0.8, tables)
    specs = []
    for t in range(tables):
        # A rate that the table has less than one row of happens by chance: the sum over tables is kept.
        whole = np.floor(numbers[t] + random.random(len(rates))).astype(np.int64)
        if not whole.any():
            whole[-1] = 1
        some = whole > 0
        active = int(whole.sum())
        rows = int(min(max(active * (1 + spare[t]), active), max(MAX_TABLE_ROWS / shrink, active)))
        config = TableConfig(f"table_{t}", rows, embedding_dim)
        ids_per_sample = float((whole * rates).sum()) / batch
        covered = min(float(coverage[t]), ids_per_sample)
        specs.append(
            TraceSpec(
                config=config,
                coverage=covered,
                pooling_factor=ids_per_sample / covered,
                widths=tuple(int(n) for n in whole[some]),
                masses=tuple(float(m) for m in (whole * rates)[some]),
            )
        )
    return specs


@dataclass(frozen=True)
class Reuse:
    """How often the distinct rows of a trace are touched within a batch."""

    lookups: int
    rows_by_bin: tuple[int, ...]
    """Distinct rows per entry of `REUSE_BINS`, summed over batches."""

    @property
    def unique(self) -> int:
        """Distinct rows, summed over batches."""
        return sum(self.rows_by_bin)

    @property
    def mean(self) -> float:
        """Lookups per distinct row."""
        return self.lookups / max(self.unique, 1)

    @property
    def shares(self) -> tuple[float, ...]:
        """Of the distinct rows, per bin."""
        return tuple(n / max(self.unique, 1) for n in self.rows_by_bin)


def measure_reuse(traces: TableTraces, batch: int = 0, progress: Progress | None = None) -> Reuse:
    """Reuse in one batch, without writing anything."""
    progress = progress or SilentProgress()
    progress.start("count reuse", len(traces.specs), "tables")
    bins, lookups = np.zeros(len(REUSE_BINS), dtype=np.int64), 0
    for table, spec in enumerate(traces.specs):
        _, values = traces.lookups(table, batch)
        bins += np.array(_synth.reuse_histogram(values, spec.config.num_embeddings))
        lookups += len(values)
        progress.advance(1)
    progress.finish()
    return Reuse(lookups, tuple(int(n) for n in bins))


def write_traces(
    traces: TableTraces, folder: Path, *, batches: int = 1, progress: Progress | None = None
) -> Reuse:
    """Writes a trace folder, tables.json last; returns its reuse."""
    if batches < 1:
        raise InputError(f"batches = {batches}; it must be at least 1")
    progress = progress or SilentProgress()
    with FolderLock(folder):
        if (folder / FILE_NAME).exists():
            raise InputError(f"{folder} holds a trace already; remove it or choose another folder")
        for leftover in folder.glob(".*.partial"):  # of a killed run
            leftover.unlink()
        bins, lookups = np.zeros(len(REUSE_BINS), dtype=np.int64), []
        progress.start("write lookups", batches * len(traces.specs), "tables")
        for batch in range(batches):
            total = 0
            for more, found in _write_batch(traces, folder, batch):
                bins += np.array(found)
                total += more
                progress.advance(1)
            lookups.append(total)
        progress.finish()
        content = {
            "batch_size": traces.batch_size,
            "batches": batches,
            "lookups": lookups,
            "seed": traces.seed,
            "day": traces.drift.day,
            "drift": traces.drift.share if traces.drift.day else 0.0,
            "tables": [
                {
                    "name": spec.config.name,
                    "num_embeddings": spec.config.num_embeddings,
                    "embedding_dim": spec.config.embedding_dim,
                    "feature_names": list(spec.config.feature_names),
                    "pooling": spec.config.pooling,
                    "pooling_factor": spec.pooling_factor,
                    "coverage": spec.coverage,
                }
                for spec in traces.specs
            ],
        }
        write_json(folder / FILE_NAME, FORMAT, VERSION, content)
    return Reuse(sum(lookups), tuple(int(n) for n in bins))


def _write_batch(traces: TableTraces, folder: Path, batch: int) -> Iterator[tuple[int, list[int]]]:
    """Writes one batch, yielding (lookups, reuse by bin) of each table."""
    import shutil

    shape = (len(traces.specs), traces.batch_size)
    total = 0
    with atomic_path(folder / f"batch_{batch}_lengths.npy") as partial, open(partial, "wb") as file:
        _write_header(file, np.int32, shape)
        for table in range(len(traces.specs)):
            lengths = traces.lengths(table, batch)
            total += int(lengths.sum())
            file.write(lengths.tobytes())
    free = shutil.disk_usage(folder).free
    if 8 * total > free:
        raise RecsysOptError(
            f"batch {batch} has {total} lookups, {8 * total} bytes; {folder} has {free} bytes free: ask for "
            "fewer tables or a smaller batch"
        )
    with atomic_path(folder / f"batch_{batch}_values.npy") as partial, open(partial, "wb") as file:
        _write_header(file, np.int64, (total,))
        for table, spec in enumerate(traces.specs):
            _, values = traces.lookups(table, batch)
            file.write(values.tobytes())
            yield len(values), _synth.reuse_histogram(values, spec.config.num_embeddings)


def _write_header(file: Any, dtype: Any, shape: tuple[int, ...]) -> None:
    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
