"""What a plan was made from, found again: tables, statistics, hardware and settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from recsys_opt.data.access_statistics import AccessStatistics
from recsys_opt.data.plan_ranking import Ranking, plan_ranking, plan_statistics
from recsys_opt.data.table_traces import FILE_NAME, FORMAT, VERSION
from recsys_opt.documents import from_document
from recsys_opt.errors import InputError
from recsys_opt.files import read_json
from recsys_opt.plan import Plan
from recsys_opt.planner.hardware import Hardware
from recsys_opt.planner.overlap import Orders, Rankings
from recsys_opt.planner.problem import PlannedTable, PlanSettings, planned_tables
from recsys_opt.ranks import rank_of, rank_order
from recsys_opt.tables import TableConfig


def read_tables(path: Path) -> list[TableConfig]:
    """The tables of a model, from a tables.json, or from the folder that has it.

    `data tables` writes one. Its list `tables` needs name, num_embeddings and embedding_dim of each, and
    feature_names and pooling where they are not the default.
    """
    if path.is_dir():
        path = path / FILE_NAME
    document = read_json(path, FORMAT, VERSION)
    entries = document.get("tables")
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{path}: 'tables' must be a list with at least one table")
    known = ("name", "num_embeddings", "embedding_dim", "feature_names", "pooling")
    made = []
    for at, entry in enumerate(entries):
        own = {key: entry[key] for key in known if key in entry} if isinstance(entry, dict) else entry
        made.append(from_document(TableConfig, own, f"{path}: tables[{at}]"))
    return made


@dataclass(frozen=True, eq=False)
class PlanInputs:
    """All that a plan depends on."""

    tables: list[PlannedTable]
    hardware: Hardware
    settings: PlanSettings
    files: Mapping[str, Mapping[str, str]]
    """For `Plan.inputs`."""
    statistics: AccessStatistics

    @classmethod
    def gather(
        cls,
        statistics_path: Path,
        tables: list[TableConfig] | int,
        hardware: Hardware,
        settings: PlanSettings,
        *,
        hardware_name: str = "",
        names: str = "the model",
    ) -> PlanInputs:
        """From files; `tables` may be the columns of all of the statistics' tables.

        names  what `tables` are called in messages
        """
        statistics = AccessStatistics.load(statistics_path)
        planned = planned_tables(statistics, tables, names=names)
        files = {
            "statistics": {"path": str(statistics_path), "sha256": statistics.sha256},
            "hardware": {"path": hardware_name, "sha256": hardware.sha256},
        }
        return cls(planned, hardware, settings, files, statistics)

    @classmethod
    def of(cls, plan: Plan, statistics: Path | None = None) -> PlanInputs:
        """Those of a plan; `statistics` where its file is not where it was. Refuses other statistics."""
        found = plan_statistics(plan, path=statistics)
        tables = planned_tables(found, tables_of(plan))
        hardware = Hardware.from_json(plan.hardware, "the plan's hardware")
        return cls(as_dealt(plan, tables, found), hardware, settings_of(plan), plan.inputs, found)


def tables_of(plan: Plan) -> list[TableConfig]:
    """The tables of a plan."""
    return [
        TableConfig(t.name, t.num_embeddings, t.embedding_dim, t.feature_names, t.pooling)  # type: ignore[arg-type]
        for t in plan.tables
    ]


def as_dealt(plan: Plan, tables: list[PlannedTable], statistics: AccessStatistics) -> list[PlannedTable]:
    """Tables that also know their rows in the plan's stripes, where an earlier ranking deals them."""
    ranking = plan_ranking(plan, statistics)
    found = []
    for table in tables:
        placed = plan.table(table.config.name)
        if placed.striped_by:
            n, k = placed.num_embeddings, placed.row_shards
            ranks = rank_of(rank_order(statistics.table(placed.name).ranking(), n))
            stripes = [ranks[ranking(placed.name)[s::k]] for s in range(k)]
            table = dataclasses.replace(table, dealt={**table.dealt, k: table.rows_by_cell(stripes)})
        found.append(table)
    return found


def settings_of(plan: Plan) -> PlanSettings:
    """The settings that a plan was made with."""
    known = {f.name for f in dataclasses.fields(PlanSettings)}
    if unknown := sorted(set(plan.settings) - known):
        raise InputError(
            f"the plan was not made by recsys_opt's solver: its settings have {unknown[0]!r}, which it does "
            "not know"
        )
    document = {**plan.settings, "batch_size": plan.batch_size}
    return from_document(PlanSettings, document, "the plan: settings")


def orders_between(before: Plan, after: Plan, ranking_before: Ranking, ranking_after: Ranking) -> Orders:
    """How both plans rank each table's rows (`plan_ranking`); None where they cannot differ."""

    def counted_by(plan: Plan, name: str) -> tuple[str | None, ...]:
        striped_by = plan.table(name).striped_by
        inputs = ("statistics", striped_by) if striped_by else ("statistics",)
        k = (str(plan.table(name).row_shards),) if striped_by else ()
        return (*(plan.inputs.get(i, {}).get("sha256") for i in inputs), *k)

    def orders(name: str) -> Rankings | None:
        if counted_by(before, name) == counted_by(after, name):
            return None
        return ranking_before(name), ranking_after(name)

    return orders
