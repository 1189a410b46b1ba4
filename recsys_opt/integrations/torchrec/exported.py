"""What `recsys-opt plan export torchrec` wrote, as a module and its remap."""

from __future__ import annotations

from pathlib import Path

import torch

from recsys_opt.data.plan_ranking import plan_ranking
from recsys_opt.integrations.plan_export import read_export
from recsys_opt.integrations.torchrec.plan import PlannedEmbeddingBagCollection
from recsys_opt.integrations.torchrec.remap import PlanRemap


def load_plan(
    path: Path | str,
    *,
    statistics: Path | str | None = None,
    is_weighted: bool = False,
    device: torch.device | str = "meta",
) -> tuple[PlannedEmbeddingBagCollection, PlanRemap]:
    """The tables of an exported plan, for the model, and the remap of their ids, for the data loader.

    statistics  where they are now, if not where they were beside the export; they must be the same ones
    """
    plan, found = read_export(path, statistics)
    rankings = {}
    if found is not None:
        ranking = plan_ranking(plan, found, folder=Path(path).parent)
        rankings = {t.name: ranking(t.name) for t in plan.tables}
    tables = PlannedEmbeddingBagCollection(
        plan, rankings, is_weighted=is_weighted, device=torch.device(device)
    )
    return tables, PlanRemap(plan, rankings)
