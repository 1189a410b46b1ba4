"""Statistics of tables whose rows are too many for a counter each (csrc/access/sampled.h).

A random part of the rows, 1 in 2^level, is counted exactly; by them the histogram, and with it the curves
and the number of rows seen, are estimated without bias, with a standard error that is told. The head of the
ranking comes from a summary that has every row with more than a known number of lookups. Of the rows behind
the head only the sampled ones are known, so that the curve to plan with goes straight from the head on: a
plan cannot tell those rows apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_opt import _access
from recsys_opt.data.access_curve import AccessCurve, AccessCurves, curve_rows, in_sample, leave_one_out

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
SAMPLE_SLOT_BYTES = 24
HEAD_SLOT_BYTES = 16
HEAD_SHARE = 0.25
"""Of the memory."""
LEAST_SLOTS = 16
_FEW = 1 << 12


@dataclass(frozen=True, eq=False)
class Sampling:
    """How well a table is known that was not counted row by row."""

    level: int
    """1 in 2^level rows were counted."""
    known: int
    """Rows in the ranking."""
    head_rows: int
    """So many rows at its start are the hottest, up to `head_error`."""
    head_error: int
    """A head row has at most so many lookups less than its estimate; a row that is not in the head has at
    most twice as many lookups."""
    sample_slots: int
    head_slots: int
    share_error: Floats
    """One standard error of the in-sample share, at `curve_rows(num_embeddings)`."""

    def share_error_of(self, rows: float, num_embeddings: int) -> float:
        """One standard error of the share that the hottest `rows` rows have."""
        return float(np.interp(rows, curve_rows(num_embeddings), self.share_error))


def slots_for(memory_bytes: int) -> tuple[int, int]:
    """Slots of the sample and of the summary that fit into the memory."""
    head = int(HEAD_SHARE * memory_bytes) // HEAD_SLOT_BYTES
    return (memory_bytes - head * HEAD_SLOT_BYTES) // SAMPLE_SLOT_BYTES, head


def exact_ranked(known: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """What `_access.ranked` gives, of rows that are all counted, in the order of the ranking."""
    early, late = known["early"].astype(np.int64), known["late"].astype(np.int64)
    total = early + late
    first = np.flatnonzero(np.diff(total, prepend=-1))
    rows = np.diff(first, append=len(total)).astype(np.int64)
    few = early < _FEW
    by_few = np.bincount(early[few], minlength=_FEW)
    late_few = np.bincount(early[few], weights=late[few], minlength=_FEW).astype(np.int64)
    counts = np.flatnonzero(by_few[1:])[::-1] + 1
    many, where, by_many = np.unique(-early[~few], return_inverse=True, return_counts=True)
    late_many = np.bincount(where, weights=late[~few], minlength=len(many)).astype(np.int64)
    return {
        "counts": total[first],
        "rows": rows,
        "ids": pack_ids(known["ids"], rows),
        "late": _access.pack_numbers(known["late"]),
        "early_counts": np.concatenate([-many, counts]),
        "early_rows": np.concatenate([by_many, by_few[counts]]).astype(np.int64),
        "early_late": np.concatenate([late_many, late_few[counts]]),
    }


def pack_ids(ids: Ints, runs: Ints) -> NDArray[np.uint8]:
    """Ids as `_access.unpack_ranking` takes them: ascending within each run."""
    distance = np.diff(ids, prepend=-1) - 1
    first = np.cumsum(runs) - runs
    distance[first] = ids[first]
    return _access.pack_numbers(distance.astype(np.uint64))


@dataclass(frozen=True, eq=False)
class Estimates:
    """Histogram and curves from a sample of the rows."""

    counts: Ints  # [K] descending
    rows: Ints  # [K] estimated
    curve: AccessCurve
    curve_in_sample: AccessCurve
    drift: float
    share_error: Floats


def estimate(
    known: dict[str, NDArray[Any]],
    level: int,
    head_rows: int,
    num_embeddings: int,
    lookups: int,
) -> Estimates:
    """From the rows known (`SampledCounters.known`), level > 0."""
    weight = 1 << level
    told = known["estimate"].astype(np.int64)
    is_head = np.arange(len(told)) < head_rows
    is_tail = known["sampled"] & ~is_head
    tail, tail_rows = _classes(told[is_tail], weight)
    # Rows that the estimate sees beyond the table's are of the least lookups.
    room = np.maximum(num_embeddings - head_rows - (np.cumsum(tail_rows) - tail_rows), 0)
    tail_rows = np.minimum(tail_rows, room)
    counts, rows = _merged(told[is_head], tail[tail_rows > 0], tail_rows[tail_rows > 0])
    seen, ahead = in_sample(counts, rows, num_embeddings), leave_one_out(counts, rows, num_embeddings)
    # How the sampled rows change with time, as if they were a table of their own.
    part = {k: v[known["sampled"]] for k, v in known.items()}
    drift, change = 0.0, np.zeros(len(ahead.rows))
    of_sample = max(num_embeddings >> level, len(part["ids"]), 1)
    if len(part["ids"]):
        curves = AccessCurves.of(exact_ranked(_by_count(part)), int(part["late"].sum()), of_sample)
        if curves.time_halves is not None and curves.random_halves is not None:
            at = ahead.rows * of_sample / num_embeddings
            change = curves.time_halves.share_of(at) - curves.random_halves.share_of(at)
            drift = curves.drift
    share = np.clip(ahead.share + change, 0.0, 1.0)
    known_part = np.interp(head_rows, ahead.rows, share)
    behind = ahead.rows > head_rows
    rest = (ahead.rows - head_rows) / max(num_embeddings - head_rows, 1)
    share = np.where(behind, known_part + (1 - known_part) * rest, share)
    error = _share_error(tail, tail_rows // weight, weight, head_rows, lookups, seen)
    return Estimates(counts, rows, AccessCurve.above(ahead.rows, share), seen, drift, error)


def _by_count(known: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Rows in the order of an exact ranking."""
    total = (known["early"] + known["late"]).astype(np.int64)
    order = np.lexsort((known["ids"], -total))
    return {k: v[order] for k, v in known.items()}


