"""Which share of a table's lookups its hottest rows take: curves from counts.

The share that the hottest r rows had in the very lookups by which they were ranked (`in_sample`) is too high
for lookups to come: a row seen once by chance counts as a hot row that takes one lookup. Three ways to judge
a ranking by lookups that it has not seen, all from how many rows N_k were looked up k times among n lookups:

- `leave_one_out`: each lookup in turn is judged by the ranking of all others. A lookup of a row seen j times
  meets a row seen j - 1 times, so that rows seen k times take (k + 1) N_{k+1} / n of the lookups, all rows
  never seen N_1 / n (Good 1953). It tells of the ranking by the whole sample.
- `random_halves`: ranked by one half, judged by the other. Of a ranking by half as many lookups, so too low.
- `time_halves`: ranked by the first half of the time, judged by the second. The same, and what has changed.

The first two take lookups as exchangeable, those of one bag too: where bags repeat an id, both are too high.
How far they are from it is the drift: by how much `time_halves` falls below `random_halves`, whose rankings
are of as many lookups. The curve to plan with is `forecast`: leave one out, less the drift. `recsys-opt bench
curves` holds all of them against lookups that came later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_opt import _access
from recsys_opt.errors import InputError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

EXACT_RANKS = 64
POINTS_PER_OCTAVE = 16
EXACT_SPLITS = 1 << 14
"""Rows with more lookups are taken to split between random halves as expected."""


@dataclass(frozen=True, eq=False)
class AccessCurve:
    """Share of the lookups that go to the hottest rows: concave, from (0, 0) to (num_embeddings, 1)."""

    rows: Floats  # [K] 0 = r0 < r1 < ... = num_embeddings
    share: Floats  # [K]

    def __post_init__(self) -> None:
        rows, share = self.rows, self.share
        if rows.ndim != 1 or rows.shape != share.shape or len(rows) < 2:
            raise InputError(f"an access curve has {rows.shape} rows and {share.shape} shares")
        if not (rows[0] == 0 and share[0] == 0 and abs(share[-1] - 1) < 1e-9 and (np.diff(rows) > 0).all()):
            raise InputError(
                "an access curve must go from (0, 0) to (num_embeddings, 1), with rows ascending"
            )
        slope = np.diff(share) / np.diff(rows)
        if not (slope >= 0).all() or (np.diff(slope) > 1e-9 * (1 + slope[1:])).any():
            raise InputError("an access curve must be concave and must not fall")

    @classmethod
    def above(cls, rows: Floats, share: Floats) -> AccessCurve:
        """The least curve that is nowhere below the points at `curve_rows`; the last share becomes 1."""
        return _curve(rows, np.maximum.accumulate(share), int(rows[-1]))

    @property
    def num_embeddings(self) -> int:
        """Rows of the table."""
        return int(self.rows[-1])

    def share_of(self, rows: Any) -> Any:
        """Share of the lookups that go to the hottest `rows` rows; linear between the points."""
        found = np.interp(rows, self.rows, self.share)
        return float(found) if np.ndim(rows) == 0 else found

    def rows_for(self, share: float) -> float:
        """The fewest rows that take this share of the lookups."""
        i = int(np.searchsorted(self.share, share))
        if i == 0 or i >= len(self.share):
            return float(self.rows[min(i, len(self.rows) - 1)])
        low, high = self.share[i - 1], self.share[i]
        return float(self.rows[i - 1] + (self.rows[i] - self.rows[i - 1]) * (share - low) / (high - low))

    def density(self) -> Floats:
        """[K - 1] share of the lookups that one row takes, between the points; descending."""
        return np.diff(self.share) / np.diff(self.rows)


@lru_cache(maxsize=4096)
def curve_rows(num_embeddings: int) -> Floats:
    """The points of a curve: every rank up to 64, then 16 an octave, last all rows."""
    rows = list(range(min(num_embeddings, EXACT_RANKS) + 1))
    step = 1
    while rows[-1] < num_embeddings:
        # 2^(step / 16) grows by more than 1 row from 64 on.
        rows.append(min(int(EXACT_RANKS * 2 ** (step / POINTS_PER_OCTAVE)), num_embeddings))
        step += 1
    found = np.array(rows, dtype=np.float64)
    found.setflags(write=False)
    return found


def in_sample(counts: Ints, rows: Ints, num_embeddings: int) -> AccessCurve:
    """What the lookups that ranked the rows had: `rows[k]` rows with `counts[k]` lookups each, descending."""
    if not len(counts):
        return _unknown(num_embeddings)
    return _curve(_steps(rows), _steps(counts * rows), num_embeddings)


def leave_one_out(counts: Ints, rows: Ints, num_embeddings: int) -> AccessCurve:
    """Each lookup judged by the ranking of all others; ties in an order of their own."""
    if not len(counts):
        return _unknown(num_embeddings)
    mass = (counts * rows).astype(np.float64)
    total = mass.sum()
    end = np.cumsum(rows).astype(np.float64)  # rows with as many lookups or more
    # A row with j lookups, less one, is somewhere among the rows with j - 1: behind the other rows with j.
    after = np.append(np.where(counts[1:] == counts[:-1] - 1, rows[1:], 0), 0).astype(np.float64)
    if counts[-1] == 1:
        after[-1] = num_embeddings - end[-1]
    low, high = end - 1, end + after
    # The mass of class j is spread evenly over the ranks (low, high]; neighbours overlap by a rank.
    done = np.cumsum(mass) - mass
    width = high - low
    overlap = np.append(np.maximum(high[:-1] - low[1:], 0.0), 0.0)
    before = np.append(0.0, overlap[:-1] / width[:-1] * mass[:-1])  # not yet met at `low`
    beyond = np.append(overlap[:-1] / width[1:] * mass[1:], 0.0)  # met already at `high`
    x = np.stack([low, high], axis=1).ravel()
    y = np.stack([done - before, done + mass + beyond], axis=1).ravel() / total
    order = np.argsort(x, kind="stable")
    return _curve(
        np.concatenate([[0.0], x[order], [num_embeddings]]),
        np.concatenate([[0.0], y[order], [1.0]]),
        num_embeddings,
    )


def random_halves(counts: Ints, rows: Ints, num_embeddings: int, late: float = 0.5) -> AccessCurve:
    """Ranked by one random part of the lookups, judged by the other, in expectation.

    late  the share of the lookups in the part that judges
    """
    if not len(counts) or not 0 < late < 1:
        return _unknown(num_embeddings)
    by_count, mass = _access.thinned(counts, rows, late, EXACT_SPLITS)
    known, met = by_count[:0:-1], mass[:0:-1]
    some = known > 0
    return _split(known[some], met[some], float(mass[0]), num_embeddings)


def time_halves(rows: Ints, late: Ints, late_lookups: int, num_embeddings: int) -> AccessCurve:
    """Ranked by the earlier lookups, judged by the later ones.

    rows          [K] rows by their earlier lookups, most first, none without any
    late          [K] their later lookups
    late_lookups  of all rows
    """
    if not late_lookups or not len(rows):
        return _unknown(num_embeddings)
    return _split(rows.astype(np.float64), late.astype(np.float64), late_lookups - late.sum(), num_embeddings)


@dataclass(frozen=True, eq=False)
class AccessCurves:
    """All ways to judge one table's ranking."""

    in_sample: AccessCurve
    leave_one_out: AccessCurve
    random_halves: AccessCurve | None
    """None where one part of the time has no lookups."""
    time_halves: AccessCurve | None
    forecast: AccessCurve
    drift: float

    @classmethod
    def of(cls, ranked: Mapping[str, Ints], late_lookups: int, num_embeddings: int) -> AccessCurves:
        """ranked  of the rows that were seen (`_access.ranked`)."""
        counts, rows = ranked["counts"], ranked["rows"]
        lookups = int((counts * rows).sum())
        seen = in_sample(counts, rows, num_embeddings)
        left_out = leave_one_out(counts, rows, num_embeddings)
        if not 0 < late_lookups < lookups:
            return cls(seen, left_out, None, None, left_out, 0.0)
        random = random_halves(counts, rows, num_embeddings, late_lookups / lookups)
        time = time_halves(ranked["early_rows"], ranked["early_late"], late_lookups, num_embeddings)
        ahead = forecast(left_out, random, time)
        return cls(seen, left_out, random, time, ahead, drift(random, time))


