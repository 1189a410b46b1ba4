"""The binary form of a query and of its answer, the same over HTTP and gRPC. Little-endian throughout.

A query (content type application/octet-stream):

    offset  type  what
    0       4s    b"RSOQ"
    4       u16   version, 1
    6       u16   flags: bit 0: ids are int64, else int32; the others are 0
    8       u32   samples B, at least 1
    12      u16   dense columns D
    14      u16   features F
    16      f64   seconds in which the answer is wanted, from when the server has the query; 0: its SLA
    24      u16   bytes of the model's name N; 0: the one that the server has
    26      6x    zero
    32      N     the name in UTF-8, then zeros up to a multiple of 8 bytes
            f32   dense [B, D], then zeros up to a multiple of 8 bytes
            i32 or i64  ids [F, B], feature-major: all samples' ids of the first feature first

An answer:

    0       4s    b"RSOA"
    4       u16   version, 1
    6       u16   paths P that had a part of the query
    8       u32   samples B
    12      u32   samples of the batch that finished last, those of other queries too
    16      u64   number of this batch
    24      f64   seconds from the query's admission until this batch began
    32      f64   seconds that this batch took
    40      f64   seconds of these that the model computed
    48      f64   seconds from the query's admission to its answer
    56      P x (u32 samples, u16 bytes of the name, name in UTF-8), in the order of their last parts; then
            zeros up to a multiple of 8 bytes
            f32   probabilities [B]

The client's clock appears nowhere: durations alone are exchanged.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recsys_opt.errors import InputError
from recsys_opt.server.refusal import RefusalError

CONTENT_TYPE = "application/octet-stream"
VERSION = 1
_QUERY = struct.Struct("<4sHHIHHdH6x")
_ANSWER = struct.Struct("<4sHHIIQdddd")
_PART = struct.Struct("<IH")
_QUERY_MAGIC, _ANSWER_MAGIC = b"RSOQ", b"RSOA"
_INT64 = 1
HEADER_BYTES = _QUERY.size


@dataclass(frozen=True, eq=False)
class Query:
    """Samples to score, as they came; `recsys_opt.server.check` says whether they fit the model."""

    dense: NDArray[np.float32]
    """[B, D]"""
    ids: NDArray[np.int32] | NDArray[np.int64]
    """[F, B]"""
    within_s: float | None = None
    """Seconds in which the answer is wanted; None: the server's SLA."""
    model: str = ""
    """Empty: the one that the server has."""

    @property
    def samples(self) -> int:
        """B."""
        return len(self.dense)


@dataclass(frozen=True, eq=False)
class Answer:
    """Probabilities, and what it took."""

    probabilities: NDArray[np.float32]
    """[B]"""
    paths: Mapping[str, int]
    """Samples by the path that computed them; the path of the last part is the last."""
    wait_s: float
    """From the query's admission until its last part's batch began."""
    service_s: float
    """That the worker was taken up by this batch."""
    model_s: float
    """Of these the model's own."""
    total_s: float
    """From the query's admission to its answer."""
    batch: int
    """Number of this batch: queries with the same one were computed together."""
    batch_size: int
    """Samples of this batch, those of other queries too."""


def query_bytes(samples: int, dense_columns: int, features: int, *, id_bytes: int = 8) -> int:
    """Length of a query without a model's name."""
    arrays = _up(4 * samples * dense_columns) + id_bytes * samples * features
    return HEADER_BYTES + arrays


def encode_query(
    dense: ArrayLike, ids: ArrayLike, *, within_s: float | None = None, model: str = ""
) -> bytes:
    """The bytes of a query.

    dense  [B, D] numbers
    ids    [F, B] int32 or int64, feature-major
    """
    numbers = np.ascontiguousarray(dense, dtype="<f4")
    if numbers.ndim != 2:
        raise InputError(f"dense has the shape {list(numbers.shape)}; it must be [samples, dense columns]")
    given = np.asarray(ids)
    wide = given.dtype == np.int64
    if not wide and given.dtype != np.int32:
        raise InputError(f"ids have the type {given.dtype}; they must be int32 or int64")
    if given.ndim != 2 or given.shape[1] != numbers.shape[0]:
        raise InputError(
            f"ids have the shape {list(given.shape)}; with dense {list(numbers.shape)} it must be "
            f"[features, {numbers.shape[0]}]"
        )
    if within_s is not None and not (math.isfinite(within_s) and within_s > 0):
        raise InputError(f"within_s = {within_s}; it must be a positive number of seconds, or None")
    values = np.ascontiguousarray(given, dtype="<i8" if wide else "<i4")
    name = model.encode()
    header = _QUERY.pack(
        _QUERY_MAGIC,
        VERSION,
        _INT64 if wide else 0,
        numbers.shape[0],
        numbers.shape[1],
        values.shape[0],
        within_s or 0.0,
        len(name),
    )
    body = numbers.tobytes()
    return b"".join([header, name, _zeros(len(name)), body, _zeros(len(body)), values.tobytes()])