def _classes(counts: Ints, weight: int) -> tuple[Ints, Ints]:
    negative, rows = np.unique(-counts, return_counts=True)
    return -negative, rows.astype(np.int64) * weight


def _merged(head: Ints, counts: Ints, rows: Ints) -> tuple[Ints, Ints]:
    head_counts, head_rows = _classes(head, 1)
    negative, where = np.unique(-np.concatenate([head_counts, counts]), return_inverse=True)
    total = np.bincount(where, weights=np.concatenate([head_rows, rows]), minlength=len(negative))
    some = negative < 0
    return -negative[some], total[some].astype(np.int64)


def _share_error(
    counts: Ints, rows: Ints, weight: int, head_rows: int, lookups: int, curve: AccessCurve
) -> Floats:
    """One standard error of the in-sample shares at the curve's points.

    counts, rows  of the sampled rows behind the head, by descending count

    The share s at rank r is a ratio of two sums over rows. A sampled row with c lookups moves it by
    c (1 - s) - d where it is above the rank, since it moves the rows behind it down by as many ranks with d
    lookups each, and by -c s where it is below. Each row is sampled with probability 1 / weight.
    """
    at, share = curve.rows, curve.share
    if not len(counts):
        return np.zeros(len(at))
    c, n = counts.astype(np.float64), rows.astype(np.float64)
    sums = [np.concatenate([[0.0], np.cumsum(n * c**power)]) for power in range(3)]
    ranks = head_rows + weight * sums[0]
    above = [np.interp(at, ranks, s) for s in sums]
    d = np.where(at < ranks[-1], c[np.minimum(np.searchsorted(ranks[1:], at), len(c) - 1)], 0.0)
    top = (1 - share) ** 2 * above[2] - 2 * (1 - share) * d * above[1] + d**2 * above[0]
    below = share**2 * (sums[2][-1] - above[2])
    error = np.sqrt(weight * (weight - 1.0) * np.maximum(top + below, 0.0)) / max(lookups, 1)
    found: Floats = np.where((at > 0) & (at < at[-1]), error, 0.0)
    return found
