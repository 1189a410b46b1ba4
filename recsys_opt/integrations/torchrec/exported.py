"""What `recsys-opt plan export torchrec` wrote, as a module and its remap."""

from __future__ import annotations

from pathlib import Path

import torch

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
    rankings = {} if found is None else {t.name: found.table(t.name).ranking() for t in plan.tables}
    tables = PlannedEmbeddingBagCollection(
        plan, rankings, is_weighted=is_weighted, device=torch.device(device)
    )
    return tables, PlanRemap(plan, rankings)
