"""`train --plan`: which rows of the tables are in the fast tier, settled from plan.json and stats.npz.

    config = with_plan(replaced(config, {"placement.plan": "plan.json"}), dataset)

The plan's numbers and the hashes of both files are kept in `placement`, so a run that goes on reads neither
again. Where rows are does not change what they become: a run may go on with another plan, and its rows then
move from one tier to the other, with their optimizer's state.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recsys_opt.data.access_statistics import AccessStatistics
from recsys_opt.data.dataset import Dataset, SparseColumn
from recsys_opt.embeddings.tiered import Rankings, TieredEmbeddingBag, tables_by_rank
from recsys_opt.embeddings.tiered_rows import Ranking
from recsys_opt.errors import InputError, RecsysOptError
from recsys_opt.models.dlrm import DLRM
from recsys_opt.plan import Plan
from recsys_opt.progress import Progress, SilentProgress
from recsys_opt.tables import TableConfig
from recsys_opt.training.config import CompressionConfig, PlacementConfig, TrainingConfig
from recsys_opt.training.optimizers import ModelOptimizer


def with_plan(config: TrainingConfig, dataset: Dataset) -> TrainingConfig:
    """The configuration with what its plan says in it; unchanged without a plan, or where it has that."""
    placement = config.placement
    if placement.plan is None:
        return config
    if config.compression != CompressionConfig() or config.dense_representation != "dense":
        raise InputError(
            "a plan places the rows of dense tables: leave out either the plan (--plan none, where a run is "
            "gone on from) or the settings that make tables tensor trains or FBGEMM's"
        )
    if placement.hot_rows:
        return config
    path = Path(placement.plan)
    plan = Plan.load(path)
    _check_device(plan, placement.plan)
    _check_tables(plan, placement.plan, dataset.info.sparse_columns, config.architecture.embedding_dim)
    hot_rows = {column.name: plan.table(column.name).hot_row_count for column in dataset.info.sparse_columns}
    settled = dataclasses.replace(
        placement, hot_rows=hot_rows, plan_sha256=hashlib.sha256(path.read_bytes()).hexdigest()
    )
    if any(_is_ranked(table.num_embeddings, hot_rows[table.name], placement) for table in plan.tables):
        statistics_path = _statistics_path(plan, placement)
        statistics = _read_statistics(statistics_path, dataset.info.sparse_columns)
        wanted = plan.inputs.get("statistics", {}).get("sha256")
        if wanted is not None and statistics.sha256 != wanted:
            raise InputError(
                f"{statistics_path} is not what {placement.plan} was made from: its hash is "
                f"{statistics.sha256[:12]}, the plan names {wanted[:12]}; give the plan's own statistics by "
                "--statistics, or make the plan again"
            )
        settled = dataclasses.replace(
            settled, statistics=str(statistics_path), statistics_sha256=statistics.sha256
        )
    return dataclasses.replace(config, placement=settled)


def tiered_tables(tables: Sequence[TableConfig], placement: PlacementConfig) -> list[TableConfig]:
    """The tables as the settled plan has them; as they are without one."""
    if not placement.hot_rows:
        return list(tables)
    folder = {} if placement.cold_dir is None else {"cold_dir": placement.cold_dir}
    return [
        dataclasses.replace(
            table, representation="tiered", options={"hot_rows": placement.hot_rows[table.name], **folder}
        )
        for table in tables
    ]


def place_rows(
    model: DLRM,
    placement: PlacementConfig,
    progress: Progress | None = None,
    optimizer: ModelOptimizer | None = None,
) -> None:
    """Moves the rows of a model's tables to where the settled plan has them, with their optimizer's state.

    optimizer  the model's; needed where it has states of rows itself (`table_update` = "stored")
    """
    progress = progress or SilentProgress()
    configs = model.embeddings.configs
    rankings = _rankings(configs, placement)
    progress.start("placing rows", sum(c.num_embeddings for c in configs), "rows")
    for config in configs:
        table = model.embeddings.table(config.name)
        if not isinstance(table, TieredEmbeddingBag):
            raise InputError(f"table {config.name} is no tiered table; a plan places all tables of a model")
        hot_rows = placement.hot_rows[config.name]
        if optimizer is None:
            table.retier(hot_rows=hot_rows, ranking=rankings(config))
        else:
            optimizer.retier(model, table, hot_rows, rankings(config))
        progress.advance(config.num_embeddings, table=config.name)
    progress.finish()


@contextmanager
def drawn_in_place(
    tables: Sequence[TableConfig], placement: PlacementConfig, progress: Progress | None = None
) -> Iterator[None]:
    """In the block, tables are made with their rows where the settled plan has them, table after table."""
    progress = progress or SilentProgress()
    _check_disk(tables, placement)
    rankings = _rankings(tables, placement)
    made: list[TableConfig] = []

    def ranking(config: TableConfig) -> Ranking:
        if made:
            progress.advance(made[-1].num_embeddings, table=made[-1].name)
        made.append(config)
        return rankings(config)

    progress.start("drawing rows", sum(c.num_embeddings for c in tables), "rows")
    with tables_by_rank(ranking):
        yield
    progress.advance(made[-1].num_embeddings, table=made[-1].name)
    progress.finish()


def _check_disk(tables: Sequence[TableConfig], placement: PlacementConfig) -> None:
    """Raises before the first row is drawn, not some minutes later, where the cold rows do not fit."""
    if placement.cold_dir is None or not Path(placement.cold_dir).is_dir():
        return  # a folder that is missing is named where the first file is made
    cold = sum((t.num_embeddings - placement.hot_rows[t.name]) * t.embedding_dim * 4 for t in tables)
    free = shutil.disk_usage(placement.cold_dir).free
    if cold > free:
        raise RecsysOptError(
            f"the plan leaves {cold:,} bytes of rows to files in {placement.cold_dir}, which has {free:,} "
            "bytes free; make room, name another folder by --cold-dir, or plan for more fast memory"
        )


def _rankings(tables: Sequence[TableConfig], placement: PlacementConfig) -> Rankings:
    """The order of each table's rows. Where one tier has all of them it does not matter: none costs least."""
    ranked = {t.name for t in tables if _is_ranked(t.num_embeddings, placement.hot_rows[t.name], placement)}
    if not ranked:
        return lambda _: ()
    path = Path(placement.statistics or "")
    statistics = _read_statistics(path, [SparseColumn(t.name, t.num_embeddings) for t in tables])
    if statistics.sha256 != placement.statistics_sha256:
        raise InputError(
            f"{path} has changed: its hash is {statistics.sha256[:12]}, the run began with "
            f"{placement.statistics_sha256[:12]}; give the former by --statistics, with --plan"
        )
    return lambda config: statistics.table(config.name).ranking() if config.name in ranked else ()


