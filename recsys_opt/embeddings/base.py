"""The one interface that every representation of an embedding table has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from recsys_opt.embeddings.bag_arguments import to_bags
from recsys_opt.errors import InputError
from recsys_opt.tables import TableConfig


class EmbeddingRepresentation(nn.Module, ABC):
    """How one table's rows are made. A subclass is one file, named in `recsys_opt.embeddings.registry`."""

    num_embeddings: int
    embedding_dim: int

    @classmethod
    @abstractmethod
    def from_config(
        cls,
        config: TableConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """The module for a table; raises InputError when `config.options` does not fit."""

    @classmethod
    def _configured(
        cls, config: TableConfig, kind: str, known: Set[str], needed: Mapping[str, Any], **arguments: Any
    ) -> Self:
        """The module for a table, made by a constructor that takes its options; checks their names.

        kind       what messages call the representation
        known      names of options
        needed     those that must be there, each with an example
        arguments  for the constructor besides
        """
        where = f"table {config.name}:"
        unknown = sorted(set(config.options) - known)
        if unknown:
            raise InputError(
                f"{where} {kind} has no option {unknown[0]!r}; it has {', '.join(sorted(known))}"
            )
        for name, example in needed.items():
            if name not in config.options:
                raise InputError(f"{where} {kind} needs the option {name}, e.g. {{{name!r}: {example}}}")
        try:
            return cls(
                config.num_embeddings,
                config.embedding_dim,
                mode=config.pooling,
                **arguments,
                **config.options,
            )
        except InputError as error:
            raise InputError(f"{where} {error}") from None

    @abstractmethod
    def forward(
        self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        """Pooled rows, with the arguments and meaning of `nn.EmbeddingBag.forward`.

        input               [N] or [B, L] int32 or int64 ids
        offsets             [B] starts of the bags, with a 1-D input
        per_sample_weights  same shape as `input`; sum pooling only
        returns             [B, embedding_dim]
        """

    @classmethod
    def forward_group(
        cls,
        bags: Sequence[Self],
        indices: Tensor,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        """Pooled rows of several tables of this representation at once, in torchrec's memory order.

        bags                T modules (one may occur twice, when features share a table)
        indices             [N] ids, feature-major
        offsets             [T * B + 1] bag t * B + b is indices[offsets[t * B + b] : offsets[t * B + b + 1]];
                            None: one id per bag, N = T * B
        per_sample_weights  [N]
        returns             [B, sum of the bags' embedding_dim]

        A representation with a kernel for many tables overrides this with one launch.
        """
        outputs = [
            bag(ids, bounds[:-1], weights)
            for bag, ids, bounds, weights in split_group(bags, indices, offsets, per_sample_weights)
        ]
        return torch.cat(outputs, dim=1)

    def settled_options(self) -> dict[str, Any]:
        """Options that the module chose itself; a saved model names them, so that defaults may change."""
        return {}

    @abstractmethod
    def materialize(self) -> Tensor:
        """The whole table, [num_embeddings, embedding_dim]."""

    @abstractmethod
    def storage_bytes(self) -> int:
        """Bytes of the parameters that make the rows."""

    @abstractmethod
    def flops_per_lookup(self) -> int:
        """Floating-point operations (a multiply-add is 2) to make one row, without reuse between rows."""


class GroupedRepresentation(EmbeddingRepresentation):
    """One whose lookups in a table are those in a group of one; `forward_group` is what it computes."""

    include_last_offset: bool = False

    def forward(
        self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        """Pooled rows; see `EmbeddingRepresentation.forward`."""
        indices, bounds, weights = to_bags(input, offsets, per_sample_weights, self.include_last_offset)
        return self.forward_group([self], indices, bounds, weights)

    @classmethod
    @abstractmethod
    def forward_group(
        cls,
        bags: Sequence[Self],
        indices: Tensor,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        """Pooled rows of many tables in one launch; see `EmbeddingRepresentation.forward_group`."""


Bag = TypeVar("Bag", bound=EmbeddingRepresentation)


def split_group(
    bags: Sequence[Bag], indices: Tensor, offsets: Tensor | None, per_sample_weights: Tensor | None
) -> Iterator[tuple[Bag, Tensor, Tensor, Tensor | None]]:
    """Each table's part of `forward_group`'s arguments: the module, ids, [B + 1] bounds in them, weights."""
    if offsets is None:
        offsets = torch.arange(indices.numel() + 1, dtype=indices.dtype, device=indices.device)
    batch = (offsets.numel() - 1) // len(bags)
    for t, bag in enumerate(bags):
        bounds = offsets[t * batch : (t + 1) * batch + 1]
        start, stop = int(bounds[0]), int(bounds[-1])
        weights = None if per_sample_weights is None else per_sample_weights[start:stop]
        yield bag, indices[start:stop], bounds - start, weights
