"""Tables as streams of row blocks: tensors, arrays, files larger than memory, blocks that somebody makes."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from recsys_opt.errors import InputError

Blocks: TypeAlias = "Iterable[Tensor | np.ndarray]"
TableLike: TypeAlias = "Tensor | np.ndarray | str | os.PathLike[str] | Blocks"
"""A table: a tensor, an array (a memory map too), a .npy or .safetensors file, or its rows in blocks."""

_SAFETENSORS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class RowSource:
    """A table that is read in blocks of rows, in order."""

    num_embeddings: int
    embedding_dim: int
    dtype: torch.dtype
    device: torch.device
    repeatable: bool
    """Whether it can be read more than once."""
    _origin: Tensor | np.ndarray | _Stored | Blocks

    def blocks(self, rows: int) -> Iterator[tuple[int, Tensor]]:
        """(first row, [rows, D] block) over the table; every block but the last has `rows` rows.

        A block may be a view of the table: it must not be written to.
        """
        if isinstance(self._origin, Tensor):
            for start in range(0, self.num_embeddings, rows):
                yield start, self._origin[start : start + rows]
        elif isinstance(self._origin, np.ndarray):
            for start in range(0, self.num_embeddings, rows):
                yield start, torch.from_numpy(np.array(self._origin[start : start + rows]))
        elif isinstance(self._origin, _Stored):
            yield from self._origin.blocks(rows)
        else:
            yield from self._regrouped(self._origin, rows)

    def whole(self) -> Tensor:
        """The table in memory."""
        parts = [block for _, block in self.blocks(self.num_embeddings)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _regrouped(self, origin: Blocks, rows: int) -> Iterator[tuple[int, Tensor]]:
        start, held = 0, torch.empty(rows, self.embedding_dim, dtype=self.dtype, device=self.device)
        filled = 0
        for number, given in enumerate(origin):
            block = _as_tensor(given, f"block {number}")
            if block.dim() != 2 or block.shape[1] != self.embedding_dim or block.dtype != self.dtype:
                raise InputError(
                    f"block {number} is {block.dtype} {list(block.shape)}; every block must be "
                    f"{self.dtype} [rows, {self.embedding_dim}], as the first"
                )
            if start + filled + block.shape[0] > self.num_embeddings:
                raise InputError(
                    f"the blocks have more than num_embeddings = {self.num_embeddings} rows: block {number} "
                    f"ends at row {start + filled + block.shape[0]}"
                )
            while block.shape[0]:
                taken = min(rows - filled, block.shape[0])
                held[filled : filled + taken] = block[:taken]
                filled, block = filled + taken, block[taken:]
                if filled == rows:
                    yield start, held
                    start, filled = start + rows, 0
        if start + filled != self.num_embeddings:
            raise InputError(
                f"the blocks have {start + filled} rows, but num_embeddings = {self.num_embeddings}"
            )
        if filled:
            yield start, held[:filled]


@dataclass(frozen=True)
class _Stored:
    """Rows in a file, read rather than mapped, so that they take no more memory than a block."""

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def blocks(self, rows: int) -> Iterator[tuple[int, Tensor]]:
        count, dim = self.shape
        held = torch.empty(min(rows, count), dim, dtype=self.dtype)
        data = held.view(-1).view(torch.uint8).numpy()
        row_bytes = dim * self.dtype.itemsize
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            for start in range(0, count, rows):
                wanted = min(rows, count - start)
                part = data[: wanted * row_bytes]
                if file.readinto(part.data) != len(part):
                    raise InputError(
                        f"{self.path} ends before row {start + wanted} of {count}: it is not whole"
                    )
                yield start, held[:wanted]


def open_table(weight: TableLike, num_embeddings: int | None = None) -> RowSource:
    """The table `weight` as a source of row blocks; its shape and type are checked, its values are not.

    weight          [num_embeddings, embedding_dim] floating-point tensor or array; the path of a .npy file,
                    or of a .safetensors file, "file.safetensors#name" where it has several tables; or an
                    iterable of [n, embedding_dim] blocks: a list can be read again, an iterator only once
    num_embeddings  the number of rows, needed for an iterable
    """
    if isinstance(weight, Tensor | np.ndarray):
        return _array(weight, "weight")
    if isinstance(weight, str | os.PathLike):
        stored = _stored(os.fspath(weight))
        return RowSource(*_checked(stored, str(weight)), torch.device("cpu"), True, stored)
    if not isinstance(weight, Iterable):
        raise InputError(
            f"weight is a {type(weight).__name__}; it must be a tensor, an array, a path to a .npy or "
            ".safetensors file, or an iterable of row blocks"
        )
    return _iterable(weight, num_embeddings)


def _array(weight: Tensor | np.ndarray, name: str) -> RowSource:
    if isinstance(weight, np.ndarray) and weight.flags["C_CONTIGUOUS"] and not isinstance(weight, np.memmap):
        weight = _as_tensor(weight, name)
    if isinstance(weight, Tensor):
        weight = weight.detach()
        return RowSource(*_checked(weight, name), weight.device, True, weight)
    stub = _as_tensor(np.empty((0,), weight.dtype), name)
    shape = _checked(torch.empty(weight.shape, dtype=stub.dtype, device="meta"), name)
    return RowSource(*shape, torch.device("cpu"), True, weight)


def _checked(table: Tensor | _Stored, name: str) -> tuple[int, int, torch.dtype]:
    shape, dtype = tuple(table.shape), table.dtype
    if len(shape) != 2 or 0 in shape:
        raise InputError(
            f"{name} has shape {list(shape)}; it must be [num_embeddings, embedding_dim], both at least 1"
        )
    if dtype not in _FLOATING:
        raise InputError(f"{name} is {dtype}; it must be float32, float64, float16 or bfloat16")
    return shape[0], shape[1], dtype


def _as_tensor(block: Tensor | np.ndarray, name: str) -> Tensor:
    if isinstance(block, Tensor):
        return block.detach()
    if not isinstance(block, np.ndarray) or block.dtype.str not in ("<f2", "<f4", "<f8"):
        kind = block.dtype if isinstance(block, np.ndarray) else type(block).__name__
        raise InputError(f"{name} is {kind}; it must be an array or tensor of float16, float32 or float64")
    return torch.from_numpy(block if block.flags.writeable else block.copy())


def _iterable(weight: Blocks, num_embeddings: int | None) -> RowSource:
    if num_embeddings is None:
        raise InputError("a table given as blocks of rows needs num_embeddings, the number of all its rows")
    once = iter(weight) is weight
    iterator: Iterator[Tensor | np.ndarray] = iter(weight)
    first = next(iterator, None)
    if first is None:
        raise InputError("weight has no blocks of rows")
    block = _as_tensor(first, "block 0")
    _, dim, dtype = _checked(block, "block 0")
    origin: Blocks = _rest(first, iterator) if once else weight
    return RowSource(num_embeddings, dim, dtype, block.device, not once, origin)


def _rest(first: Tensor | np.ndarray, iterator: Iterator[Tensor | np.ndarray]) -> Iterator[Tensor]:
    yield _as_tensor(first, "block 0")
    for number, block in enumerate(iterator, 1):
        yield _as_tensor(block, f"block {number}")


def _stored(text: str) -> _Stored:
    path_text, _, name = text.partition("#")
    path = Path(path_text)
    if not path.is_file():
        raise InputError(f"{path} does not exist, or is not a file")
    if path.suffix == ".npy":
        return _npy(path)
    if path.suffix == ".safetensors":
        return _safetensors(path, name)
    raise InputError(f"{path} is neither a .npy nor a .safetensors file")


def _npy(path: Path) -> _Stored:
    with open(path, "rb") as file:
        try:
            version = npy.read_magic(file)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, fortran, dtype = read(file)
        except ValueError as error:
            raise InputError(f"{path} is no .npy file: {error}") from None
        if fortran:
            raise InputError(f"{path} is in Fortran order; save numpy.ascontiguousarray of the table")
        example = _as_tensor(np.empty(0, dtype), str(path))
        return _Stored(path, file.tell(), tuple(shape), example.dtype)


def _safetensors(path: Path, name: str) -> _Stored:
    size = path.stat().st_size
    with open(path, "rb") as file:
        try:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, size)))
            tables = {k: v for k, v in header.items() if k != "__metadata__" and len(v["shape"]) == 2}
        except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is no safetensors file: {error}") from None
    if not name and len(tables) == 1:
        name = next(iter(tables))
    if name not in tables:
        listed = ", ".join(tables) or "none"
        raise InputError(f"{path} has the tables {listed}; choose one by {path.name}#NAME (got {name!r})")
    entry = tables[name]
    if entry["dtype"] not in _SAFETENSORS:
        raise InputError(f"{path}: {name} is {entry['dtype']}; it must be F64, F32, F16 or BF16")
    dtype, shape = _SAFETENSORS[entry["dtype"]], tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    if end - begin != math.prod(shape) * dtype.itemsize or 8 + length + end > size:
        raise InputError(f"{path}: {name} is not whole")
    return _Stored(path, 8 + length + begin, shape, dtype)
