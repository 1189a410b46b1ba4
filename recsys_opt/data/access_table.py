"""How one table's rows were looked up."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_opt import _access
from recsys_opt.data.access_counters import count
from recsys_opt.data.access_curve import AccessCurve, AccessCurves
from recsys_opt.data.access_sampled import Sampling, estimate, exact_ranked, pack_ids
from recsys_opt.data.packed_rows import PackedRows

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class TableStatistics:
    """How one table's rows were looked up."""

    name: str
    num_embeddings: int
    samples: int
    """Rows of data that were seen."""
    bags: int
    """Samples with at least one id."""
    lookups: int
    late_lookups: int
    """Those of the later part of the samples (`AccessStatistics.late_from`)."""
    counts: Ints  # [K] numbers of lookups that occur, descending
    rows: Ints  # [K] rows of the table that have as many
    curve: AccessCurve
    """Share of lookups to come that the hottest rows take: leave-one-out, less the drift
    (`recsys_opt.data.access_curve`). The curve to plan with."""
    curve_in_sample: AccessCurve
    """Share of the lookups seen that the rows had which they rank hottest: too high."""
    drift: float
    """Share of the later half's lookups that the earlier half's ranking misses beyond what a random half's
    would, where that is largest: 0 where nothing changes with time."""
    packed: PackedRows
    """Ranking and later lookups of the rows seen."""
    sampling: Sampling | None = None
    """Of a table with more rows than memory: `rows`, `distinct` and the curves are estimates."""

    @property
    def distinct(self) -> int:
        """Rows that were looked up at least once."""
        return int(self.rows.sum())

    @property
    def dead_rows(self) -> int:
        """Rows that were never looked up."""
        return self.num_embeddings - self.distinct

    @property
    def lookups_per_sample(self) -> float:
        """coverage x pooling factor."""
        return self.lookups / self.samples if self.samples else 0.0

    @property
    def coverage(self) -> float:
        """Share of the samples with at least one id."""
        return self.bags / self.samples if self.samples else 0.0

    @property
    def pooling_factor(self) -> float:
        """Mean ids of a sample that has any."""
        return self.lookups / self.bags if self.bags else 0.0

    def ranking(self) -> NDArray[Any]:
        """The rows seen, hottest first, equal ones in ascending order; int32 or int64.

        Of a sampled table, the rows that are known: the head, then some of the others.
        """
        runs = self.rows if self.sampling is None else np.ones(self.sampling.known, dtype=np.int64)
        return self.packed.ids(runs, self.num_embeddings)

    def row_counts(self) -> Ints:
        """Lookups of each row of `ranking()`; of a sampled table, partly estimated."""
        if self.sampling is not None:
            found: Ints = self.packed.sampled(self.sampling.known)[2].astype(np.int64)
            return found
        return np.repeat(self.counts, self.rows)

    def late_counts(self) -> NDArray[np.uint64]:
        """Lookups in the later part of each row of `ranking()`; of a sampled table, 0 where not counted."""
        return self.packed.late(self.distinct if self.sampling is None else self.sampling.known)

    def histogram(self) -> list[tuple[int, int, int, int]]:
        """(least count, largest count, rows, lookups) for counts 1, 2, 3-4, 5-8, ...; without empty bins."""
        bins = np.ceil(np.log2(self.counts)).astype(np.int64)
        found = []
        for b in np.unique(bins):
            here = bins == b
            low = 1 if b == 0 else 2 ** (int(b) - 1) + 1
            rows = self.rows[here]
            found.append((low, 2 ** int(b), int(rows.sum()), int((rows * self.counts[here]).sum())))
        return found

    @classmethod
    def from_counters(
        cls,
        name: str,
        samples: int,
        bags: int,
        early: _access.Counters,
        late: _access.Counters,
    ) -> TableStatistics:
        """From the counters of both parts of the time."""
        num_embeddings = early.rows
        found = _access.ranked(early, late)
        curves = AccessCurves.of(found, late.lookups, num_embeddings)
        return cls(
            name=name,
            num_embeddings=num_embeddings,
            samples=samples,
            bags=bags,
            lookups=early.lookups + late.lookups,
            late_lookups=late.lookups,
            counts=found["counts"],
            rows=found["rows"],
            curve=curves.forecast,
            curve_in_sample=curves.in_sample,
            drift=curves.drift,
            packed=PackedRows.of(name, found["ids"], found["late"]),
        )

    @classmethod
    def from_sampled(
        cls, name: str, samples: int, bags: int, counters: _access.SampledCounters, slots: tuple[int, int]
    ) -> TableStatistics:
        """From counters that sample; exact where all rows seen had room."""
        known, level = counters.known(), counters.level
        early, late = counters.lookups(False), counters.lookups(True)
        if level == 0:
            ranked = exact_ranked(known)
            curves = AccessCurves.of(ranked, late, counters.rows)
            counts, rows, drift = ranked["counts"], ranked["rows"], curves.drift
            curve, seen, sampling = curves.forecast, curves.in_sample, None
            packed = PackedRows.of(name, ranked["ids"], ranked["late"])
        else:
            found = estimate(known, level, counters.head_rows, counters.rows, early + late)
            counts, rows, drift = found.counts, found.rows, found.drift
            curve, seen = found.curve, found.curve_in_sample
            n = len(known["ids"])
            sampling = Sampling(
                level, n, counters.head_rows, counters.offset, slots[0], slots[1], found.share_error
            )
            besides = np.concatenate([known["early"], known["least"], known["estimate"]])
            packed = PackedRows.of(
                name,
                pack_ids(known["ids"], np.ones(n, dtype=np.int64)),
                _access.pack_numbers(known["late"]),
                _access.pack_numbers(besides),
            )
        return cls(
            name=name,
            num_embeddings=counters.rows,
            samples=samples,
            bags=bags,
            lookups=early + late,
            late_lookups=late,
            counts=counts,
            rows=rows,
            curve=curve,
            curve_in_sample=seen,
            drift=drift,
            packed=packed,
            sampling=sampling,
        )

    @classmethod
    def from_ids(
        cls,
        name: str,
        num_embeddings: int,
        ids: NDArray[Any],
        *,
        samples: int | None = None,
        bags: int | None = None,
    ) -> TableStatistics:
        """From ids in memory, in the order of time; default: one id a sample."""
        middle = len(ids) // 2
        early, late = _access.Counters(num_embeddings), _access.Counters(num_embeddings)
        for counters, start, stop in ((early, 0, middle), (late, middle, len(ids))):
            part = ids[start:stop]
            count([counters], [part], lambda _, at, start=start: f"table {name}, ids[{start + at}]")  # type: ignore[misc]
        samples = len(ids) if samples is None else samples
        return cls.from_counters(name, samples, len(ids) if bags is None else bags, early, late)

    def add_to(self, early: _access.Counters, late: _access.Counters) -> None:
        """Adds the counts of both parts of the time to counters of the same table."""
        ids, later = self.ranking(), self.late_counts()
        total = self.row_counts().astype(np.uint64)
        if (later > total).any():
            raise self.packed.damaged("a row has more later lookups than lookups")
        if early is not late:
            total = total - later
            late.add_counts(ids, later)
        early.add_counts(ids, total)

    def add_to_sampled(self, counters: _access.SampledCounters, early_is: bool, late_is: bool) -> None:
        """Adds what is known to counters that sample; each part of the time is an earlier or a later one."""
        ids, late = self.ranking().astype(np.int64), self.late_counts()
        if self.sampling is None:
            early = self.row_counts().astype(np.uint64) - late
            least, level, offset = early + late, 0, 0
        else:
            early, least, _ = self.packed.sampled(self.sampling.known)
            level, offset = self.sampling.level, self.sampling.head_error
        parts = [np.zeros_like(early), np.zeros_like(early)]
        lookups = [0, 0]
        for part, n, is_late in (
            (early, self.lookups - self.late_lookups, early_is),
            (late, self.late_lookups, late_is),
        ):
            parts[is_late] = parts[is_late] + part
            lookups[is_late] += n
        counters.merge(level, offset, lookups[0], lookups[1], ids, parts[0], parts[1], least)

    def to_json(self) -> dict[str, Any]:
        """The statistics in figures, for people and other programs."""
        hot = max(1, self.num_embeddings // 10)
        sampling: dict[str, Any] | None = None
        if self.sampling is not None:
            sampling = {
                "one_row_in": 1 << self.sampling.level,
                "known_rows": self.sampling.known,
                "head_rows": self.sampling.head_rows,
                "head_error_lookups": self.sampling.head_error,
                "standard_error_of_share_of_hottest_tenth": self.sampling.share_error_of(
                    hot, self.num_embeddings
                ),
                "largest_standard_error_of_share": float(self.sampling.share_error.max()),
            }
        return {
            "name": self.name,
            "num_embeddings": self.num_embeddings,
            "samples": self.samples,
            "lookups": self.lookups,
            "distinct": self.distinct,
            "dead_rows": self.dead_rows,
            "coverage": self.coverage,
            "pooling_factor": self.pooling_factor,
            "lookups_per_sample": self.lookups_per_sample,
            "drift": self.drift,
            "sampling": sampling,
            "share_of_hottest_tenth": self.curve.share_of(hot),
            "share_of_hottest_tenth_in_sample": self.curve_in_sample.share_of(hot),
            "histogram": [
                {"least": low, "largest": high, "rows": rows, "lookups": lookups}
                for low, high, rows, lookups in self.histogram()
            ],
        }


def values_before_hashing(distinct: int, num_embeddings: int) -> float:
    """Distinct values that, hashed into the rows, are expected to fill `distinct` of them; inf if all.

    Of n values hashed into m rows, m (1 - 1/m)^n rows stay empty: for n = m about 1/e of them.
    """
    if distinct >= num_embeddings:
        return math.inf
    return math.log1p(-distinct / num_embeddings) / math.log1p(-1 / num_embeddings)


def expected_dead_rows(values: float, num_embeddings: int) -> float:
    """Rows that stay empty where `values` distinct values are hashed: the inverse."""
    return num_embeddings * math.exp(values * math.log1p(-1 / num_embeddings)) if num_embeddings > 1 else 0.0