def decode_query(body: bytes | bytearray | memoryview, *, max_samples: int) -> Query:
    """The query in a body, without a copy of its arrays; raises RefusalError where it is none.

    max_samples  more are refused before anything is computed from their number
    """
    length = len(body)
    if length < HEADER_BYTES:
        raise RefusalError("bad_request", f"the body has {length} bytes; a query begins with {HEADER_BYTES}")
    magic, version, flags, samples, columns, features, within, named = _QUERY.unpack_from(body)
    if magic != _QUERY_MAGIC:
        raise RefusalError(
            "bad_request",
            f"the body begins with {bytes(magic)!r}, not {_QUERY_MAGIC!r}: it is no binary query (JSON is "
            "sent as application/json)",
        )
    if version != VERSION:
        raise RefusalError("bad_request", f"the query has version {version}; this server reads {VERSION}")
    if flags & ~_INT64 or any(body[HEADER_BYTES - 6 : HEADER_BYTES]):
        raise RefusalError(
            "bad_request", f"the query has flags {flags:#x} or reserved bytes that must be zero"
        )
    if samples > max_samples:
        raise RefusalError(
            "too_large", f"the query has {samples:,} samples; at most {max_samples:,} are taken: split it"
        )
    if not (math.isfinite(within) and within >= 0):
        raise RefusalError(
            "bad_request", f"the answer is wanted within {within} s; it must be a positive number, or 0"
        )
    id_bytes = 8 if flags & _INT64 else 4
    at_dense = HEADER_BYTES + _up(named)
    at_ids = at_dense + _up(4 * samples * columns)
    end = at_ids + id_bytes * samples * features
    if length != end:
        raise RefusalError(
            "bad_request",
            f"the body has {length:,} bytes, but {samples:,} samples of {columns} numbers and {features} "
            f"int{8 * id_bytes} ids need {end:,}: it was cut short, or its header is wrong",
        )
    try:
        model = bytes(body[HEADER_BYTES : HEADER_BYTES + named]).decode()
    except UnicodeDecodeError:
        raise RefusalError("bad_request", "the model's name is not UTF-8") from None
    dense = np.frombuffer(body, "<f4", samples * columns, at_dense).reshape(samples, columns)
    ids = np.frombuffer(body, f"<i{id_bytes}", samples * features, at_ids).reshape(features, samples)
    return Query(dense, ids, within or None, model)


def encode_answer(answer: Answer) -> bytes:
    """The bytes of an answer."""
    parts = [
        _ANSWER.pack(
            _ANSWER_MAGIC,
            VERSION,
            len(answer.paths),
            len(answer.probabilities),
            answer.batch_size,
            answer.batch,
            answer.wait_s,
            answer.service_s,
            answer.model_s,
            answer.total_s,
        )
    ]
    for name, samples in answer.paths.items():
        text = name.encode()
        parts += [_PART.pack(samples, len(text)), text]
    parts.append(_zeros(sum(map(len, parts))))
    parts.append(np.ascontiguousarray(answer.probabilities, "<f4").tobytes())
    return b"".join(parts)


def decode_answer(body: bytes | bytearray | memoryview) -> Answer:
    """The answer in a body; raises InputError where it is none."""
    try:
        magic, version, count, samples, size, batch, *seconds = _ANSWER.unpack_from(body)
        if (magic, version) != (_ANSWER_MAGIC, VERSION):
            raise InputError(f"the answer begins with {bytes(magic)!r}, version {version}: it is none")
        at = _ANSWER.size
        paths = {}
        for _ in range(count):
            part, named = _PART.unpack_from(body, at)
            at += _PART.size
            paths[bytes(body[at : at + named]).decode()] = part
            at += named
        at = _up(at)
        if len(body) != at + 4 * samples:
            raise InputError(f"the answer has {len(body)} bytes; {samples} samples need {at + 4 * samples}")
        probabilities = np.frombuffer(body, "<f4", samples, at)
    except (struct.error, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"the answer is cut short or damaged: {error}") from None
    wait, service, model, total = seconds
    return Answer(probabilities, paths, wait, service, model, total, batch, size)


def _up(length: int) -> int:
    """The next multiple of 8."""
    return (length + 7) & ~7


def _zeros(length: int) -> bytes:
    return b"\0" * (-length % 8)
