"""The columns of Criteo click logs, and the two ways from their values to ids.

A value is 8 hexadecimal digits, a 32-bit number. Missing values always have id 0.

* Vocabulary: id 1 is for values that occur fewer than `min_count` times in the labelled rows (and for those
  of unlabelled rows only); the others follow from id 2 by descending count, ties by ascending value.
* Hash: 1 + mix(value) mod (num_embeddings - 1), mix being MurmurHash3's 32-bit finalizer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_opt.errors import InputError

DENSE_COLUMNS = tuple(f"I{i}" for i in range(1, 14))
SPARSE_COLUMNS = tuple(f"C{i}" for i in range(1, 27))
MISSING_ID = 0
RARE_ID = 1
FIRST_ID = 2


@dataclass(frozen=True)
class VocabularyIds:
    """Ids from a vocabulary of the labelled rows."""

    min_count: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.min_count < 2**32:
            raise InputError(
                f"the minimum count is {self.min_count}; it must be at least 1 and less than 2^32"
            )

    def to_json(self) -> dict[str, Any]:
        """What dataset.json says of the ids."""
        return {
            "method": "vocabulary",
            "min_count": self.min_count,
            "missing_id": MISSING_ID,
            "rare_id": RARE_ID,
            "first_id": FIRST_ID,
            "values": "vocabulary.npy",
        }


@dataclass(frozen=True)
class HashedIds:
    """Ids by hashing to given cardinalities."""

    cardinalities: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.cardinalities) != len(SPARSE_COLUMNS):
            raise InputError(
                f"there are {len(self.cardinalities)} cardinalities; Criteo has {len(SPARSE_COLUMNS)} "
                "sparse columns"
            )
        for name, n in zip(SPARSE_COLUMNS, self.cardinalities, strict=True):
            if not 2 <= n <= 2**31:
                raise InputError(
                    f"the cardinality of {name} is {n}; it must be at least 2 (id 0 is for missing values) "
                    "and at most 2^31"
                )

    def to_json(self) -> dict[str, Any]:
        """What dataset.json says of the ids."""
        return {
            "method": "hash",
            "function": "1 + fmix32(value) mod (num_embeddings - 1)",
            "missing_id": MISSING_ID,
            "cardinalities": list(self.cardinalities),
        }


def hash_values(values: NDArray[np.uint32], num_embeddings: int) -> NDArray[np.int32]:
    """The ids of `HashedIds` for the present values of a column: the definition of what prepare does."""
    x = values.astype(np.uint32)
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    x ^= x >> np.uint32(16)
    return (1 + x.astype(np.int64) % (num_embeddings - 1)).astype(np.int32)