def is_placed(before: Mapping[str, Any], now: PlacementConfig) -> bool:
    """Whether a model saved under the placement `before` (JSON) has its rows where `now` has them."""
    names = ("plan_sha256", "statistics_sha256", "hot_rows")
    return all((before.get(name) or None) == (getattr(now, name) or None) for name in names)


def _is_ranked(rows: int, hot_rows: int, placement: PlacementConfig) -> bool:
    """Whether a table's rows are to be in the order of rank: its lookups need a remap then. In a file,
    frequent rows that are neighbours share pages that stay in memory."""
    return hot_rows < rows and (hot_rows > 0 or placement.cold_dir is not None)


def _statistics_path(plan: Plan, placement: PlacementConfig) -> Path:
    if placement.statistics is not None:
        return Path(placement.statistics)
    named = plan.inputs.get("statistics", {}).get("path")
    if named is None:
        raise InputError(
            f"{placement.plan} does not name the statistics that rank the rows; give them by --statistics "
            "(recsys-opt stats makes them)"
        )
    found = [path for path in (Path(named), Path(str(placement.plan)).parent / named) if path.exists()]
    if not found:
        raise InputError(
            f"{named}, which {placement.plan} was made from, does not exist; give it by --statistics"
        )
    return found[0]


def _read_statistics(path: Path, columns: Sequence[SparseColumn]) -> AccessStatistics:
    statistics = AccessStatistics.load(path)
    for column in columns:
        rows = statistics.table(column.name).num_embeddings
        if rows != column.num_embeddings:
            raise InputError(
                f"{path} is about other tables: its {column.name} has {rows} rows, the model's "
                f"{column.num_embeddings}"
            )
    return statistics


def _check_device(plan: Plan, path: str) -> None:
    if plan.num_devices != 1:
        raise InputError(
            f"{path} is for {plan.num_devices} devices, but `train` runs on one: make a plan for one device, "
            "or run this one on TorchRec (recsys_opt.integrations.torchrec)"
        )


def _check_tables(plan: Plan, path: str, columns: Sequence[SparseColumn], dim: int) -> None:
    """Raises with the first table that differs."""
    planned = {table.name: table for table in plan.tables}
    for column in columns:
        table = planned.pop(column.name, None)
        wanted = (column.num_embeddings, dim, "sum")
        if table is None:
            some = ", ".join(list(planned)[:20])
            raise InputError(
                f"{path} has no table {column.name}, which the dataset has; the plan's others are {some}"
            )
        if (table.num_embeddings, table.embedding_dim, table.pooling) != wanted:
            raise InputError(
                f"{path} is for other tables: its {table.name} has {table.num_embeddings} rows of "
                f"{table.embedding_dim} columns with {table.pooling} pooling, the model's "
                f"{column.num_embeddings} rows of {dim} with sum pooling; make a plan for this dataset"
            )
    if planned:
        raise InputError(f"{path} has a table {next(iter(planned))}, which the dataset has not")
