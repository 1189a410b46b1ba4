"""The representations, by name. Adding one is one file and one line here."""

from __future__ import annotations

import importlib

import torch

from recsys_opt.embeddings.base import EmbeddingRepresentation
from recsys_opt.errors import InputError
from recsys_opt.tables import TableConfig

# name: "module:class"; imported on first use.
REPRESENTATIONS: dict[str, str] = {
    "dense": "recsys_opt.embeddings.dense:DenseEmbeddingBag",
    "tt": "recsys_opt.embeddings.tt:TTEmbeddingBag",
    "tt_cached": "recsys_opt.embeddings.hot_rows:CachedTTEmbeddingBag",
    "dhe": "recsys_opt.embeddings.dhe:DHEEmbeddingBag",
    "hybrid": "recsys_opt.embeddings.hybrid:HybridEmbeddingBag",
    "tiered": "recsys_opt.embeddings.tiered:TieredEmbeddingBag",
    "fbgemm": "recsys_opt.integrations.fbgemm:FBGEMMEmbeddingBag",
}


def representation_class(name: str) -> type[EmbeddingRepresentation]:
    """The class of a representation."""
    if name not in REPRESENTATIONS:
        raise InputError(f"there is no representation {name!r}; choose one of {', '.join(REPRESENTATIONS)}")
    module, _, attribute = REPRESENTATIONS[name].partition(":")
    found: type[EmbeddingRepresentation] = getattr(importlib.import_module(module), attribute)
    return found


def build_embedding(
    config: TableConfig, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> EmbeddingRepresentation:
    """The module that `config` asks for."""
    return representation_class(config.representation).from_config(config, device=device, dtype=dtype)
