"""The ranking of a table's rows in a byte or two a row, read from the file when it is asked for."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_opt import _access
from recsys_opt.errors import InputError

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class PackedRows:
    """The rows seen, hottest first, and each one's lookups in the later part of the time, as varints."""

    where: str
    """The table, and the file if it came from one; for messages."""
    ids_crc: int
    late_crc: int
    read_ids: Callable[[], Bytes]
    read_late: Callable[[], Bytes]

    @classmethod
    def of(cls, table: str, ids: Bytes, late: Bytes) -> PackedRows:
        """Of packed rows in memory (`_access.ranked`)."""
        return cls(f"table {table}", zlib.crc32(ids.data), zlib.crc32(late.data), lambda: ids, lambda: late)

    def ids(self, rows: NDArray[np.int64], num_embeddings: int) -> NDArray[Any]:
        """The rows seen, hottest first; `rows` [K] in runs of equal counts."""
        packed = self._checked(self.read_ids(), self.ids_crc)
        try:
            return _access.unpack_ranking(packed, rows, num_embeddings)
        except ValueError as error:
            raise self.damaged(str(error)) from None

    def late(self, count: int) -> NDArray[np.uint64]:
        """Lookups in the later part."""
        packed = self._checked(self.read_late(), self.late_crc)
        try:
            return _access.unpack_numbers(packed, count)
        except ValueError as error:
            raise self.damaged(str(error)) from None

    def damaged(self, how: str) -> InputError:
        """The error of a file that is not what was written."""
        return InputError(f"{self.where}: {how}; make the statistics again with recsys-opt stats")

    def _checked(self, packed: Bytes, crc: int) -> Bytes:
        if zlib.crc32(np.ascontiguousarray(packed).data) != crc:
            raise self.damaged("the ranking is damaged: its checksum is another")
        return packed
