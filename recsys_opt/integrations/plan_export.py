"""A plan in files for other programs: TorchRec's placement, or one entry for each piece. Needs no torchrec.

`torchrec` holds, beside the plan itself:

    sharding   table -> what TorchRec's ParameterSharding says of it: sharding type, kernel, ranks, shards
    tables     table -> rows, columns, the keys that look it up, and which rows it has: those of the ranks
               first, first + step, ... of the table `of`, `rows` of them, columns `columns`
    remap      keys of the remapped KeyedJaggedTensor, in order, and the statistics whose ranking the ranks
               are of; `recsys_opt.integrations.torchrec.load_plan` builds both from it
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from recsys_opt.data.access_statistics import AccessStatistics
from recsys_opt.data.plan_ranking import plan_statistics, statistics_path
from recsys_opt.errors import InputError
from recsys_opt.files import read_json, write_json
from recsys_opt.integrations.plan_layout import PlanLayout, check_widths, features_of
from recsys_opt.plan import Plan

Form = Literal["torchrec", "json"]
FORMATS: Mapping[Form, str] = {"torchrec": "recsys_opt.torchrec_plan", "json": "recsys_opt.plan_pieces"}
VERSION = 1


def export_plan(plan: Plan, path: Path | str, form: Form, statistics: Path | str | None = None) -> None:
    """Writes the file.

    statistics  stats.npz that the plan was made from; default: as the plan says. Without any, rows are ranked
                by their ids.
    """
    path = Path(path)
    if form == "json":
        write_json(path, FORMATS[form], VERSION, _pieces(plan))
        return
    check_widths(plan)
    found = statistics_of(plan, statistics)
    layout = PlanLayout(plan)
    remap: dict[str, Any] = {"keys": list(layout.keys), "statistics": None}
    if found is not None:
        there, loaded = found
        beside = os.path.relpath(there.resolve(), path.resolve().parent)
        remap["statistics"] = {"path": beside, "sha256": loaded.sha256}
    content = {
        "sharding": layout.sharding(),
        "tables": _tables(layout),
        "remap": remap,
        "plan": _beside(plan, path).to_json(),
    }
    write_json(path, FORMATS[form], VERSION, content)


def _beside(plan: Plan, path: Path) -> Plan:
    """The plan with earlier statistics, by which some of its tables are striped, as seen from the export."""
    earlier = {}
    for name in {t.striped_by for t in plan.tables if t.striped_by}:
        there = statistics_path(plan, name)
        plan_statistics(plan, name, there)
        earlier[name] = {**plan.inputs[name], "path": os.path.relpath(there.resolve(), path.resolve().parent)}
    return plan.with_inputs(earlier)


def read_export(
    path: Path | str, statistics: Path | str | None = None
) -> tuple[Plan, AccessStatistics | None]:
    """The plan of a `torchrec` export and the statistics whose ranking it counts by, checked."""
    path = Path(path)
    document = read_json(path, FORMATS["torchrec"], VERSION)
    try:
        plan = Plan.from_json(document["plan"], str(path))
        named = document["remap"]["statistics"]
        beside = None if named is None else path.parent / named["path"]
        sha256 = None if named is None else str(named["sha256"])
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not an exported plan that can be read ({error!r}); export it again"
        ) from None
    if statistics is None and beside is None:
        return plan, None
    loaded = _load(Path(statistics) if statistics is not None else beside or path, plan, sha256)
    return plan, loaded


def statistics_of(plan: Plan, statistics: Path | str | None = None) -> tuple[Path, AccessStatistics] | None:
    """The statistics that a plan was made from, and where they are; None if it says of none."""
    said = plan.inputs.get("statistics")
    if statistics is None and said is None:
        return None
    path = Path(statistics if statistics is not None else (said or {})["path"])
    return path, _load(path, plan, (said or {}).get("sha256"))


def _load(path: Path, plan: Plan, sha256: str | None) -> AccessStatistics:
    if not path.exists():
        raise InputError(f"the plan's statistics {path} do not exist; say where they are with --stats")
    loaded = AccessStatistics.load(path)
    if sha256 is not None and loaded.sha256 != sha256:
        raise InputError(
            f"{path} has other statistics (sha256 {loaded.sha256[:12]}) than the plan was made from "
            f"({sha256[:12]}): its ranks would mean other rows; give those, or make the plan again"
        )
    for table in plan.tables:
        rows = loaded.table(table.name).num_embeddings
        if rows != table.num_embeddings:
            raise InputError(
                f"{path}: table {table.name} has {rows} rows; the plan's has {table.num_embeddings}"
            )
    return loaded


def _tables(layout: PlanLayout) -> dict[str, dict[str, Any]]:
    content: dict[str, dict[str, Any]] = {}
    for t in layout.tables:
        content[t.name] = {
            "of": t.piece.table,
            "tier": t.tier,
            "rows": t.rows,
            "columns": list(t.piece.columns),
            "ranks": {"first": t.ranks.start, "step": t.ranks.step},
            "keys": list(t.keys),
        }
    for copy in layout.copies:
        content[copy.name] = {
            "of": copy.name,
            "tier": "hot",
            "rows": copy.num_embeddings,
            "columns": [0, copy.embedding_dim],
            "ranks": None,
            "keys": list(features_of(copy)),
        }
    return content


def _pieces(plan: Plan) -> dict[str, Any]:
    return {
        "num_devices": plan.num_devices,
        "pieces": [
            {
                "table": piece.table,
                "device": piece.device,
                "columns": list(piece.columns),
                "stripe": list(piece.stripe),
                "rows": piece.rows,
                "hot_rows": piece.hot_rows,
                "replicated": table.replicated,
            }
            for table in plan.tables
            for piece in table.pieces()
        ],
    }
