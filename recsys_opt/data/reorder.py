"""A dataset with its ids in another order: `recsys-opt data reorder`.

Two passes over the memory-mapped ids: the training rows decide the order, then every part's ids are mapped.
Dense columns and labels stay as they are; they become links to the same files where the file system can.
The dataset appears with its dataset.json, written last; after a kill the same command starts over.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_opt.data.access import CHUNK_ROWS
from recsys_opt.data.dataset import FILE_NAME as INFO_NAME
from recsys_opt.data.dataset import Dataset, DatasetInfo, Part, array_path, write_dataset_info
from recsys_opt.data.id_order import FILE_NAME, ORDERS, ColumnLookups, IdOrder, Order
from recsys_opt.errors import InputError
from recsys_opt.files import FolderLock, atomic_path, fsync_dir
from recsys_opt.progress import Progress, SilentProgress

MEMORY_BYTES = 1 << 30
_BYTES_PER_ID = 20  # of ColumnLookups; a permutation needs less
_KEPT = ("vocabulary.npy",)  # tells how a value became an old id


def reorder(
    dataset: Dataset,
    out: Path | str,
    by: Order,
    *,
    batch_size: int = 2048,
    memory_bytes: int = MEMORY_BYTES,
    progress: Progress | None = None,
) -> DatasetInfo:
    """Writes the dataset folder `out`: the rows of `dataset`, its ids in a new order.

    by            "frequency" or "cooccurrence"; the rows of the split "train" decide
    batch_size    rows of a batch, for "cooccurrence"
    memory_bytes  columns whose ids need more than this together are worked on in several passes
    """
    out = Path(out)
    if by not in ORDERS:
        raise InputError(f"the order is {by!r}; choose one of {', '.join(ORDERS)}")
    if batch_size < 1:
        raise InputError(f"batch_size = {batch_size}; it must be at least 1")
    if "order" in dataset.info.ids:
        raise InputError(f"{dataset.path} is in another order already; reorder the dataset it was made from")
    start, stop = dataset.split("train")
    if start == stop:
        raise InputError(f"the training split of {dataset.path} has no rows, which would decide the order")
    if out.resolve() == dataset.path.resolve():
        raise InputError(f"the new dataset cannot be written into the old one, {out}; choose another folder")
    progress = progress or SilentProgress()
    settings = {"by": by, "rows": [start, stop], **({"batch_size": batch_size} if by != "frequency" else {})}
    identity = f"{dataset.info.input_hash} order {sorted(settings.items())}"
    new_hash = hashlib.sha256(identity.encode()).hexdigest()
    with FolderLock(out):
        if (out / INFO_NAME).exists():
            info = Dataset(out).info
            if info.input_hash == new_hash:
                return info
            raise InputError(f"{out} holds another dataset; choose another folder, or remove it")
        orders = _decide(dataset, start, stop, by, batch_size, memory_bytes, progress)
        _write_orders(out, orders)
        for part in dataset.info.parts:
            _map_part(dataset, part, out, orders, memory_bytes, progress)
        for name in _KEPT:
            if (dataset.path / name).exists():
                _link(dataset.path / name, out / name)
        fsync_dir(out)
        ids = {**dataset.info.ids, "order": {**settings, "ranked": [len(o.ranked) for o in orders]}}
        info = replace(dataset.info, ids=ids, input_hash=new_hash)
        write_dataset_info(out, info)
    progress.finish()
    return info


def _groups(rows: Sequence[int], memory_bytes: int) -> list[list[int]]:
    groups: list[list[int]] = []
    taken = 0
    for column, n in enumerate(rows):
        if not groups or taken + _BYTES_PER_ID * n > memory_bytes:
            groups.append([])
            taken = 0
        groups[-1].append(column)
        taken += _BYTES_PER_ID * n
    return groups


def _decide(
    dataset: Dataset,
    start: int,
    stop: int,
    by: Order,
    batch_size: int,
    memory_bytes: int,
    progress: Progress,
) -> list[IdOrder]:
    rows = [c.num_embeddings for c in dataset.info.sparse_columns]
    groups = _groups(rows, memory_bytes)
    progress.start("counting ids", (stop - start) * len(groups), "rows")
    orders = []
    for group in groups:
        lookups = [ColumnLookups.empty(rows[column]) for column in group]
        for sparse, first in _chunks(dataset, start, stop):
            for at, column in enumerate(group):
                lookups[at].add(_ids(sparse, column, dataset), first - start)
            progress.advance(len(sparse))
        orders += [found.order(by, batch_size) for found in lookups]
    return orders


def _chunks(dataset: Dataset, start: int, stop: int) -> Iterator[tuple[NDArray[np.int32], int]]:
    """(ids [n, columns], number of the first row) of labelled rows [start, stop), in order."""
    offset = 0
    for part in dataset.labelled_arrays():
        length = len(part.sparse)
        for row in range(max(start - offset, 0), min(stop - offset, length), CHUNK_ROWS):
            yield part.sparse[row : min(row + CHUNK_ROWS, stop - offset, length)], offset + row
        offset += length


def _ids(sparse: NDArray[np.int32], column: int, dataset: Dataset) -> NDArray[np.int64]:
    ids = np.ascontiguousarray(sparse[:, column], dtype=np.int64)
    described = dataset.info.sparse_columns[column]
    if ids.size and not (ids.min() >= 0 and ids.max() < described.num_embeddings):
        bad = int(ids[(ids < 0) | (ids >= described.num_embeddings)][0])
        raise InputError(
            f"{dataset.path}, column {described.name}: id {bad} is outside the column's "
            f"{described.num_embeddings} ids; make the dataset again"
        )
    return ids


def _write_orders(out: Path, orders: Sequence[IdOrder]) -> None:
    with atomic_path(out / FILE_NAME) as partial, open(partial, "wb") as file:
        _header(file, np.int32, (sum(len(o.ranked) for o in orders),))
        for order in orders:
            file.write(order.ranked.tobytes())


def _header(file: Any, dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _map_part(
    dataset: Dataset,
    part: Part,
    out: Path,
    orders: Sequence[IdOrder],
    memory_bytes: int,
    progress: Progress,
) -> None:
    for kind in ("dense", "labels") if part.labelled else ("dense",):
        _link(array_path(dataset.path, part.name, kind), array_path(out, part.name, kind))
    old = dataset.arrays(part.name).sparse
    groups = _groups([o.num_embeddings for o in orders], memory_bytes)
    progress.start(f"mapping {part.name}", part.rows * len(groups), "rows")
    with atomic_path(array_path(out, part.name, "sparse")) as partial:
        with open(partial, "wb") as file:
            _header(file, np.int32, old.shape)
            begin = file.tell()
            file.truncate(begin + old.nbytes)
        if not part.rows:
            return
        new = np.memmap(partial, np.int32, "r+", begin, old.shape)
        for group in groups:
            maps = {column: orders[column].new_ids() for column in group}
            for row in range(0, part.rows, CHUNK_ROWS):
                chunk = old[row : row + CHUNK_ROWS]
                mapped = np.array(new[row : row + CHUNK_ROWS])
                for column, new_ids in maps.items():
                    mapped[:, column] = new_ids[_ids(chunk, column, dataset)]
                new[row : row + CHUNK_ROWS] = mapped
                progress.advance(len(chunk))
        new.flush()


def _link(source: Path, target: Path) -> None:
    """The same content under another name: a hard link, or a copy where there can be none."""
    with atomic_path(target) as partial:
        partial.unlink(missing_ok=True)
        try:
            if not os.access(source, os.W_OK):  # a link could not be made durable: that needs to open it
                raise PermissionError
            os.link(source, partial)
        except OSError:
            partial.unlink(missing_ok=True)
            shutil.copyfile(source, partial)
