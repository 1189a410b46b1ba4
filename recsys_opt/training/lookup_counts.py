"""How often the training rows look up each row of a table: the weights that a dense table is fitted with."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys_opt.data.access import count_columns
from recsys_opt.data.dataset import Dataset
from recsys_opt.errors import InputError
from recsys_opt.models.dlrm import DLRM
from recsys_opt.progress import Progress
from recsys_opt.tables import TableConfig


@dataclass(frozen=True)
class LookupCounts:
    """The rows that were looked up, and how often: by table."""

    tables: Mapping[str, tuple[int, NDArray[np.int64], NDArray[np.uint32]]]
    """Rows of the table, ids looked up, lookups of each."""

    def __call__(self, table: str) -> Tensor | None:
        """[rows] lookups, 0 where there was none; None of a table that was not counted."""
        if table not in self.tables:
            return None
        rows, ids, lookups = self.tables[table]
        found = torch.zeros(rows)
        found[torch.from_numpy(ids)] = torch.from_numpy(lookups.astype(np.float32))
        return found


def count_lookups(
    dataset: Dataset, tables: Collection[str], max_rows: int | None, progress: Progress | None = None
) -> LookupCounts | None:
    """Counts the training rows, the first `max_rows` of them; None without tables to count."""
    if not tables:
        return None
    found = {}
    for column, counts, _ in count_columns(dataset, "train", max_rows=max_rows, progress=progress):
        name = dataset.info.sparse_columns[column].name
        if name in tables:
            ids = np.flatnonzero(counts)
            found[name] = (len(counts), ids, counts[ids])
    return LookupCounts(found)


def new_trains(model: DLRM, tables: Sequence[TableConfig]) -> list[str]:
    """The names of the tables that are to become tensor trains and are something else in `model`."""
    before = {c.name for c in model.embeddings.configs if c.representation.startswith("tt")}
    return [c.name for c in tables if c.representation.startswith("tt") and c.name not in before]


def counts_for_run(
    description: Mapping[str, Any],
    tables: Collection[str],
    count_from: Path | str | None,
    progress: Progress | None = None,
) -> tuple[LookupCounts | None, str]:
    """The lookups of a run's training rows, and in words what they are of.

    description  of the run
    count_from   a dataset in place of the run's own; that, if it is not there or has changed, is not counted
    """
    own, config = description["dataset"], description["config"]
    if not tables:
        return None, "no dense table"
    if count_from is None:
        missing = _missing(own)
        if missing is not None:
            return None, f"every row alike, since {missing}; --count-from names another dataset"
    dataset = Dataset(own["path"] if count_from is None else count_from)
    columns = {c.name: c.num_embeddings for c in dataset.info.sparse_columns}
    trained = {t["name"]: t["num_embeddings"] for t in description["model"]["tables"]}
    for name in tables:
        if columns.get(name) != trained[name]:
            raise InputError(
                f"count_from: {dataset.path} has {columns.get(name, 'no')} ids in column {name}, but the "
                f"run's table has {trained[name]} rows; give a dataset that is prepared as the run's"
            )
    counts = count_lookups(dataset, tables, config["max_rows"] if count_from is None else None, progress)
    return counts, f"rows by their lookups in the training rows of {dataset.path}"


def _missing(described: Mapping[str, Any]) -> str | None:
    """Why the dataset that a run was trained on cannot be counted."""
    try:
        info = Dataset(described["path"]).info
    except (InputError, OSError) as error:
        return f"the run's dataset cannot be read ({error})"
    splits = {name: list(rows) for name, rows in info.splits.items()}
    if (info.input_hash, splits["train"]) != (described["input_hash"], described["splits"]["train"]):
        return f"{described['path']} is not what the run was trained on"
    return None
