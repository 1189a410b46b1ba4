"""The order in which a plan counts a table's rows, from the statistics that it was made from."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from recsys_opt.data.access_statistics import AccessStatistics
from recsys_opt.errors import InputError
from recsys_opt.plan import Plan
from recsys_opt.ranks import rank_order, restriped

Ranking = Callable[[str], NDArray[Any]]
"""Table -> its rows, hottest first; those that it leaves out follow in ascending order."""
STATISTICS = "statistics"
"""The input of a plan that ranks its rows."""


def plan_ranking(plan: Plan, statistics: AccessStatistics, *, folder: Path | None = None) -> Ranking:
    """The rankings that a plan's ranks mean.

    statistics  those that the plan was made from
    folder      where earlier statistics, by which tables are striped, are also looked for
    """

    @cache
    def earlier(name: str) -> AccessStatistics:
        return plan_statistics(plan, name, folder=folder)

    def ranking(name: str) -> NDArray[Any]:
        table, own = plan.table(name), statistics.table(name).ranking()
        if not table.striped_by:
            return own
        base = earlier(table.striped_by).table(name).ranking()
        n = table.num_embeddings
        return restriped(rank_order(own, n), rank_order(base, n), table.row_shards)

    return ranking


def plan_statistics(
    plan: Plan, name: str = STATISTICS, path: Path | None = None, *, folder: Path | None = None
) -> AccessStatistics:
    """Statistics that a plan names among its inputs; refuses others.

    path    where they are now; default: `statistics_path`
    """
    path = path or statistics_path(plan, name, folder=folder)
    if not path.exists():
        what = "was made from" if name == STATISTICS else "deals rows to stripes by"
        raise InputError(f"{path}, which the plan {what}, does not exist; put it there again, or plan anew")
    said, found = plan.inputs.get(name, {}), AccessStatistics.load(path)
    if said.get("sha256", found.sha256) != found.sha256:
        raise InputError(
            f"{path} has changed since the plan was made (sha256 {found.sha256[:12]}..., then "
            f"{said['sha256'][:12]}...); plan again, or give the statistics of then"
        )
    return found


def statistics_path(plan: Plan, name: str = STATISTICS, *, folder: Path | None = None) -> Path:
    """Where statistics are that a plan names: as it says, or, where there are none, in `folder`."""
    said = plan.inputs.get(name, {})
    if "path" not in said:
        raise InputError("the plan does not say which statistics it was made from; give --stats NPZ")
    path = Path(said["path"])
    beside = [] if folder is None else [folder / path, folder / path.name]
    return next((p for p in (path, *beside) if p.exists()), path)
