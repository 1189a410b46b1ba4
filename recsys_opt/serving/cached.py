"""A cache in MP-Rec's sense for tables whose rows are computed: the rows that lookups want most are stored.

Which these are is counted once, and the rows are kept beside the checkpoint as `recsys_opt.serving.kept`
keeps what it makes. With centroids the other rows are not computed either but approximated, which changes
what the model predicts: the accuracy of such a path says by how much.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recsys_opt.data.access import count_columns
from recsys_opt.data.access_statistics import AccessStatistics
from recsys_opt.data.dataset import FILE_NAME, Dataset
from recsys_opt.embeddings.base import EmbeddingRepresentation
from recsys_opt.embeddings.collection import EmbeddingCollection
from recsys_opt.embeddings.dhe import DHEEmbeddingBag
from recsys_opt.embeddings.dhe_cache import CachedDHEBag, CentroidBag
from recsys_opt.embeddings.hybrid import HybridEmbeddingBag
from recsys_opt.errors import InputError
from recsys_opt.run_folder import RunFolder
from recsys_opt.serving.kept import written
from recsys_opt.tensor_files import map_tensors, write_tensors

_LEAST_COLD = 4096
"""Ids from which centroids come, if there are so many and not more centroids."""


@dataclass(frozen=True)
class Cache:
    """How large a cache, and which rows it holds."""

    rows: int
    """Of each table at most."""
    source: str = ""
    """Where lookups are counted: access statistics (stats.npz), or a dataset's training rows; empty: those of
    the run's own dataset."""
    centroids: int = 0
    """For the rows that are not stored; 0: they are computed."""

    def file_name(self, fingerprint: str) -> str:
        """Of what is kept."""
        source = hashlib.sha256(self.source.encode()).hexdigest()[:8] if self.source else "own"
        return f"served_cache_{self.rows}_{self.centroids}_{source}_{fingerprint}.safetensors"


def cache_computed_rows(
    run: Path | str, folder: Path, fingerprint: str, collection: EmbeddingCollection, cache: Cache
) -> None:
    """Puts a cache in the place of the collection's tables whose rows are computed.

    run, folder  the run and its checkpoint's folder, where the rows are kept if it can be written
    """
    computed = _computed(collection)
    if not computed:
        raise InputError(
            f"no table of {run} has rows that are computed at each lookup, which a cache is for; leave out "
            "the cache"
        )
    path = folder / cache.file_name(fingerprint)
    if path.exists():
        kept = map_tensors(path)
    else:
        kept = _made(run, computed, cache)
        if os.access(folder, os.W_OK):
            with written(path) as partial:
                write_tensors(partial, kept)
            kept = map_tensors(path)
    for name, dhe in computed.items():
        bag = _cached(dhe, {what: kept[f"{name}.{what}"] for what in _parts(cache)})
        own = collection.table(name)
        collection.tables.add(name, _beside(own, bag) if isinstance(own, HybridEmbeddingBag) else bag)


def dataset_of(run: Path | str) -> Path | None:
    """A run's dataset, if it is still where it was: from here, or from beside the run."""
    about = RunFolder(run).description().get("dataset", {})
    told, made_of = str(about.get("path", "")), about.get("input_hash")
    for path in (Path(told), Path(run).parent / told, Path(run).parent.parent / told):
        if told and (path / FILE_NAME).exists() and Dataset(path).info.input_hash == made_of:
            return path
    return None


def _computed(collection: EmbeddingCollection) -> dict[str, DHEEmbeddingBag]:
    """The deep hash embeddings, by table, those beside a table too."""
    found = {}
    for config in collection.configs:
        bag = collection.table(config.name)
        part = bag.dhe if isinstance(bag, HybridEmbeddingBag) else bag
        if isinstance(part, DHEEmbeddingBag):
            found[config.name] = part
    return found


def _parts(cache: Cache) -> Sequence[str]:
    return ("ids", "rows", "centroids") if cache.centroids else ("ids", "rows")


def _made(run: Path | str, computed: Mapping[str, DHEEmbeddingBag], cache: Cache) -> dict[str, Tensor]:
    """Ids and rows of each table, and its centroids if wanted."""
    found = {}
    for name, ids in _by_lookups(run, computed, cache.source).items():
        dhe, (hot, cold) = computed[name], (ids[: cache.rows], ids[cache.rows :])
        found[f"{name}.ids"] = hot
        with torch.no_grad():
            found[f"{name}.rows"] = dhe.rows(hot)
        if cache.centroids:
            several = cold[: max(_LEAST_COLD, 2 * cache.centroids)]
            if len(several) < cache.centroids:  # as good as any: nothing is known of them
                several = torch.arange(min(dhe.num_embeddings, max(_LEAST_COLD, 2 * cache.centroids)))
            made = CentroidBag.of(dhe, cache.centroids, several)
            found[f"{name}.centroids"] = made.centroids.detach()
    return found


def _by_lookups(run: Path | str, computed: Mapping[str, DHEEmbeddingBag], source: str) -> dict[str, Tensor]:
    """The ids of each table that were looked up, most often first."""
    path = Path(source) if source else dataset_of(run)
    if path is None:
        raise InputError(
            f"which rows of {run} a cache should hold is not known: its dataset is not where it was, and "
            "nothing was counted before; name a dataset or access statistics (stats.npz)"
        )
    ranked: dict[str, Tensor] = {}
    if (path / FILE_NAME).exists():
        dataset = Dataset(path)
        for column, counts, _ in count_columns(dataset, "train"):
            name = dataset.info.sparse_columns[column].name
            if name in computed:
                _check_rows(name, computed[name], len(counts), path)
                ids = np.flatnonzero(counts)
                ranked[name] = torch.from_numpy(ids[np.argsort(-counts[ids].astype(np.int64), kind="stable")])
    else:
        statistics = AccessStatistics.load(path)
        for name, bag in computed.items():
            table = statistics.table(name)
            _check_rows(name, bag, table.num_embeddings, path)
            ranked[name] = torch.from_numpy(table.ranking().astype(np.int64))
    missing = [name for name in computed if name not in ranked]
    if missing:
        raise InputError(
            f"{path} has no column {missing[0]}, which {run} has a table for; name the run's own"
        )
    return {name: ranked[name] for name in computed}


def _check_rows(name: str, bag: EmbeddingRepresentation, rows: int, path: Path) -> None:
    if rows != bag.num_embeddings:
        raise InputError(
            f"{path} has {rows:,} ids in {name}, but the table has {bag.num_embeddings:,} rows; name what is "
            "of the dataset that the run was trained on"
        )


def _cached(dhe: DHEEmbeddingBag, kept: Mapping[str, Tensor]) -> CachedDHEBag:
    plain = dhe.pooling_by_sum()
    cold = CentroidBag(plain, kept["centroids"]) if "centroids" in kept else plain
    return CachedDHEBag(
        kept["ids"],
        kept["rows"],
        cold,
        mode=dhe.mode,
        padding_idx=dhe.padding_idx,
        include_last_offset=dhe.include_last_offset,
    )


def _beside(hybrid: HybridEmbeddingBag, bag: CachedDHEBag) -> HybridEmbeddingBag:
    """The hybrid with a cache for the computed part, its table frozen as without one."""
    frozen = hybrid.freeze(max_bytes=0)
    assert isinstance(frozen, HybridEmbeddingBag)
    return HybridEmbeddingBag.of_parts(
        frozen.table,
        bag,
        mode=hybrid.mode,
        padding_idx=hybrid.padding_idx,
        include_last_offset=hybrid.include_last_offset,
    ).eval()