def forecast(left_out: AccessCurve, random: AccessCurve, time: AccessCurve) -> AccessCurve:
    """Leave one out, less what half a time's change costs: of lookups to come soon."""
    share = np.clip(left_out.share + time.share - random.share, 0.0, 1.0)
    return AccessCurve.above(left_out.rows, share)


def drift(random: AccessCurve, time: AccessCurve) -> float:
    """By how much the second half of the time is missed more than a random half would be, at most."""
    return max(0.0, float((random.share - time.share).max()))


def _split(rows: Floats, mass: Floats, unseen_mass: float, num_embeddings: int) -> AccessCurve:
    """The curve of rows in classes, with the rest of the rows in one last class."""
    seen = min(float(rows.sum()), float(num_embeddings))
    rest = num_embeddings - seen
    if rest > 1e-6 * num_embeddings:
        rows, mass = np.append(rows, rest), np.append(mass, unseen_mass)
    else:
        mass = mass.copy()
        mass[-1] += unseen_mass
    return _curve(_steps(rows), _steps(mass), num_embeddings)


def _steps(values: NDArray[Any]) -> Floats:
    return np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])


def _unknown(num_embeddings: int) -> AccessCurve:
    """No lookup was seen: every row alike."""
    rows = curve_rows(num_embeddings)
    return AccessCurve(rows, rows / num_embeddings)


def _curve(x: Floats, y: Floats, num_embeddings: int) -> AccessCurve:
    """The least concave curve that is nowhere below the points, up to (num_embeddings, 1).

    x, y  [K] ascending; y in any unit
    """
    y = y / y[-1]
    if x[-1] < num_embeddings:
        x, y = np.append(x, num_embeddings), np.append(y, 1.0)
    y = _access.concave_majorant(np.ascontiguousarray(x), np.ascontiguousarray(y))
    rows = curve_rows(num_embeddings)
    share = np.minimum(np.interp(rows, x, y), 1.0)
    share[0], share[-1] = 0.0, 1.0
    return AccessCurve(rows, np.maximum.accumulate(share))
