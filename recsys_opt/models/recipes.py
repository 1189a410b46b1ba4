"""Published settings of the DLRM, and tables from a dataset's columns."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from recsys_opt.data.dataset import SparseColumn
from recsys_opt.errors import InputError
from recsys_opt.models.dlrm import DLRM
from recsys_opt.tables import TableConfig


@dataclass(frozen=True)
class DLRMConfig:
    """Widths of a DLRM."""

    bottom_mlp: tuple[int, ...]
    """Widths after the dense input."""
    top_mlp: tuple[int, ...]
    """Widths after the interaction."""
    dense_features: int = 13
    """Integer columns."""

    @property
    def embedding_dim(self) -> int:
        """Columns of every table: the bottom MLP's last width."""
        return self.bottom_mlp[-1]

    def build(
        self,
        tables: Sequence[TableConfig],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> DLRM:
        """The model over `tables`."""
        return DLRM(
            tables,
            dense_features=self.dense_features,
            bottom_mlp=self.bottom_mlp,
            top_mlp=self.top_mlp,
            device=device,
            dtype=dtype,
        )


def criteo_kaggle() -> DLRMConfig:
    """The DLRM repository's setting for Criteo Kaggle."""
    return DLRMConfig(bottom_mlp=(512, 256, 64, 16), top_mlp=(512, 256, 1))


def criteo_terabyte() -> DLRMConfig:
    """The DLRM repository's setting for Criteo Terabyte."""
    return DLRMConfig(bottom_mlp=(512, 256, 64), top_mlp=(512, 512, 256, 1))


def table_configs(
    columns: Sequence[SparseColumn],
    embedding_dim: int,
    *,
    tt_threshold: int | None = None,
    tt_tables: Collection[str] = (),
    tt_ranks: int | Sequence[int] = 32,
    tt_options: Mapping[str, Mapping[str, Any]] | None = None,
    tt_cache_rows: int = 0,
    tt_cache_refresh_every: int = 100,
    dense_representation: str = "dense",
) -> list[TableConfig]:
    """One table per categorical column: a tensor train where asked for, dense elsewhere.

    tt_threshold            tables of at least so many rows become tensor trains
    tt_tables               names of further tables that do
    tt_ranks                the rank of all, or one per inner edge
    tt_options              tables with options of their own (ranks, shapes), which become tensor trains too
    tt_cache_rows           frequent rows of each that are held dense; 0: none
    tt_cache_refresh_every  training passes between two choices of them
    dense_representation    what the other tables are: "dense", or "fbgemm" for FBGEMM's fused tables
    """
    names = [column.name for column in columns]
    own = tt_options or {}
    for argument, told in (("tt_tables", set(tt_tables)), ("tt_options", set(own))):
        if unknown := sorted(told - set(names)):
            raise InputError(
                f"{argument} names {', '.join(unknown)}, but the tables are {', '.join(names) or 'none'}"
            )
    options: dict[str, Any] = {"tt_ranks": tt_ranks if isinstance(tt_ranks, int) else list(tt_ranks)}
    cache = {"cache_rows": tt_cache_rows, "refresh_every": tt_cache_refresh_every} if tt_cache_rows else {}
    tt_representation = "tt_cached" if cache else "tt"
    configs = []
    for column in columns:
        is_tt = (
            column.name in own
            or column.name in tt_tables
            or (tt_threshold is not None and column.num_embeddings >= tt_threshold)
        )
        configs.append(
            TableConfig(
                column.name,
                column.num_embeddings,
                embedding_dim,
                representation=tt_representation if is_tt else dense_representation,
                options={**cache, **own.get(column.name, options)} if is_tt else {},
            )
        )
    return configs


def hashed_tables(
    tables: Sequence[TableConfig],
    representation: str | None,
    *,
    options: Mapping[str, Any],
    largest: int = 5,
    names: Collection[str] = (),
    two_vectors: bool = True,
) -> list[TableConfig]:
    """Tables of `table_configs`, with deep hash embeddings where a representation of the model has them.

    representation  "dhe": all; "select": the largest, or those of `names`; "hybrid": each beside one;
                    another: none
    options         of a deep hash embedding
    two_vectors     of a hybrid: the parts are a vector each, not its halves
    """
    if representation == "hybrid":
        return [_hybrid(table, options, two_vectors) for table in tables]
    if representation not in ("dhe", "select"):
        return list(tables)
    chosen = {table.name for table in tables}
    if representation == "select":
        if unknown := sorted(set(names) - chosen):
            raise InputError(
                f"dhe_tables names {', '.join(unknown)}, but the tables are {', '.join(sorted(chosen))}"
            )
        by_size = sorted(tables, key=lambda table: -table.num_embeddings)
        chosen = set(names) or {table.name for table in by_size[:largest]}
    return [
        replace(table, representation="dhe", options=dict(options)) if table.name in chosen else table
        for table in tables
    ]


def _hybrid(table: TableConfig, options: Mapping[str, Any], two_vectors: bool) -> TableConfig:
    dim = table.embedding_dim
    own: dict[str, Any] = {**options, "dhe_dim": dim if two_vectors else dim // 2}
    if table.representation == "tt":
        own |= {"table": "tt", "table_options": dict(table.options)}
    return replace(table, embedding_dim=2 * dim if two_vectors else dim, representation="hybrid", options=own)
