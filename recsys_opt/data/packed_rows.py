"""The ranking of a table's rows in a byte or two a row, read from the file when it is asked for."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_opt import _access
from recsys_opt.errors import InputError

Bytes = NDArray[np.uint8]
MEMBERS = ("ranking", "late", "sampled")


@dataclass(frozen=True, eq=False)
class PackedRows:
    """The rows known, hottest first, and each one's lookups in the later part of the time, as varints.

    Of a sampled table also what is known of its rows besides (`recsys_opt.data.access_sampled`).
    """

    where: str
    """The table, and the file if it came from one; for messages."""
    crcs: Mapping[str, int]
    """Of each member in `MEMBERS`."""
    readers: Mapping[str, Callable[[], Bytes]]

    @classmethod
    def of(cls, table: str, ids: Bytes, late: Bytes, sampled: Bytes | None = None) -> PackedRows:
        """Of packed rows in memory (`_access.ranked`)."""
        sampled = np.zeros(0, dtype=np.uint8) if sampled is None else sampled
        members = dict(zip(MEMBERS, (ids, late, sampled), strict=True))
        crcs = {name: zlib.crc32(packed.data) for name, packed in members.items()}
        return cls(f"table {table}", crcs, {name: partial(_same, m) for name, m in members.items()})

    def ids(self, rows: NDArray[np.int64], num_embeddings: int) -> NDArray[Any]:
        """The rows known, hottest first; `rows` [K] in runs of equal counts."""
        packed = self._read("ranking")
        try:
            return _access.unpack_ranking(packed, rows, num_embeddings)
        except ValueError as error:
            raise self.damaged(str(error)) from None

    def late(self, count: int) -> NDArray[np.uint64]:
        """Lookups in the later part."""
        return self._numbers("late", count)

    def sampled(self, count: int) -> NDArray[np.uint64]:
        """[3, count] earlier lookups, least lookups, estimated lookups."""
        return self._numbers("sampled", 3 * count).reshape(3, count)

    def damaged(self, how: str) -> InputError:
        """The error of a file that is not what was written."""
        return InputError(f"{self.where}: {how}; make the statistics again with recsys-opt stats")

    def _numbers(self, member: str, count: int) -> NDArray[np.uint64]:
        packed = self._read(member)
        try:
            return _access.unpack_numbers(packed, count)
        except ValueError as error:
            raise self.damaged(str(error)) from None

    def _read(self, member: str) -> Bytes:
        packed = np.ascontiguousarray(self.readers[member]())
        if zlib.crc32(packed.data) != self.crcs[member]:
            raise self.damaged("the ranking is damaged: its checksum is another")
        return packed


def _same(packed: Bytes) -> Bytes:
    return packed
