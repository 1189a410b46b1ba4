"""What each way to cut a table has in common with where the table is now: arrays for the search.

A table that is in stripes of rows now can be cut by rows in two ways: dealt by the new ranking, so that every
stripe has its part of the rows that are hot now, and nearly all rows move; or dealt as they are, each row in
its stripe, and the stripes are as unequal as they have become.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_opt.plan import TablePlan
from recsys_opt.planner.cost import CostModel
from recsys_opt.planner.options import NODE, Cut, Options
from recsys_opt.planner.overlap import CutShape, common_rows, kept_bytes
from recsys_opt.planner.problem import PlannedTable, PlanSettings

_NONE = np.zeros(0)


@dataclass(frozen=True, eq=False)
class Ways:
    """Options, and which of them deal rows as they are dealt now."""

    options: Options
    dealt: NDArray[np.bool_]
    """[options]"""
    arrays: dict[str, Any]
    """For `_planner.Replanner`: old_option, old_devices, bytes, kept, dealt."""
    restriped: Mapping[str, Restriped]
    """Tables that are striped by another ranking than the statistics'."""

    def dealt_rows(self, table: str, stripes: int) -> NDArray[np.float64]:
        """[stripes, cells] rows of each cell, of a table that is dealt as it is now."""
        return self.restriped[table].dealt(stripes)

    def find(self, table: int, plan: TablePlan, model: CostModel, *, dealt: bool) -> int:
        """The option that is a table's place; -1 where it is not among them."""
        a, options = self.options.arrays, self.options
        over_node = plan.row_shards > 1 and model.over_node(plan)
        same = [
            o
            for o in np.flatnonzero((a["table"] == table) & (self.dealt == dealt)).tolist()
            if shape_of(options.cuts[options.cut[o]], model) == CutShape.of(plan)
        ]
        # Stripes on the devices of a node are summed there, whichever option put them there.
        same.sort(key=lambda o: (options.cuts[options.cut[o]].place == NODE) != over_node)
        return int(same[0]) if same else -1


def shape_of(cut: Cut, model: CostModel) -> CutShape:
    """Of a way to cut a table."""
    copies = model.hardware.num_devices if cut.sharding == "data_parallel" else 0
    return CutShape(cut.column_shards, cut.row_shards, copies)


def make_ways(
    options: Options,
    tables: Sequence[PlannedTable],
    placed: Sequence[TablePlan],
    model: CostModel,
    reranked: Mapping[str, NDArray[Any]],
) -> Ways:
    """All options, those of striped tables also with their rows dealt as now.

    placed    where the tables are now, in the tables' order
    reranked  table that is striped by another ranking than the statistics' -> [num_embeddings] the rank of
              the row at each rank by which it is dealt
    """
    table_of = options.arrays["table"].astype(np.int64)
    twice = np.flatnonzero(
        (options.arrays["parts"] > 1)
        & np.array([tables[t].config.name in reranked for t in table_of], dtype=np.bool_)
    )
    order = np.argsort(np.concatenate([table_of, table_of[twice]]), kind="stable")
    source = np.concatenate([np.arange(len(table_of)), twice])[order]
    dealt = (np.arange(len(source)) >= len(table_of))[order]
    both = replace(
        options,
        arrays={name: values[source] for name, values in options.arrays.items()},
        cut=options.cut[source],
    )
    counts = {
        t.config.name: Restriped(
            t, p.row_shards, reranked[t.config.name], {*_stripes(both, model), p.row_shards}
        )
        for t, p in zip(tables, placed, strict=True)
        if t.config.name in reranked
    }
    columns: dict[str, list[Any]] = {"bytes": [], "kept": [], "dealt": []}
    for o, is_dealt in enumerate(dealt.tolist()):
        t = int(both.arrays["table"][o])
        config, shape = tables[t].config, shape_of(both.cuts[both.cut[o]], model)
        row_bytes = model.settings.row_bytes(config.embedding_dim)
        now, k = CutShape.of(placed[t]), shape.row_shards
        if config.name in counts and not is_dealt:
            rows = counts[config.name].common(k)
        else:
            rows = common_rows(config.num_embeddings, now.row_shards, k)
        columns["bytes"].append(float(config.num_embeddings * row_bytes * (shape.copies or 1)))
        columns["kept"].append(kept_bytes(now, shape, rows, row_bytes).ravel())
        columns["dealt"].append(counts[config.name].dealt(k).ravel() if is_dealt else _NONE)
    ways = Ways(both, dealt, {**columns, "bytes": np.array(columns["bytes"])}, counts)
    ways.arrays["old_devices"] = [list(p.devices) for p in placed]
    ways.arrays["old_option"] = np.array(
        [
            ways.find(t, p, model, dealt=p.name in reranked) if _allowed(p, model.settings) else -1
            for t, p in enumerate(placed)
        ]
    )
    return ways


def _allowed(plan: TablePlan, settings: PlanSettings) -> bool:
    """Whether a table is where its pin lets it be."""
    devices = settings.pins.get(plan.name, {}).get("devices")
    return devices is None or set(plan.devices) <= set(devices)


def _stripes(options: Options, model: CostModel) -> set[int]:
    return {shape_of(cut, model).row_shards for cut in options.cuts}


class Restriped:
    """Counts of a table's rows by their stripes now and by other stripes, made in one pass over them."""

    def __init__(self, table: PlannedTable, stripes: int, ranks: NDArray[Any], others: set[int]) -> None:
        """ranks  [num_embeddings] the rank now of the row at each rank by which it is dealt."""
        n = len(ranks)
        cells = np.searchsorted(table.cell_ends, ranks, side="right")
        self._common: dict[int, NDArray[np.float64]] = {}
        self._dealt: dict[int, NDArray[np.float64]] = {}
        at = np.arange(n)
        for k in sorted((k for k in others if k <= n), reverse=True):
            coarser = next((m for m in self._common if m % k == 0), None)
            if coarser is not None:  # stripe s of m is part of stripe s % k of k
                self._common[k] = self._common[coarser].reshape(stripes, -1, k).sum(axis=1)
                self._dealt[k] = self._dealt[coarser].reshape(-1, k, len(table.rows)).sum(axis=0)
                continue
            both = (at % stripes) * k + ranks % k
            self._common[k] = np.bincount(both, minlength=stripes * k).reshape(stripes, k).astype(np.float64)
            both = (at % k) * len(table.rows) + cells
            counts = np.bincount(both, minlength=k * len(table.rows))
            self._dealt[k] = counts.reshape(k, -1).astype(np.float64)

    def common(self, k: int) -> NDArray[np.float64]:
        """[stripes now, k] rows that a stripe now has in common with one of k, dealt by the new ranking."""
        return self._common[k]

    def dealt(self, k: int) -> NDArray[np.float64]:
        """[k, cells] rows of each cell in each of k stripes, dealt by the ranking of now."""
        return self._dealt[k]
