"""Models described by JSON, and loaded from a run's last checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from recsys_opt.errors import InputError
from recsys_opt.models.dlrm import DLRM
from recsys_opt.models.recipes import DLRMConfig
from recsys_opt.run_folder import RunFolder
from recsys_opt.tables import TableConfig
from recsys_opt.tensor_files import read_into, tensor_shapes

_LOCAL = frozenset({"cold_dir"})
"""Options that say where a table is on this machine, which is no part of a model."""


def describe_model(config: DLRMConfig, model: DLRM) -> dict[str, Any]:
    """What `model_from_description` needs, and what each table takes up."""
    stored = model.embeddings.storage_bytes()
    return {
        **asdict(config),
        "tables": [
            {
                **asdict(c),
                "options": {
                    **{name: value for name, value in c.options.items() if name not in _LOCAL},
                    **model.embeddings.table(c.name).settled_options(),
                },
                "storage_bytes": stored[c.name],
                # Of the plain table in its place, however many vectors this one makes.
                "dense_bytes": 4 * c.num_embeddings * config.embedding_dim,
            }
            for c in model.embeddings.configs
        ],
    }


def model_from_description(
    document: Mapping[str, Any],
    *,
    weights: Path | None = None,
    device: torch.device | str | None = None,
    cold_dir: str | None = None,
) -> tuple[DLRMConfig, DLRM]:
    """The model that `describe_model` describes, newly initialised.

    weights  the file that will be read into it: says the factors of tensor trains that the document, of an
             earlier version, leaves to the defaults of its time
    cold_dir  the folder for the cold rows of tiered tables; None: they are in memory
    """
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
        if cold_dir is not None:
            tables = [
                replace(t, options={**t.options, "cold_dir": cold_dir}) if t.representation == "tiered" else t
                for t in tables
            ]
        if weights is not None and any(_leaves_factors_open(table) for table in tables):
            shapes = tensor_shapes(weights)
            tables = [_with_factors(table, shapes) for table in tables]
    except (KeyError, TypeError) as error:
        raise InputError(f"the checkpoint's model description is not one: {error!r}") from None
    return config, config.build(tables, device=device)


def load_model(
    run: Path | str, *, device: torch.device | str | None = None, cold_dir: str | None = None
) -> DLRM:
    """The trained model of a run folder, in evaluation mode; `cold_dir` as `model_from_description`'s."""
    found = RunFolder(run).checkpoint_document()
    if found is None:
        raise InputError(f"{run} has no checkpoint; train it first: recsys-opt train DATASET --out {run}")
    folder, document = found
    weights = folder / "model.safetensors"
    _, model = model_from_description(document["model"], weights=weights, device=device, cold_dir=cold_dir)
    read_into(weights, model.state_dict())
    return model.eval()


def _leaves_factors_open(table: TableConfig) -> bool:
    return "tt_ranks" in table.options and "tt_q_shapes" not in table.options


def _with_factors(table: TableConfig, shapes: Mapping[str, Sequence[int]]) -> TableConfig:
    """The table with the factors that its cores, [n, q, r, r'] each, have in a file."""
    if not _leaves_factors_open(table):
        return table
    prefix = f"embeddings.tables.{table.name}."
    cores = [shape for key, shape in sorted(shapes.items()) if key.startswith(prefix) and ".cores." in key]
    own = {"tt_p_shapes": [shape[0] for shape in cores], "tt_q_shapes": [shape[1] for shape in cores]}
    return replace(table, options={**table.options, **own} if cores else table.options)
