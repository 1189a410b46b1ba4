"""What replayed lookups cost by the planner's own model, beside what the plan was predicted to cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_opt.errors import InputError
from recsys_opt.plan import DeviceLoad
from recsys_opt.planner.cost import CostModel, accesses
from recsys_opt.planner.problem import PlannedTable
from recsys_opt.planner.replay import FAST, SLOW, Replay

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ReplayCost:
    """Seconds of every batch on every device, [batches, devices]."""

    fast: Floats
    slow: Floats
    communication: Floats

    @property
    def seconds(self) -> Floats:
        """[batches, devices]."""
        return self.fast + self.slow + self.communication

    @property
    def device_seconds(self) -> Floats:
        """[devices] of an iteration, the mean over the batches."""
        mean: Floats = self.seconds.mean(axis=0)
        return mean

    @property
    def slowest(self) -> float:
        """Of the device that takes longest, on average over the batches."""
        return float(self.device_seconds.max())

    @property
    def iteration(self) -> float:
        """Mean over the batches of the slowest device's time in each."""
        return float(self.seconds.max(axis=1).mean())

    @property
    def imbalance(self) -> float:
        """Slowest device over the mean of all."""
        return self.slowest / max(float(self.device_seconds.mean()), 1e-300)


def replay_cost(found: Replay, model: CostModel) -> ReplayCost:
    """By the cost model's definition, with the lookups and rows counted in place of expected ones.

    model  for batches of the trace's size
    """
    if model.settings.batch_size != found.batch_size:
        raise InputError(
            f"the cost model is for batches of {model.settings.batch_size} samples, the trace has "
            f"{found.batch_size}; make the model for the trace's"
        )
    if model.hardware.num_devices != found.plan.num_devices:
        raise InputError(
            f"the plan has {found.plan.num_devices} devices, the hardware {model.hardware.name} has "
            f"{model.hardware.num_devices}; give the hardware that the plan is for"
        )
    shape = found.remote.shape
    fast, slow, communication = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    over_node = [model.over_node(table) for table in found.plan.tables]
    for at, piece in enumerate(found.pieces):
        index = int(found.table[at])
        table = found.plan.tables[index]
        costs = model.row_costs(piece.width)
        lookups, rows = found.lookups[:, at].astype(np.float64), found.rows[:, at].astype(np.float64)
        if table.replicated:
            # Its gradients and its update are dense.
            fast[:, at] = lookups[:, FAST] * costs.read_fast + piece.hot_rows * costs.update_fast
            slow[:, at] = lookups[:, SLOW] * costs.read_slow + piece.cold_rows * costs.update_slow
            communication[:, at] = model.all_reduce_seconds(piece.rows * piece.width * 4.0)
            continue
        fast[:, at] = lookups[:, FAST] * costs.read_fast + rows[:, FAST] * costs.update_fast
        slow[:, at] = lookups[:, SLOW] * costs.read_slow + rows[:, SLOW] * costs.update_slow
        pooled = model.pooled_seconds(piece.width, over_node=over_node[index])
        communication[:, at] = pooled + lookups.sum(axis=1) * model.id_seconds
    return ReplayCost(found.by_device(fast), found.by_device(slow), found.by_device(communication))


@dataclass(frozen=True)
class TableDrift:
    """One table's rows from the slow tier, as shares of the rows that are read of it."""

    name: str
    predicted: float
    realised: float
    lookups: int


def table_shares(found: Replay, tables: Sequence[PlannedTable], batch_size: int) -> list[TableDrift]:
    """Of each of the plan's tables: what its access curve predicts, and what the trace did.

    batch_size  of any size: the shares do not depend on it
    """
    known = {t.config.name: t for t in tables}
    drifts = []
    for index, table in enumerate(found.plan.tables):
        ours = np.flatnonzero(found.table == index)
        counted = found.lookups[:, ours].sum(axis=(0, 1))
        total = expected = 0.0
        for at in ours:
            piece = found.pieces[at]
            lookups = batch_size * known[table.name].lookups_per_sample
            (hot, _), (cold, _) = accesses(
                known[table.name], lookups, piece.stripe, piece.hot_rows, dealt=bool(table.striped_by)
            )
            total += hot + cold
            expected += cold
        drifts.append(
            TableDrift(
                table.name,
                expected / total if total > 0 else 0.0,
                int(counted[SLOW]) / max(int(counted.sum()), 1),
                int(counted.sum()),
            )
        )
    return drifts


def summary(
    found: Replay,
    cost: ReplayCost,
    predicted: Sequence[DeviceLoad],
    drifts: Sequence[TableDrift],
    weight_bytes: int = 4,
) -> dict[str, Any]:
    """All figures, JSON values.

    predicted  of each device, for batches of the trace's size
    """
    read, sent = found.bytes_read(weight_bytes), found.bytes_sent()
    lookups, rows = found.by_device(found.lookups), found.by_device(found.rows)
    seconds = cost.seconds
    slow = sum(d.slow_lookups for d in predicted)
    total = slow + sum(d.fast_lookups for d in predicted)
    share = slow / total if total > 0 else 0.0
    expected = np.array([d.seconds for d in predicted])
    by_batch = found.lookups.sum(axis=1)
    return {
        "batches": found.batches,
        "batch_size": found.batch_size,
        "num_devices": found.plan.num_devices,
        "lookups": int(found.lookups.sum()),
        "slow_share": _compared(share, found.slow_share),
        "slowest_device_seconds": _compared(float(expected.max(initial=0.0)), cost.slowest),
        "max_over_mean": _compared(
            float(expected.max(initial=0.0) / max(expected.mean(), 1e-300)) if len(expected) else 0.0,
            cost.imbalance,
        ),
        "iteration_seconds": cost.iteration,
        "devices": [
            {
                "device": d,
                "lookups_fast": int(lookups[:, d, FAST].sum()),
                "lookups_slow": int(lookups[:, d, SLOW].sum()),
                "rows_fast": int(rows[:, d, FAST].sum()),
                "rows_slow": int(rows[:, d, SLOW].sum()),
                "bytes_fast": int(read[:, d, FAST].sum()),
                "bytes_slow": int(read[:, d, SLOW].sum()),
                "bytes_sent": int(sent[:, d].sum()),
                "fast_seconds": float(cost.fast[:, d].mean()),
                "slow_seconds": float(cost.slow[:, d].mean()),
                "communication_seconds": float(cost.communication[:, d].mean()),
                "seconds": float(seconds[:, d].mean()),
                "predicted_seconds": float(expected[d]) if len(expected) else None,
            }
            for d in range(found.plan.num_devices)
        ],
        "by_batch": [
            {
                "batch": b,
                "slow_share": float(by_batch[b, SLOW]) / max(int(by_batch[b].sum()), 1),
                "slowest_seconds": float(seconds[b].max()),
                "slowest_device": int(seconds[b].argmax()),
                "max_over_mean": float(seconds[b].max() / max(seconds[b].mean(), 1e-300)),
            }
            for b in range(found.batches)
        ],
        "tables": [
            {
                "name": t.name,
                "predicted_slow_share": t.predicted,
                "realised_slow_share": t.realised,
                "lookups": t.lookups,
            }
            for t in drifts
        ],
    }


def _compared(predicted: float, realised: float) -> dict[str, float | None]:
    """relative_error  of the prediction, as a share of what came; None where nothing came"""
    error = (predicted - realised) / realised if realised > 0 else None
    return {"predicted": predicted, "realised": realised, "relative_error": error}
