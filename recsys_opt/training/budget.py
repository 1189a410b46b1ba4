"""`memory_budget` resolved: lookups counted, tables chosen, the choice put into the configuration.

    config, choice = with_chosen_tables(replaced(config, {"compression.memory_budget": 20_000_000}), dataset)

The choice is kept in `compression.tt_options`, so a run that goes on has the tables that it began with, and
counts nothing again.
"""

from __future__ import annotations

import dataclasses

from recsys_opt.data.access import count_access
from recsys_opt.data.dataset import Dataset
from recsys_opt.embeddings.dense import DenseEmbeddingBag
from recsys_opt.embeddings.tt_budget import BudgetChoice, choose_tables
from recsys_opt.embeddings.tt_spectra import losses_by_spectra
from recsys_opt.models.recipes import table_configs
from recsys_opt.models.saved import load_model
from recsys_opt.progress import Progress
from recsys_opt.run_folder import RunFolder
from recsys_opt.training.config import TrainingConfig
from recsys_opt.training.optimizers import OptimizerConfig


def with_chosen_tables(
    config: TrainingConfig, dataset: Dataset, progress: Progress | None = None
) -> tuple[TrainingConfig, BudgetChoice | None]:
    """The configuration with the budget's choice in it; unchanged without a budget, or where it has one."""
    budget = config.compression.memory_budget
    if budget is None or config.compression.tt_options:
        return config, None
    choice = choose_for_dataset(config, dataset, budget, progress)
    compression = dataclasses.replace(config.compression, tt_options=choice.tt_options())
    return dataclasses.replace(config, compression=compression), choice


def with_tables_of(config: TrainingConfig, run: RunFolder) -> TrainingConfig:
    """`config`, to go on with a run: with what the run's budget came to, where `config` leaves that open."""
    if config.compression.memory_budget is None or config.compression.tt_options:
        return config
    chosen = TrainingConfig.from_json(run.description()["config"]).compression.tt_options
    return dataclasses.replace(config, compression=dataclasses.replace(config.compression, tt_options=chosen))


def choose_for_dataset(
    config: TrainingConfig, dataset: Dataset, budget_bytes: int, progress: Progress | None = None
) -> BudgetChoice:
    """Tables for `budget_bytes`, from the lookups and labels of the rows that `config` trains on.

    Tables that are taken over from a trained run (`init_from`) are judged by their spectra.
    """
    configs = table_configs(
        dataset.info.sparse_columns,
        config.architecture.embedding_dim,
        dense_representation=config.dense_representation,
    )
    access = count_access(dataset, "train", max_rows=config.max_rows, progress=progress)
    judges = {}
    if config.init_from is not None:
        trained = load_model(config.init_from).embeddings
        by_name = {a.name: a for a in access}
        judges = {
            name: losses_by_spectra(table.weight, by_name[name])
            for name in trained.tables
            if isinstance(table := trained.table(name), DenseEmbeddingBag) and name in by_name
        }
    per_parameter, per_dense_row = _state_bytes(config.optimizer)
    return choose_tables(
        configs,
        access,
        budget_bytes,
        judges=judges,
        state_per_parameter=per_parameter,
        state_per_dense_row=per_dense_row,
    )


def _state_bytes(config: OptimizerConfig) -> tuple[float, float]:
    """(per parameter of a tensor train, per row of a dense table)."""
    return {"sgd": (0.0, 0.0), "adagrad": (4.0, 4.0)}[config.algorithm]
