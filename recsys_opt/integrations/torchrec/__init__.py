"""TorchRec: our tables in its models, our plans on its sharding, its planner as a baseline.

collection  recsys_opt's tables in the place of an EmbeddingBagCollection
plan        a plan's tables in the place of an EmbeddingBagCollection, its ShardingPlan
weights     weights and optimizer states of a plan's tables, in and out, in the order of ids
remap       ids as they are in the data -> rows of a plan's tier tables

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
from recsys_opt.integrations.torchrec.plan import (
    PlannedEmbeddingBagCollection,
    planned_collections,
    sharding_plan,
    tier_parameters,
)
from recsys_opt.integrations.torchrec.remap import PlanRemap
from recsys_opt.integrations.torchrec.sharding import TierTablesSharder
from recsys_opt.integrations.torchrec.weights import load_tables, load_weights, save_tables

__all__ = [
    "KeyedEmbeddingCollection",
    "PlanRemap",
    "PlannedEmbeddingBagCollection",
    "TierTablesSharder",
    "keyed_collection",
    "load_tables",
    "load_weights",
    "planned_collections",
    "save_tables",
    "sharding_plan",
    "table_config",
    "tier_parameters",
    "with_tensor_trains",
]
