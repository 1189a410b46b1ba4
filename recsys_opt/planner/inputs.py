"""What a plan was made from, found again: tables, statistics, hardware and settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recsys_opt.data.access_statistics import AccessStatistics
from recsys_opt.data.table_traces import FILE_NAME, FORMAT, VERSION
from recsys_opt.errors import InputError
from recsys_opt.files import read_json
from recsys_opt.plan import Plan
from recsys_opt.planner.hardware import Hardware
from recsys_opt.planner.problem import PlannedTable, PlanSettings, planned_tables
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
        try:
            made.append(TableConfig(**{key: entry[key] for key in known if key in entry}))
        except (TypeError, AttributeError) as error:
            raise InputError(
                f"{path}: entry {at} of 'tables' is not a table ({error}); give name, num_embeddings and "
                "embedding_dim"
            ) from None
    return made


@dataclass(frozen=True, eq=False)
class PlanInputs:
    """All that a plan depends on."""

    tables: list[PlannedTable]
    hardware: Hardware
    settings: PlanSettings
    files: Mapping[str, Mapping[str, str]]
    """For `Plan.inputs`."""

    @classmethod
    def gather(
        cls,
        statistics_path: Path,
        tables: list[TableConfig] | int,
        hardware: Hardware,
        settings: PlanSettings,
        *,
        hardware_name: str = "",
    ) -> PlanInputs:
        """From files; `tables` may be the columns of all of the statistics' tables."""
        statistics = AccessStatistics.load(statistics_path)
        planned = planned_tables(statistics, tables)
        files = {
            "statistics": {"path": str(statistics_path), "sha256": statistics.sha256},
            "hardware": {"path": hardware_name, "sha256": hardware.sha256},
        }
        return cls(planned, hardware, settings, files)

    @classmethod
    def of(cls, plan: Plan, statistics: Path | None = None) -> PlanInputs:
        """Those of a plan; `statistics` where its file is not where it was. Refuses other statistics."""
        said = plan.inputs.get("statistics", {})
        path = statistics or (Path(said["path"]) if "path" in said else None)
        if path is None:
            raise InputError("the plan does not say which statistics it was made from; give --stats NPZ")
        tables = [
            TableConfig(t.name, t.num_embeddings, t.embedding_dim, t.feature_names, t.pooling)  # type: ignore[arg-type]
            for t in plan.tables
        ]
        found = cls.gather(
            path, tables, Hardware.from_json(plan.hardware, "the plan's hardware"), settings_of(plan)
        )
        sha256 = found.files["statistics"]["sha256"]
        if said.get("sha256", sha256) != sha256:
            raise InputError(
                f"{path} has changed since the plan was made (sha256 {sha256[:12]}..., then "
                f"{said['sha256'][:12]}...); plan again, or give the statistics of then with --stats"
            )
        return dataclasses.replace(found, files=plan.inputs)


def settings_of(plan: Plan) -> PlanSettings:
    """The settings that a plan was made with."""
    known = {f.name for f in dataclasses.fields(PlanSettings)}
    if unknown := sorted(set(plan.settings) - known):
        raise InputError(
            f"the plan was not made by recsys_opt's solver: its settings have {unknown[0]!r}, which it does "
            "not know"
        )
    values: dict[str, Any] = {**plan.settings, "batch_size": plan.batch_size}
    if "shardings" in values:
        values["shardings"] = tuple(values["shardings"])
    return PlanSettings(**values)
