"""What every stage means by an embedding table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from recsys_opt.errors import InputError

Pooling = Literal["sum", "mean"]


@dataclass(frozen=True)
class TableConfig:
    """One embedding table: its size, the features that look it up, and how its rows are made."""

    name: str
    """Unique in a model; also the prefix of its weights in checkpoints."""
    num_embeddings: int
    """Rows, that is, ids 0 .. num_embeddings - 1."""
    embedding_dim: int
    """Columns."""
    feature_names: tuple[str, ...] = ()
    """Features that share this table; default: one, named as the table."""
    pooling: Pooling = "sum"
    """How the rows of one bag become one row."""
    representation: str = "dense"
    """A name in `recsys_opt.embeddings.registry`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The representation's own options, e.g. {"tt_ranks": 32}; JSON values only."""

    def __post_init__(self) -> None:
        if not self.name:
            raise InputError("TableConfig.name is empty; give each table a name")
        for what, value in (("num_embeddings", self.num_embeddings), ("embedding_dim", self.embedding_dim)):
            if value < 1:
                raise InputError(f"table {self.name}: {what} = {value}; it must be at least 1")
        if self.pooling not in ("sum", "mean"):
            raise InputError(f"table {self.name}: pooling = {self.pooling!r}; it must be 'sum' or 'mean'")
        object.__setattr__(self, "feature_names", tuple(self.feature_names) or (self.name,))

    @property
    def dense_bytes(self) -> int:
        """Bytes of the table stored row by row in fp32."""
        return 4 * self.num_embeddings * self.embedding_dim
