"""TorchRec: our tables in its models, our plans on its sharding, its planner as a baseline.

collection  recsys_opt's tables in the place of an EmbeddingBagCollection
plan        a plan's tables in the place of an EmbeddingBagCollection, its ShardingPlan
exported    the same from a file of `recsys-opt plan export torchrec`
weights     weights and optimizer states of a plan's tables, in and out, in the order of ids
migrate     the same, from a model under one plan to a model under another
remap       ids as they are in the data -> rows of a plan's tier tables
planner     TorchRec's own planner as a baseline, in a process of its own

The only import of torchrec.
"""

from recsys_opt.errors import InputError

try:
    import torchrec as torchrec
except (ImportError, OSError) as error:
    raise InputError(
        "recsys_opt.integrations.torchrec needs the package torchrec, which does not import here "
        f"({' '.join(str(error).split())[:200]}); run scripts/setup.sh"
    ) from error

from recsys_opt.integrations.torchrec.collection import (
    KeyedEmbeddingCollection,
    keyed_collection,
    table_config,
    with_tensor_trains,
)
from recsys_opt.integrations.torchrec.exported import load_plan
from recsys_opt.integrations.torchrec.migrate import Moved, move_tables
from recsys_opt.integrations.torchrec.plan import (
    PlannedEmbeddingBagCollection,
    planned_collections,
    sharding_plan,
    tier_parameters,
)
from recsys_opt.integrations.torchrec.planner import (
    PlacedTable,
    Placement,
    PlannerMachine,
    PlannerTable,
    torchrec_placement,
)
from recsys_opt.integrations.torchrec.remap import PlanRemap
from recsys_opt.integrations.torchrec.sharding import TierTablesSharder
from recsys_opt.integrations.torchrec.weights import load_tables, load_weights, save_tables

__all__ = [
    "KeyedEmbeddingCollection",
    "Moved",
    "PlacedTable",
    "Placement",
    "PlanRemap",
    "PlannedEmbeddingBagCollection",
    "PlannerMachine",
    "PlannerTable",
    "TierTablesSharder",
    "keyed_collection",
    "load_plan",
    "load_tables",
    "load_weights",
    "move_tables",
    "planned_collections",
    "save_tables",
    "sharding_plan",
    "table_config",
    "tier_parameters",
    "torchrec_placement",
    "with_tensor_trains",
]
