"""The deep learning recommendation model (Naumov et al. 2019, arXiv:1906.00091)."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from recsys_opt import ops
from recsys_opt.embeddings.base import EmbeddingRepresentation
from recsys_opt.embeddings.collection import EmbeddingCollection
from recsys_opt.errors import InputError
from recsys_opt.tables import TableConfig


class DLRM(nn.Module):
    """Bottom MLP, embedding tables of any representation, dot interaction, top MLP.

    The parameters start as in the DLRM repository: a linear layer with n inputs and m outputs has weights
    normal(0, 2 / (m + n)) and biases normal(0, 1 / m), written as (mean, variance); dense tables are uniform
    in +-1/sqrt(rows). The MLPs are drawn before the tables, so that with one seed models that differ in their
    tables alone have the same MLPs.
    """

    def __init__(
        self,
        tables: Sequence[TableConfig],
        *,
        dense_features: int = 13,
        bottom_mlp: Sequence[int] = (512, 256, 64, 16),
        top_mlp: Sequence[int] = (512, 256, 1),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Builds the model.

        tables          one TableConfig per table, of the model's dimension; a multiple of it is several
                        vectors, each crossed with all others (a hybrid's parts)
        dense_features  columns of `dense`
        bottom_mlp      widths after the input; the last is the tables' embedding_dim
        top_mlp         widths after the interaction; the last is 1
        """
        super().__init__()
        dim = bottom_mlp[-1] if bottom_mlp else 0
        for table in tables:
            if dim == 0 or table.embedding_dim % dim:
                raise InputError(
                    f"table {table.name} has embedding_dim {table.embedding_dim}, but the bottom MLP ends in "
                    f"{dim}; the dot interaction needs them equal, or a table of several such vectors"
                )
        if not top_mlp or top_mlp[-1] != 1:
            raise InputError(f"top_mlp = {list(top_mlp)}; it must end in 1, the logit")
        self.dense_features, self.dim = dense_features, dim
        vectors = 1 + sum(len(table.feature_names) * (table.embedding_dim // dim) for table in tables)
        width = dim + vectors * (vectors - 1) // 2
        self.bottom = _mlp([dense_features, *bottom_mlp], relu_last=True, device=device, dtype=dtype)
        self.top = _mlp([width, *top_mlp], relu_last=False, device=device, dtype=dtype)
        self.embeddings = EmbeddingCollection(tables, device=device, dtype=dtype)
        self.vector_order = vector_order(self.embeddings.group_order, self.embeddings.feature_dims, dim)
        """Where each vector is in the outputs of `EmbeddingCollection.forward_groups`, in vectors."""

    def with_tables(self, bags: Mapping[str, EmbeddingRepresentation]) -> DLRM:
        """A model with some tables replaced, e.g. by what serves them; it shares everything else."""
        found = copy.copy(self)
        found._modules = dict(self._modules)
        found.embeddings = self.embeddings.with_tables(bags)
        columns = found.embeddings.feature_dims
        found.vector_order = vector_order(found.embeddings.group_order, columns, self.dim)
        return found

    def forward(self, dense: Tensor, values: Tensor, offsets: Tensor | None = None) -> Tensor:
        """Logits of a batch; their sigmoid is the probability of a click.

        dense    [B, dense_features]
        values   [N] ids, feature-major; see `EmbeddingCollection.forward`
        offsets  [F * B + 1], or None for one id per feature: N = F * B
        returns  [B]
        """
        if dense.dim() != 2 or dense.shape[1] != self.dense_features:
            raise InputError(
                f"dense has shape {list(dense.shape)}; it must be [batch, {self.dense_features}]"
            )
        sparse = self.embeddings.forward_groups(values, offsets)
        if sparse[0].shape[0] != dense.shape[0]:
            raise InputError(
                f"dense has {dense.shape[0]} samples, but values and offsets describe {sparse[0].shape[0]}"
            )
        crossed = ops.dot_interaction(self.bottom(dense), sparse, self.vector_order)
        logits: Tensor = self.top(crossed)
        return logits.squeeze(1)


def vector_order(block_order: Sequence[int], columns: Sequence[int], dim: int) -> tuple[int, ...]:
    """Where each vector of the features is in outputs that lie side by side, in vectors of `dim`.

    block_order  where each feature is among their blocks
    columns      of each feature: several vectors where it is a multiple of `dim`
    """
    counts = [width // dim for width in columns]
    starts, next_start = [0] * len(counts), 0
    for feature in sorted(range(len(counts)), key=block_order.__getitem__):
        starts[feature] = next_start
        next_start += counts[feature]
    return tuple(start + i for start, count in zip(starts, counts, strict=True) for i in range(count))


def _mlp(
    widths: Sequence[int],
    *,
    relu_last: bool,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n, m in itertools.pairwise(widths):
        linear = nn.Linear(n, m, device=device, dtype=dtype)
        if not linear.weight.is_meta:  # nothing is drawn there, but torch loads its compiler, 1.7 s, to know
            nn.init.normal_(linear.weight, 0.0, math.sqrt(2.0 / (m + n)))
            nn.init.normal_(linear.bias, 0.0, math.sqrt(1.0 / m))
        layers += [linear, nn.ReLU(inplace=True)]
    return nn.Sequential(*(layers if relu_last else layers[:-1]))
