"""stats.npz: access statistics on disk. numpy can read every member by itself.

about                    JSON as bytes: format, version, table names, samples, late_from, source, sha256
num_embeddings ..        i64 [tables]: num_embeddings, samples, bags, lookups, late_lookups, runs; f64 drift
run_counts, run_rows     u8: of every table in turn, how many rows have how many lookups, as varints:
                         counts descending, each but a table's first as the difference to the one before
curve, curve_in_sample   f64: of every table in turn, the shares at `curve_rows(num_embeddings)`
ranking, late            u8: of every table in turn, the packed rows (csrc/access/ranking.h), table t's in
                         [offsets[t], offsets[t + 1]); checksums beside them
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from recsys_opt import _access
from recsys_opt.data.access_curve import AccessCurve, curve_rows
from recsys_opt.data.access_sampled import Sampling
from recsys_opt.data.access_table import TableStatistics
from recsys_opt.data.packed_rows import MEMBERS, PackedRows
from recsys_opt.errors import InputError
from recsys_opt.files import atomic_path

Array = NDArray[Any]
FORMAT = "recsys_opt.access_statistics"
VERSION = 1
_SCALARS = ("num_embeddings", "samples", "bags", "lookups", "late_lookups")
_SAMPLING = ("level", "known", "head_rows", "head_error", "sample_slots", "head_slots")
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same statistics give the same bytes
_AGAIN = "make it again with recsys-opt stats"


@dataclass(frozen=True, eq=False)
class Content:
    """What the file holds (`recsys_opt.data.access_statistics.AccessStatistics`)."""

    tables: Sequence[TableStatistics]
    samples: int
    late_from: int
    source: Mapping[str, Any]
    sha256: str


def write(content: Content, path: Path) -> None:
    """Writes stats.npz whole."""
    tables = content.tables
    members = _members(tables)
    about = {
        "format": FORMAT,
        "version": VERSION,
        "tables": [t.name for t in tables],
        "samples": content.samples,
        "late_from": content.late_from,
        "source": content.source,
        "sha256": content.sha256,
    }
    with atomic_path(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        text = json.dumps(about, allow_nan=False).encode()
        _put(archive, "about", np.frombuffer(text, dtype=np.uint8))
        for name, array in members.items():
            _put(archive, name, array)
        for name in MEMBERS:
            size = int(members[f"{name}_offsets"][-1])
            with archive.open(_entry(name), "w", force_zip64=True) as member:
                header = {"descr": "|u1", "fortran_order": False, "shape": (size,)}
                np.lib.format.write_array_header_1_0(member, header)
                for table in tables:
                    member.write(np.ascontiguousarray(table.packed.readers[name]()).data)


def digest(tables: Sequence[TableStatistics], samples: int, late_from: int) -> str:
    """SHA-256 of the statistics: equal hashes mean equal names, sizes and counts."""
    return _digest([t.name for t in tables], samples, late_from, _members(tables))


def _digest(names: Sequence[str], samples: int, late_from: int, members: Mapping[str, Array]) -> str:
    found = hashlib.sha256(json.dumps([VERSION, list(names), samples, late_from]).encode())
    for name, array in members.items():
        found.update(f"{name} {array.dtype.str} {array.shape}".encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def _members(tables: Sequence[TableStatistics]) -> dict[str, Array]:
    """All arrays but the packed rows."""
    members: dict[str, Array] = {
        name: np.array([getattr(t, name) for t in tables], dtype=np.int64) for name in _SCALARS
    }
    members["drift"] = np.array([t.drift for t in tables], dtype=np.float64)
    members["runs"] = np.array([len(t.counts) for t in tables], dtype=np.int64)
    falls = [np.abs(np.diff(t.counts, prepend=0)) for t in tables]
    members["run_counts"] = _access.pack_numbers(_joined(falls, np.uint64))
    members["run_rows"] = _access.pack_numbers(_joined([t.rows for t in tables], np.uint64))
    members["curve"] = _joined([t.curve.share for t in tables], np.float64)
    members["curve_in_sample"] = _joined([t.curve_in_sample.share for t in tables], np.float64)
    samplings = [t.sampling for t in tables]
    for name in _SAMPLING:
        members[name] = np.array([0 if s is None else getattr(s, name) for s in samplings], dtype=np.int64)
    members["share_error"] = _joined([s.share_error for s in samplings if s is not None], np.float64)
    for name in MEMBERS:
        sizes = [t.packed.readers[name]().size for t in tables]
        members[f"{name}_offsets"] = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        members[f"{name}_crc"] = np.array([t.packed.crcs[name] for t in tables], dtype=np.uint32)
    return members


def _joined(arrays: Sequence[Array], dtype: Any) -> Array:
    return np.concatenate([np.zeros(0, dtype), *(a.astype(dtype) for a in arrays)])


def _entry(name: str) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(f"{name}.npy", date_time=_EPOCH)


def _put(archive: zipfile.ZipFile, name: str, array: Array) -> None:
    with archive.open(_entry(name), "w", force_zip64=True) as member:
        np.lib.format.write_array(member, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)


def read(path: Path) -> Content:
    """Reads stats.npz, the rankings when they are asked for."""
    if path.is_dir():
        raise InputError(f"{path} is a folder; recsys-opt stats {path} --out stats.npz counts its lookups")
    if not path.is_file():
        what = "is no ordinary file" if path.exists() else "does not exist"
        raise InputError(f"{path} {what}; make one with recsys-opt stats DATA --out stats.npz")
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(path, archive)
    except InputError:
        raise
    except PermissionError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; mend that, or {_AGAIN}") from None
    except Exception as error:  # zipfile and numpy have a dozen kinds for damaged bytes
        with open(path, "rb") as file:
            begins = file.read(64).lstrip()
        why = "it is empty" if not begins else error or type(error).__name__
        if begins.startswith((b"{", b"[")):
            why = "it is JSON, such as a plan"
        raise InputError(f"{path} is not whole, readable access statistics ({why}); {_AGAIN}") from None


def _read(path: Path, archive: zipfile.ZipFile) -> Content:
    if "about.npy" not in archive.namelist():
        raise InputError(f"{path} is not a {FORMAT} file: it has no member 'about'; {_AGAIN}")
    about = json.loads(_get(archive, "about").tobytes())
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise InputError(f"{path} is not a {FORMAT} file; {_AGAIN}")
    if about.get("version") != VERSION:
        raise InputError(
            f"{path} has version {about.get('version')!r} of {FORMAT}; this recsys_opt reads version "
            f"{VERSION}: {_AGAIN}, or use the recsys_opt that wrote it"
        )
    names = list(about["tables"])
    order = [
        *_SCALARS,
        *("drift", "runs", "run_counts", "run_rows", "curve", "curve_in_sample"),
        *_SAMPLING,
        "share_error",
        *(f"{name}_{what}" for name in MEMBERS for what in ("offsets", "crc")),
    ]
    members = {name: _get(archive, name) for name in order}
    found = _digest(names, about["samples"], about["late_from"], members)
    if found != about["sha256"]:
        raise InputError(f"{path} is damaged: its contents have another hash than it says; {_AGAIN}")
    packed = {name: _mapped(path, archive, name) for name in MEMBERS}
    tables = _tables(path, names, members, packed)
    return Content(tables, about["samples"], about["late_from"], about["source"], found)


def _get(archive: zipfile.ZipFile, name: str) -> Array:
    array: Array = np.lib.format.read_array(io.BytesIO(archive.read(f"{name}.npy")), allow_pickle=False)
    return array


def _tables(
    path: Path, names: Sequence[str], members: Mapping[str, Array], packed: Mapping[str, Array]
) -> list[TableStatistics]:
    runs = np.concatenate([[0], np.cumsum(members["runs"])])
    falls = _access.unpack_numbers(members["run_counts"], int(runs[-1])).astype(np.int64)
    run_rows = _access.unpack_numbers(members["run_rows"], int(runs[-1])).astype(np.int64)
    points, error_points, tables = 0, 0, []
    for t, name in enumerate(names):
        num_embeddings, samples, bags, lookups, late_lookups = (int(members[k][t]) for k in _SCALARS)
        run = slice(int(runs[t]), int(runs[t + 1]))
        grid = curve_rows(num_embeddings)
        at = slice(points, points + len(grid))
        points += len(grid)
        fall = falls[run]
        sampling = None
        if members["level"][t]:
            error = members["share_error"][error_points : error_points + len(grid)]
            error_points += len(grid)
            sampling = Sampling(share_error=error, **{k: int(members[k][t]) for k in _SAMPLING})
        readers = {}
        for k in MEMBERS:
            first, last = (int(n) for n in members[f"{k}_offsets"][t : t + 2])
            readers[k] = partial(_span, packed[k], first, last)
        tables.append(
            TableStatistics(
                name=name,
                num_embeddings=num_embeddings,
                samples=samples,
                bags=bags,
                lookups=lookups,
                late_lookups=late_lookups,
                counts=np.cumsum(np.append(fall[:1], -fall[1:])),
                rows=run_rows[run],
                curve=AccessCurve(grid, members["curve"][at]),
                curve_in_sample=AccessCurve(grid, members["curve_in_sample"][at]),
                drift=float(members["drift"][t]),
                packed=PackedRows(
                    f"{path}, table {name}", {k: int(members[f"{k}_crc"][t]) for k in MEMBERS}, readers
                ),
                sampling=sampling,
            )
        )
    return tables


def _span(packed: Array, first: int, last: int) -> Array:
    return np.asarray(packed[first:last])


def _mapped(path: Path, archive: zipfile.ZipFile, name: str) -> Array:
    """A member of bytes, mapped into memory: nothing is read yet."""
    info = archive.getinfo(f"{name}.npy")
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"its member {name} is compressed")
    with archive.open(info) as member:
        size, header = _npy_header(member)
    with open(path, "rb") as file:
        file.seek(info.header_offset + 26)
        name_bytes, extra_bytes = (int.from_bytes(file.read(2), "little") for _ in range(2))
    start = info.header_offset + 30 + name_bytes + extra_bytes + header
    if start + size > path.stat().st_size:
        raise EOFError(f"its member {name} ends too early")
    if not size:  # numpy cannot map nothing
        return np.zeros(0, dtype=np.uint8)
    return np.memmap(path, np.uint8, "r", start, (size,))


def _npy_header(member: IO[bytes]) -> tuple[int, int]:
    """(Bytes of the array, bytes of the header before it)."""
    version = np.lib.format.read_magic(member)
    if version != (1, 0):
        raise ValueError(f"a member is of .npy version {version}")
    shape, _, dtype = np.lib.format.read_array_header_1_0(member)
    if len(shape) != 1 or dtype != np.dtype(np.uint8):
        raise ValueError(f"a member is {dtype} {shape}, not bytes")
    return int(shape[0]), member.tell()
