"""What the order of ids does to the work of a batch: distinct prefixes, and the time of the tensor-train op.

The largest tables of a dataset, all in one launch, one id per sample, batches of consecutive rows: training
rows, which decide the order, and later rows, many of whose ids the order does not know. Orders take turns in
the same run. Two layouts of the frequency order besides: neighbours in rank then differ not in the last digit
of the mixed radix but in the middle or the first one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys_opt.bench.measure import quantile
from recsys_opt.data.dataset import Dataset
from recsys_opt.data.id_order import ORDERS, ColumnLookups
from recsys_opt.embeddings.tt import TTEmbeddingBag
from recsys_opt.embeddings.tt_shapes import row_factors
from recsys_opt.errors import InputError
from recsys_opt.progress import Progress

HASHED = "as it is"
LAYOUTS = ("frequency, middle digit", "frequency, first digit")
POOL = 4
"""Batches that a candidate cycles through, where the rows suffice."""


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    rank: int = 32
    tables: int = 7
    """The largest so many."""
    batch_sizes: tuple[int, ...] = (2048, 16384, 65536)
    embedding_dim: int = 16
    repeats: int = 10

    def __post_init__(self) -> None:
        if min(self.rank, self.tables, self.embedding_dim, self.repeats, *self.batch_sizes) < 1:
            raise InputError("rank, tables, batch sizes, columns and repeats must all be at least 1")


@dataclass(frozen=True)
class Column:
    """A column's ids under every order."""

    p: tuple[int, ...]
    ids: dict[str, NDArray[np.int64]]  # order: [rows], of the training rows and all after them


def run(dataset: Dataset, settings: Settings, progress: Progress) -> list[dict[str, Any]]:
    """Measures; one row per batch size and order."""
    sizes = sorted(enumerate(dataset.info.sparse_columns), key=lambda c: -c[1].num_embeddings)
    start, stop = dataset.split("train")
    too_large = [b for b in settings.batch_sizes if b > stop - start]
    if too_large:
        raise InputError(
            f"a batch of {too_large[0]} is more than the {stop - start} training rows of {dataset.path}; "
            "leave it out"
        )
    progress.start("orders", min(settings.tables, len(sizes)), "columns")
    columns = []
    for column, described in sizes[: settings.tables]:
        ids = np.concatenate([np.asarray(p.sparse[:, column]) for p in dataset.labelled_arrays()])
        columns.append(_orders(ids[start:].astype(np.int64), stop - start, described.num_embeddings))
        progress.advance(1)
    torch.manual_seed(0)
    bags = [
        TTEmbeddingBag(math.prod(c.p), settings.embedding_dim, settings.rank, tt_p_shapes=c.p)
        for c in columns
    ]
    places = {"train": (0, stop - start), "later": (stop - start, dataset.info.labelled_rows - start)}
    cases = [(n, w, b) for w, n in places.items() for b in settings.batch_sizes if b <= n[1] - n[0]]
    progress.start("rows and batch sizes", len(cases), "cases")
    rows: list[dict[str, Any]] = []
    for (first, last), where, batch in cases:
        part = [Column(c.p, {name: ids[first:last] for name, ids in c.ids.items()}) for c in columns]
        rows += [{"rows": where, **row} for row in _measure(part, bags, settings, batch)]
        progress.advance(1)
    progress.finish()
    return rows


def _orders(ids: NDArray[np.int64], training_rows: int, num_embeddings: int) -> Column:
    lookups = ColumnLookups.empty(num_embeddings)
    lookups.add(ids[:training_rows], 0)
    p = row_factors(num_embeddings, 3)
    found = {HASHED: ids}
    for by in ORDERS:
        found[by] = lookups.order(by, 2048).new_ids()[ids].astype(np.int64)
    ranks = found["frequency"]
    for name, fastest in zip(LAYOUTS, (1, 0), strict=True):
        found[name] = laid_out(ranks, p, fastest)
    return Column(p, found)


def laid_out(ranks: NDArray[np.int64], p: Sequence[int], fastest: int) -> NDArray[np.int64]:
    """Ids whose digit `fastest` (0 or 1, of three) changes first as the rank grows, then the last digit."""
    slowest = 1 - fastest
    digits = {
        fastest: ranks % p[fastest],
        2: ranks // p[fastest] % p[2],
        slowest: ranks // (p[fastest] * p[2]),
    }
    return (digits[0] * p[1] + digits[1]) * p[2] + digits[2]


def _measure(
    columns: Sequence[Column], bags: Sequence[TTEmbeddingBag], settings: Settings, batch: int
) -> list[dict[str, Any]]:
    names = list(columns[0].ids)
    pool = min(POOL, len(columns[0].ids[HASHED]) // batch)
    work = {
        name: [
            np.stack([c.ids[name][k * batch : (k + 1) * batch] for c in columns]) for k in range(pool)
        ]  # [tables, batch]
        for name in names
    }
    tensors = {name: [torch.from_numpy(b.reshape(-1)) for b in batches] for name, batches in work.items()}
    upstream = torch.randn(batch, settings.embedding_dim * len(bags))

    def forward(ids: Tensor) -> Tensor:
        return TTEmbeddingBag.forward_group(bags, ids)

    def forward_only(ids: Tensor) -> None:
        with torch.no_grad():
            forward(ids)

    def both(ids: Tensor) -> None:
        for bag in bags:
            bag.zero_grad()
        forward(ids).backward(upstream)

    times = {
        "forward": _in_turns(forward_only, tensors, settings.repeats),
        "forward_backward": _in_turns(both, tensors, settings.repeats),
    }
    rows = []
    for name in names:
        row: dict[str, Any] = {"batch_size": batch, "order": name, **_distinct(columns, work[name])}
        for what, timing in times.items():
            row[f"{what}_ms"] = round(1e3 * quantile(timing[name], 0.5), 4)
            row[f"{what}_p20_ms"] = round(1e3 * quantile(timing[name], 0.2), 4)
            row[f"{what}_p80_ms"] = round(1e3 * quantile(timing[name], 0.8), 4)
            ratios = [t / h for t, h in zip(timing[name], timing[HASHED], strict=True)]
            row[f"{what}_ratio"] = round(quantile(ratios, 0.5), 3)
        rows.append(row)
    return rows


def _in_turns(
    call: Callable[[Tensor], None], batches: dict[str, list[Tensor]], repeats: int
) -> dict[str, list[float]]:
    """Seconds of each call; the orders take turns, so that a noisy machine is noisy for all alike."""
    found: dict[str, list[float]] = {name: [] for name in batches}
    for name, own in batches.items():
        call(own[0])
        found[name].clear()
    for k in range(repeats):
        for name, own in batches.items():
            began = time.perf_counter()
            call(own[k % len(own)])
            found[name].append(time.perf_counter() - began)
    return found


def _distinct(columns: Sequence[Column], batches: Sequence[NDArray[np.int64]]) -> dict[str, int]:
    """Distinct ids, prefixes and middle indices a batch, summed over tables, mean over batches."""
    totals = np.zeros(3)
    for batch in batches:
        for column, ids in zip(columns, batch, strict=True):
            prefixes = np.unique(ids // column.p[2])
            totals += (np.unique(ids).size, prefixes.size, np.unique(prefixes % column.p[1]).size)
    names = ("distinct_ids", "distinct_prefixes", "distinct_middle_indices")
    return {name: round(float(t) / len(batches)) for name, t in zip(names, totals, strict=True)}
