"""What serving makes of a checkpoint and keeps beside it, so that it is made once: each a safetensors file.

The files are keyed by the weights' fingerprint, written whole, and mapped into memory, which processes share.
They go when training replaces the checkpoint; deleting one costs the time to make it again. Where the folder
cannot be written, everything is made anew at each start.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from recsys_opt.embeddings.collection import EmbeddingCollection
from recsys_opt.embeddings.dhe import DHEEmbeddingBag
from recsys_opt.embeddings.frozen import FrozenEmbeddingBag
from recsys_opt.embeddings.hybrid import HybridEmbeddingBag
from recsys_opt.errors import InputError
from recsys_opt.files import atomic_path
from recsys_opt.serving.frozen_tables import dense_tables
from recsys_opt.tensor_files import TensorWriter, map_tensors, write_tensors

_CHUNK_ROWS = 1 << 20


def stacked_rows(
    folder: Path, fingerprint: str, collection: EmbeddingCollection, dtype: torch.dtype
) -> Tensor:
    """The rows of the dense tables in another type, one table below the other."""
    name = str(dtype).removeprefix("torch.")
    tables = [table.weight.detach() for table in dense_tables(collection).values()]
    if not tables:
        raise InputError(f"no table of the model has stored rows to keep in {name}; serve it in fp32")
    path = folder / f"served_tables_{name}_{fingerprint}.safetensors"
    if path.exists():
        return map_tensors(path)["rows"]
    if not os.access(folder, os.W_OK):
        return torch.cat([table.to(dtype) for table in tables])
    shape = (sum(len(t) for t in tables), tables[0].shape[1])
    with written(path) as partial, TensorWriter(partial, {"rows": (dtype, shape)}) as writer:
        for table in tables:
            for rows in table.split(_CHUNK_ROWS):
                writer.write(rows.to(dtype))
    return map_tensors(path)["rows"]


def store_computed_rows(folder: Path, fingerprint: str, collection: EmbeddingCollection) -> None:
    """Puts stored rows in the place of the collection's tables whose rows are computed but few.

    They are those that `freeze` of a deep hash embedding, or of a hybrid, stores.
    """
    computed = {
        config.name: table
        for config in collection.configs
        if isinstance(table := collection.table(config.name), (DHEEmbeddingBag, HybridEmbeddingBag))
    }
    if not computed:
        return
    path = folder / f"served_rows_{fingerprint}.safetensors"
    if path.exists():
        stored = map_tensors(path)
    else:
        frozen = {name: table.freeze() for name, table in computed.items()}
        stored = {
            name: table.weight.detach()
            for name, table in frozen.items()
            if isinstance(table, FrozenEmbeddingBag)
        }
        if os.access(folder, os.W_OK):
            with written(path) as partial:
                write_tensors(partial, stored)
    for name, rows in stored.items():
        collection.tables.add(name, FrozenEmbeddingBag.of_rows(rows))


@contextlib.contextmanager
def written(path: Path) -> Iterator[Path]:
    """As `atomic_path`, for several processes at a time: the last to finish has written it."""
    own = path.with_name(f"{path.name}.{os.getpid()}")
    with atomic_path(own) as partial:
        yield partial
    os.replace(own, path)
