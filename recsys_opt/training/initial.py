"""The model that training starts from: drawn from the seed, or taken over from a trained run.

    recsys-opt train kaggle/ --out runs/dense
    recsys-opt convert runs/dense --out runs/fit --tt-threshold 100k --tt-rank 32    # the tables alone
    recsys-opt train kaggle/ --out runs/tuned --init-from runs/fit --core-lr 0.002   # and fine-tuning

The last two are one with `train --init-from runs/dense --tt-threshold 100k --tt-rank 32`. From Python:
`convert_run("runs/dense", "runs/fit", CompressionConfig(tt_threshold=100_000, tt_rank=32))` and
`train(replaced(config, {"init_from": "runs/fit"}), dataset, "runs/tuned")`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from recsys_opt.data.dataset import Dataset, SparseColumn
from recsys_opt.environment import environment
from recsys_opt.errors import InputError
from recsys_opt.files import FolderLock
from recsys_opt.models.convert import TableFit, convert_model
from recsys_opt.models.dlrm import DLRM
from recsys_opt.models.recipes import hashed_tables, table_configs
from recsys_opt.models.saved import describe_model, load_model
from recsys_opt.progress import Progress
from recsys_opt.run_folder import RunFolder
from recsys_opt.tables import TableConfig
from recsys_opt.training.budget import with_chosen_tables
from recsys_opt.training.checkpoint import Position, write_checkpoint
from recsys_opt.training.config import (
    HASHED,
    CompressionConfig,
    HashingConfig,
    PlacementConfig,
    TrainingConfig,
    differences,
)
from recsys_opt.training.lookup_counts import count_lookups, counts_for_run, new_trains
from recsys_opt.training.metrics import RecentMetrics
from recsys_opt.training.optimizers import ModelOptimizer
from recsys_opt.training.placement import drawn_in_place, place_rows, tiered_tables


def initial_model(
    config: TrainingConfig,
    dataset: Dataset,
    device: torch.device,
    progress: Progress | None = None,
) -> DLRM:
    """The model that `config` asks for over a dataset's columns, before its first update."""
    if config.init_from is not None:
        return _taken_over(config, config.init_from, dataset, device, progress)
    torch.manual_seed(config.seed)
    tables = wanted_tables(config, dataset.info.sparse_columns)
    if not config.placement.hot_rows:
        return config.architecture.build(tables, device=device)
    with drawn_in_place(tables, config.placement, progress):
        return config.architecture.build(tables, device=device)


def wanted_tables(config: TrainingConfig, columns: Sequence[SparseColumn]) -> list[TableConfig]:
    """The tables that `config` asks for over a dataset's columns."""
    tables = table_configs(
        columns,
        config.architecture.embedding_dim,
        tt_threshold=config.compression.tt_threshold,
        tt_tables=config.compression.tt_tables,
        tt_ranks=config.compression.tt_rank,
        tt_options=config.compression.tt_options,
        tt_cache_rows=config.compression.tt_cache_rows,
        tt_cache_refresh_every=config.compression.tt_cache_refresh_every,
        dense_representation=config.dense_representation,
    )
    tables = hashed_tables(
        tables,
        config.representation,
        options=config.hashing.options(),
        largest=config.hashing.dhe_largest,
        names=config.hashing.dhe_tables,
        two_vectors=config.hashing.hybrid_parts == "features",
    )
    return tiered_tables(tables, config.placement)


@dataclass(frozen=True)
class Conversion:
    """What `convert_run` did."""

    fits: list[TableFit]
    weighting: str
    """What each row counted in the fits, in words."""


