"""Replays lookups through a plan: where each really goes, and what that costs.

Every id takes the way that the plan gives it: its rank by the statistics that the plan was made from, its
stripe and its place there (recsys_opt.plan), the device and the tier of the piece that has it. A table cut by
columns reads a part of the row from each of its column shards; a replicated table reads the row on the device
that has the sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_opt._access import Counters, ranked, unpack_ranking
from recsys_opt._replay import TableCounter
from recsys_opt.data.access_counters import as_ids, count
from recsys_opt.data.access_statistics import AccessStatistics
from recsys_opt.data.plan_ranking import Ranking, plan_ranking
from recsys_opt.errors import InputError
from recsys_opt.plan import Piece, Plan, TablePlan
from recsys_opt.planner.lookup_trace import LookupTrace
from recsys_opt.progress import Progress, SilentProgress

Ints = NDArray[np.int64]
FAST, SLOW = 0, 1


@dataclass(frozen=True, eq=False)
class Replay:
    """What lookups a plan's pieces get, batch by batch."""

    plan: Plan
    batch_size: int
    """Samples of a batch, over all devices."""
    pieces: tuple[Piece, ...]
    """Of all tables, in the plan's order."""
    table: Ints
    """[pieces] index of each piece's table in the plan."""
    lookups: Ints
    """[batches, pieces, 2] rows that are read in the fast and in the slow tier; of a replica, for its
    device's samples."""
    rows: Ints
    """[batches, pieces, 2] different rows among them, in each batch: those that the update touches."""
    remote: Ints
    """[batches, pieces] lookups whose samples are on other devices: ids that come from there."""

    @property
    def batches(self) -> int:
        """That were replayed."""
        return len(self.lookups)

    @property
    def devices(self) -> Ints:
        """[pieces] of each piece."""
        return np.array([p.device for p in self.pieces], dtype=np.int64)

    @property
    def widths(self) -> Ints:
        """[pieces] columns of each piece."""
        return np.array([p.width for p in self.pieces], dtype=np.int64)

    def by_device(self, amount: NDArray[Any]) -> NDArray[Any]:
        """[batches, pieces, ...] -> [batches, devices, ...], summed over each device's pieces."""
        summed = np.zeros((amount.shape[0], self.plan.num_devices, *amount.shape[2:]), dtype=amount.dtype)
        for at, device in enumerate(self.devices):
            summed[:, device] += amount[:, at]
        return summed

    def bytes_read(self, weight_bytes: int = 4) -> Ints:
        """[batches, devices, 2] by the lookups in each tier."""
        read: Ints = self.by_device(self.lookups * self.widths[:, None] * weight_bytes)
        return read

    def bytes_sent(self, output_bytes: int = 4, id_bytes: int = 8) -> Ints:
        """[batches, devices] that a device sends to others, or gets from them, in both passes.

        Pooled rows to the devices that have the samples, and their gradients back; the ids of lookups for
        other devices' samples; a replica's gradients, all-reduced in a ring.
        """
        samples = np.diff(np.arange(self.plan.num_devices + 1) * self.batch_size // self.plan.num_devices)
        others = self.batch_size - samples[self.devices]
        n = self.plan.num_devices
        fixed = np.zeros(len(self.pieces), dtype=np.int64)
        for at, piece in enumerate(self.pieces):
            if self.plan.tables[int(self.table[at])].replicated:
                fixed[at] = 2 * (n - 1) * piece.rows * piece.width * output_bytes // n
            else:
                fixed[at] = 2 * int(others[at]) * piece.width * output_bytes
        sent: Ints = self.by_device(fixed + self.remote * id_bytes)
        return sent

    @property
    def slow_share(self) -> float:
        """Of all rows read, those in the slow tier."""
        return float(self.lookups[..., SLOW].sum()) / max(int(self.lookups.sum()), 1)

    @property
    def predicted_slow_share(self) -> float | None:
        """The same, as the plan has it; None where the plan predicts nothing."""
        slow = sum(d.slow_lookups for d in self.plan.devices)
        total = slow + sum(d.fast_lookups for d in self.plan.devices)
        return slow / total if total > 0 else None


def replay(
    plan: Plan,
    trace: LookupTrace,
    ranking: Ranking,
    *,
    threads: int = 1,
    progress: Progress | None = None,
) -> Replay:
    """Takes every lookup of a trace where the plan has its row.

    ranking  of the statistics that the plan was made from (`statistics_ranking`), or `lfu_ranking`
    threads  tables that are replayed at once; each takes 8 bytes a row, for as long as it is its turn
    """
    features = _features(plan, trace)
    progress = progress or SilentProgress()
    progress.start("replaying", len(plan.tables), "tables")

    def one(at: int) -> tuple[Ints, Ints, Ints]:
        table = plan.tables[at]
        return _replay_table(table, plan.num_devices, trace, features[at], ranking(table.name))

    found = []
    with ThreadPoolExecutor(max(threads, 1)) as pool:
        try:
            for counts in pool.map(one, range(len(plan.tables))):
                found.append(counts)
                progress.advance(1)
        finally:
            pool.shutdown(cancel_futures=True)
    progress.finish()
    pieces = [list(table.pieces()) for table in plan.tables]
    return Replay(
        plan,
        trace.batch_size,
        tuple(piece for some in pieces for piece in some),
        np.repeat(np.arange(len(pieces)), [len(some) for some in pieces]),
        np.concatenate([lookups for lookups, _, _ in found], axis=1),
        np.concatenate([rows for _, rows, _ in found], axis=1),
        np.concatenate([remote for _, _, remote in found], axis=1),
    )


def _features(plan: Plan, trace: LookupTrace) -> list[list[int]]:
    """The trace's features of each of the plan's tables."""
    table_of = {
        name: at for at, table in enumerate(plan.tables) for name in table.feature_names or (table.name,)
    }
    found: list[list[int]] = [[] for _ in plan.tables]
    for at, (name, rows) in enumerate(zip(trace.features, trace.num_embeddings, strict=True)):
        if name not in table_of:
            raise InputError(
                f"{trace.name} looks up {name!r}, of which the plan knows nothing; replay lookups of the "
                "model that was planned"
            )
        table = plan.tables[table_of[name]]
        if table.num_embeddings != rows:
            raise InputError(
                f"{trace.name}: {name} has ids of {rows} rows; the plan's table {table.name} has "
                f"{table.num_embeddings}: data and plan are of different models"
            )
        found[table_of[name]].append(at)
    for table, some in zip(plan.tables, found, strict=True):
        if not some:
            raise InputError(
                f"{trace.name} has no lookups of the plan's table {table.name} (features "
                f"{', '.join(table.feature_names or (table.name,))}); replay lookups of the model that was "
                "planned"
            )
    return found


def _replay_table(
    table: TablePlan, devices: int, trace: LookupTrace, features: Sequence[int], ranking: NDArray[Any]
) -> tuple[Ints, Ints, Ints]:
    """(lookups [batches, pieces, 2], rows of the same shape, remote [batches, pieces]) of one table."""
    parts, stripes = (len(table.devices), 1) if table.replicated else (table.column_shards, table.row_shards)
    hot_rows = np.array(table.hot_rows, dtype=np.int64).reshape(parts, stripes)
    try:
        counter = TableCounter(as_ids(ranking, lambda at: f"rank {at}"), table.num_embeddings, hot_rows)
    except ValueError as error:
        raise InputError(f"table {table.name}: {error}; make the statistics again") from None
    # Part p of a stripe has a row in its slow tier if at least as many of the parts do as have hot_rows no
    # larger than p's: [parts, stripes].
    slow_from = (hot_rows[None] < hot_rows[:, None]).sum(axis=1) + 1
    by_slow = np.arange(parts + 1)[None, :, None] >= slow_from[:, None, :]  # [parts, slow parts, stripes]
    lookups = np.zeros((trace.batches, parts * stripes, 2), dtype=np.int64)
    rows = np.zeros_like(lookups)
    remote = np.zeros((trace.batches, parts * stripes), dtype=np.int64)
    homes = np.array(table.devices).reshape(parts, stripes)

    def tiers(counts: Ints) -> Ints:  # [..., stripes, slow parts] -> [..., parts, stripes, 2]
        slow = np.einsum("...sk,pks->...ps", counts, by_slow.astype(np.int64))
        return np.stack([counts.sum(axis=-1)[..., None, :] - slow, slow], axis=-1)

    for batch in range(trace.batches):
        found = [trace.lookups(feature, batch, devices) for feature in features]
        shape = (devices, counter.slots)
        seen, new = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        # The copies of a replicated table are updated each by itself, so that a row counts on each.
        blocks = [(d, d + 1) for d in range(devices)] if table.replicated else [(0, devices)]
        for first, last in blocks:
            counter.next_round()
            for feature, (ids, bounds) in zip(features, found, strict=True):
                bad = counter.count(ids, bounds[first : last + 1], seen[first:last], new[first:last])
                if bad >= 0:
                    raise InputError(
                        f"{trace.name}: batch {batch} looks up id {int(ids[bad])} of "
                        f"{trace.features[feature]} (lookup {bad} of {len(ids)}); the table has "
                        f"{table.num_embeddings} rows; replay lookups of the tables that were planned"
                    )
        by_home = tiers(seen.reshape(devices, stripes, parts + 1))  # [devices, parts, stripes, 2]
        by_home_new = tiers(new.reshape(devices, stripes, parts + 1))
        if table.replicated:
            own = np.arange(parts)
            lookups[batch], rows[batch] = by_home[homes[:, 0], own, 0], by_home_new[homes[:, 0], own, 0]
            continue
        lookups[batch] = by_home.sum(axis=0).reshape(-1, 2)
        rows[batch] = by_home_new.sum(axis=0).reshape(-1, 2)
        own = np.take_along_axis(by_home.sum(axis=-1), homes[None], axis=0)[0]
        remote[batch] = lookups[batch].sum(axis=-1) - own.reshape(-1)
    return lookups, rows, remote


def statistics_ranking(plan: Plan, statistics: AccessStatistics) -> Ranking:
    """The rankings that a plan's ranks mean; refuses statistics that it was not made from."""
    said = plan.inputs.get("statistics", {}).get("sha256")
    if said and said != statistics.sha256:
        raise InputError(
            f"the plan was made from statistics with sha256 {said[:12]}..., these have "
            f"{statistics.sha256[:12]}...: its ranks would name other rows; give the statistics that it "
            "was made from, or plan again"
        )
    for table in plan.tables:
        rows = statistics.table(table.name).num_embeddings
        if rows != table.num_embeddings:
            raise InputError(
                f"table {table.name} has {table.num_embeddings} rows in the plan and {rows} in the "
                "statistics: they are of different models"
            )
    return plan_ranking(plan, statistics)


def lfu_ranking(plan: Plan, trace: LookupTrace) -> Ranking:
    """Rows by how often the trace itself looks them up: what an ideal LFU cache holds.

    With hot_rows = the rows that the cache holds, a replay's slow lookups are the misses of a cache that knew
    the trace beforehand.
    """
    features = dict(zip((t.name for t in plan.tables), _features(plan, trace), strict=True))

    def ranking(name: str) -> NDArray[Any]:
        table = plan.table(name)
        counters, none = Counters(table.num_embeddings), Counters(table.num_embeddings)
        for batch in range(trace.batches):
            for feature in features[name]:
                ids, _ = trace.lookups(feature, batch, 1)
                where = f"{trace.name}: batch {batch} of {trace.features[feature]}"
                count([counters], [ids], lambda _, at, where=where: f"{where}, lookup {at}")  # type: ignore[misc]
        found = ranked(counters, none)
        return unpack_ranking(found["ids"], found["rows"], table.num_embeddings)

    return ranking
