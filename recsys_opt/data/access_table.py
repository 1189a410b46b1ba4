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
        """The rows seen, hottest first, equal ones in ascending order; [distinct] int32 or int64."""
        return self.packed.ids(self.rows, self.num_embeddings)

    def row_counts(self) -> Ints:
        """Lookups of each row of `ranking()`."""
        return np.repeat(self.counts, self.rows)

    def late_counts(self) -> NDArray[np.uint64]:
        """Lookups in the later part of each row of `ranking()`."""
        return self.packed.late(self.distinct)

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

    def to_json(self) -> dict[str, Any]:
        """The statistics in figures, for people and other programs."""
        hot = max(1, self.num_embeddings // 10)
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
