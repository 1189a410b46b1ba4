"""Models described by JSON, and loaded from a run's last checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from recsys_opt.errors import InputError
from recsys_opt.models.dlrm import DLRM
from recsys_opt.models.recipes import DLRMConfig
from recsys_opt.run_folder import RunFolder
from recsys_opt.tables import TableConfig
from recsys_opt.tensor_files import read_into


def describe_model(config: DLRMConfig, model: DLRM) -> dict[str, Any]:
    """What `model_from_description` needs, and what each table takes up."""
    stored = model.embeddings.storage_bytes()
    dense = model.embeddings.dense_bytes()
    return {
        **asdict(config),
        "tables": [
            {
                **asdict(c),
                "options": {**c.options, **model.embeddings.table(c.name).settled_options()},
                "storage_bytes": stored[c.name],
                "dense_bytes": dense[c.name],
            }
            for c in model.embeddings.configs
        ],
    }


def model_from_description(
    document: Mapping[str, Any], *, device: torch.device | str | None = None
) -> tuple[DLRMConfig, DLRM]:
    """The model that `describe_model` describes, newly initialised."""
    try:
        config = DLRMConfig(
            bottom_mlp=tuple(document["bottom_mlp"]),
            top_mlp=tuple(document["top_mlp"]),
            dense_features=document["dense_features"],
        )
        sizes = ("storage_bytes", "dense_bytes")
        tables = [
            TableConfig(**{k: v for k, v in table.items() if k not in sizes}) for table in document["tables"]
        ]
    except (KeyError, TypeError) as error:
        raise InputError(f"the checkpoint's model description is not one: {error!r}") from None
    return config, config.build(tables, device=device)


def load_model(run: Path | str, *, device: torch.device | str | None = None) -> DLRM:
    """The trained model of a run folder, in evaluation mode."""
    found = RunFolder(run).checkpoint_document()
    if found is None:
        raise InputError(f"{run} has no checkpoint; train it first: recsys-opt train DATASET --out {run}")
    folder, document = found
    _, model = model_from_description(document["model"], device=device)
    read_into(folder / "model.safetensors", model.state_dict())
    return model.eval()