def convert_run(
    run: Path | str,
    out: Path | str,
    compression: CompressionConfig,
    *,
    tolerance: float | None = None,
    count_from: Path | str | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Writes a run folder whose model is the trained one of `run` with its tables as `compression` says.

    Nothing is trained. `train --evaluate-only` evaluates the new run, `train --init-from` fine-tunes it.

    compression  a memory budget in it needs the dataset of `run` where it was, to count lookups
    tolerance    instead of ranks: see `convert_model`; every row counts alike then
    count_from   the dataset whose training rows say how often a table's rows are looked up; default: that of
                 `run`, and if it is there no longer, every row counts alike
    """
    if count_from is not None and (tolerance is not None or compression.tt_fit == "svd"):
        raise InputError("count_from: neither a tolerance nor tt_fit = 'svd' counts lookups; leave one out")
    source = RunFolder(run)
    description = source.description()
    # A plan's tables and deep hash embeddings are dense ones afterwards, where they do not become tensor
    # trains.
    config = dataclasses.replace(
        TrainingConfig.from_json(description["config"]),
        compression=compression,
        placement=PlacementConfig(),
        representation=None,
        hashing=HashingConfig(),
        init_from=str(run),
    )
    target = RunFolder(out)
    with FolderLock(target.path), torch.random.fork_rng():
        if target.exists():
            raise InputError(f"{target.path} already holds a run; choose another folder")
        if compression.memory_budget is not None:
            config, _ = with_chosen_tables(config, Dataset(description["dataset"]["path"]), progress)
        old = load_model(run, device="cpu")
        _refuse_two_vectors(old, run, config.architecture.embedding_dim)
        wanted = wanted_tables(config, _columns(old))
        counts, weighting = None, "every row alike"
        if tolerance is None and compression.tt_fit == "counts":
            named = new_trains(old, wanted)
            counts, weighting = counts_for_run(description, named, count_from, progress)
        model, fits = convert_model(old, wanted, tolerance=tolerance, row_weights=counts, progress=progress)
        if not fits:
            sizes = ", ".join(f"{c.name} {c.num_embeddings}" for c in old.embeddings.configs)
            raise InputError(
                f"no table of {run} changes: the settings name none, or those that they name are so already; "
                f"the tables and their rows are {sizes}"
            )
        # The settings say what they came to: ranks by tolerance, and the shapes of trains that were rounded.
        own = {c.name: dict(c.options) for c in model.embeddings.configs if "tt_ranks" in c.options}
        chosen = dataclasses.replace(
            config.compression, tt_threshold=None, tt_tables=(), tt_options=own, memory_budget=None
        )
        config = dataclasses.replace(config, compression=chosen)
        described = describe_model(config.architecture, model)
        documents = {"config": config.to_json(), "model": described, "dataset": description["dataset"]}
        target.write_description(
            {
                **documents,
                "environment": environment(),
                "conversion": [fit.to_json() for fit in fits],
                "conversion_weights": weighting,
            }
        )
        target.metrics_path.touch()
        write_checkpoint(
            target,
            Position(step=0, epoch=0, row=0, rows_seen=0, metrics_bytes=0),
            model,
            ModelOptimizer(model, config.optimizer).state_dict(),
            {**RecentMetrics().state(), "torch_rng": torch.get_rng_state()},
            documents,
        )
    return Conversion(fits, weighting)


def _taken_over(
    config: TrainingConfig,
    run: str,
    dataset: Dataset,
    device: torch.device,
    progress: Progress | None,
) -> DLRM:
    before = TrainingConfig.from_json(RunFolder(run).description()["config"])
    model = load_model(run, device=device, cold_dir=config.placement.cold_dir)
    columns = dataset.info.sparse_columns
    sizes: list[Any] = [[c.num_embeddings for c in model.embeddings.configs]]
    sizes.append([c.num_embeddings for c in columns])
    if sizes[0] != sizes[1]:
        raise InputError(
            f"{run} has tables of {sizes[0]} rows, but the dataset's columns have {sizes[1]} ids; prepare "
            "the dataset in the same way as that run's"
        )
    fixed: tuple[str, ...] = ("architecture.",)
    if config.representation in HASHED:  # no table can become a network
        fixed = ("architecture.", "hashing.", "representation")
    else:
        _refuse_two_vectors(model, run, config.architecture.embedding_dim)
    changed = [d for d in differences(before, config) if d.startswith(fixed)]
    if changed:
        raise InputError(f"the weights of {run} do not fit the settings: {'; '.join(changed)}")
    kept = ("representation", "hashing", "compression", "dense_representation", "placement")
    if any(getattr(before, name) != getattr(config, name) for name in kept):
        wanted, counts = wanted_tables(config, columns), None
        if config.compression.tt_fit == "counts":
            counts = count_lookups(dataset, new_trains(model, wanted), before.max_rows, progress)
        model, _ = convert_model(model, wanted, row_weights=counts, progress=progress)
    if config.placement.hot_rows:
        place_rows(model, config.placement, progress)
    return model.train()


def _refuse_two_vectors(model: DLRM, run: Path | str, dim: int) -> None:
    """Raises for a hybrid model whose tables no single vector can stand for."""
    for config in model.embeddings.configs:
        if config.embedding_dim != dim:
            raise InputError(
                f"table {config.name} of {run} makes {config.embedding_dim // dim} vectors of {dim}, a "
                "hybrid's parts as features of their own; it cannot become a table of one. Train with "
                "--representation table, or --hybrid-parts halves, instead"
            )


def _columns(model: DLRM) -> list[SparseColumn]:
    return [SparseColumn(c.name, c.num_embeddings) for c in model.embeddings.configs]
