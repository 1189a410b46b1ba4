"""safetensors files written tensor by tensor, without a second copy of a 2 GB table in memory."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from recsys_opt.errors import InputError

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_CHUNK_BYTES = 64 << 20


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file and makes it durable; raises OSError as the disk does.

    The file is written in place: write it into a folder that is renamed when whole.
    """
    with open(path, "wb") as file:
        file.write(_header({name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()}, metadata))
        for tensor in tensors.values():
            if tensor.numel() == 0:
                continue
            data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            for start in range(0, len(data), _CHUNK_BYTES):
                file.write(data[start : start + _CHUNK_BYTES].data)
        file.flush()
        os.fsync(file.fileno())


class TensorWriter:
    """A safetensors file of tensors that come one after another, each in parts, in the order of its rows.

    shapes  name -> (type, shape), in the order in which they will come

    The file is written in place, as that of `write_tensors`; it is durable when the writer's block ends.
    """

    def __init__(
        self,
        path: Path,
        shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
        *,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self._file = open(path, "wb")  # noqa: SIM115 (closed by `__exit__`)
        self._file.write(_header(shapes, metadata))

    def write(self, rows: Tensor) -> None:
        """The next rows of the tensor whose turn it is."""
        self._file.write(rows.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)

    def __enter__(self) -> TensorWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        with self._file as file:
            file.flush()
            os.fsync(file.fileno())


def map_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, memory-mapped: rows are read when they are looked at, changes stay in memory."""
    with _open(path) as file:
        names = list(file.keys())
    with open(path, "rb") as raw:
        (length,) = struct.unpack("<Q", raw.read(8))
        header = json.loads(raw.read(length))
    types = {name: dtype for dtype, name in _DTYPES.items()}
    data = torch.from_numpy(np.memmap(path, dtype=np.uint8, mode="c"))[8 + length :]
    tensors = {}
    for name in names:
        first, last = header[name]["data_offsets"]
        dtype = types[header[name]["dtype"]]
        content = data[first:last]
        if (8 + length + first) % dtype.itemsize:  # behind a tensor of smaller numbers
            content = content.clone()
        tensors[name] = content.view(dtype).reshape(header[name]["shape"])
    return tensors


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a small file."""
    with _open(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)


def read_metadata(path: Path) -> dict[str, str]:
    """The texts that a file carries besides its tensors."""
    with _open(path) as file:
        return dict(file.metadata() or {})


def tensor_dtypes(path: Path) -> dict[str, torch.dtype]:
    """The types of a file's tensors, without reading them."""
    types = {name: dtype for dtype, name in _DTYPES.items()}
    with _open(path) as file:
        return {name: types[file.get_slice(name).get_dtype()] for name in file.keys()}  # noqa: SIM118


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of a file's tensors, without reading them."""
    with _open(path) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def read_into(path: Path, targets: Mapping[str, Tensor]) -> None:
    """Copies a file's tensors into `targets` one at a time; names, shapes and types must be the same."""
    with _open(path) as file:
        names = set(file.keys())
        if names != set(targets):
            missing, extra = sorted(set(targets) - names), sorted(names - set(targets))
            raise InputError(
                f"{path} does not fit the model: missing {missing or 'none'}, extra {extra or 'none'}"
            )
        for name, target in targets.items():
            tensor = file.get_tensor(name)
            if tensor.shape != target.shape or tensor.dtype != target.dtype:
                raise InputError(
                    f"{path}: {name} is {tensor.dtype} {list(tensor.shape)}; the model has {target.dtype} "
                    f"{list(target.shape)}"
                )
            target.detach().copy_(tensor)


def _header(
    shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], metadata: Mapping[str, str] | None
) -> bytes:
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, (dtype, shape) in shapes.items():
        if dtype not in _DTYPES:
            raise InputError(f"tensor {name} has type {dtype}, which a checkpoint cannot hold")
        size = math.prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": _DTYPES[dtype],
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data starts on a multiple of 8
    return struct.pack("<Q", len(text)) + text


def _open(path: Path) -> safe_open:
    try:
        return safe_open(str(path), framework="pt")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except SafetensorError as error:
        raise InputError(f"{path} is damaged: {error}") from None
