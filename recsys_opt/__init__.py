"""recsys_opt: fit a recommendation model's embedding tables into the memory and latency you have."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recsys_opt.embeddings.dhe import DHEEmbeddingBag as DHEEmbeddingBag
    from recsys_opt.embeddings.fused_update import FusedUpdate as FusedUpdate
    from recsys_opt.embeddings.hot_rows import CachedTTEmbeddingBag as CachedTTEmbeddingBag
    from recsys_opt.embeddings.hybrid import HybridEmbeddingBag as HybridEmbeddingBag
    from recsys_opt.embeddings.tiered import TieredEmbeddingBag as TieredEmbeddingBag
    from recsys_opt.embeddings.tt import TTEmbeddingBag as TTEmbeddingBag
    from recsys_opt.embeddings.tt_budget import choose_tables as choose_tables
    from recsys_opt.models.dlrm import DLRM as DLRM
    from recsys_opt.tables import TableConfig as TableConfig

__version__ = "0.2.0.dev0"
__all__ = [
    "DLRM",
    "CachedTTEmbeddingBag",
    "DHEEmbeddingBag",
    "FusedUpdate",
    "HybridEmbeddingBag",
    "TTEmbeddingBag",
    "TableConfig",
    "TieredEmbeddingBag",
    "__version__",
    "choose_tables",
]

# Public names load on first use: `recsys-opt --help` and `recsys-opt doctor` must not need torch.
_HOMES = {
    "CachedTTEmbeddingBag": "recsys_opt.embeddings.hot_rows",
    "DHEEmbeddingBag": "recsys_opt.embeddings.dhe",
    "DLRM": "recsys_opt.models.dlrm",
    "FusedUpdate": "recsys_opt.embeddings.fused_update",
    "HybridEmbeddingBag": "recsys_opt.embeddings.hybrid",
    "TTEmbeddingBag": "recsys_opt.embeddings.tt",
    "TableConfig": "recsys_opt.tables",
    "TieredEmbeddingBag": "recsys_opt.embeddings.tiered",
    "choose_tables": "recsys_opt.embeddings.tt_budget",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'recsys_opt' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
