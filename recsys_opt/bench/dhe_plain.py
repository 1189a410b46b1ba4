"""Deep hash embeddings in plain torch, as published: hash, encode, MLP for every id of every table."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys_opt.embeddings.base import EmbeddingRepresentation
from recsys_opt.embeddings.dense import DenseEmbeddingBag
from recsys_opt.embeddings.dhe import DHEEmbeddingBag
from recsys_opt.embeddings.hybrid import HybridEmbeddingBag
from recsys_opt.errors import InputError
from recsys_opt.models.dlrm import DLRM


class PlainDHE(nn.Module):
    """The rows of a uniform `DHEEmbeddingBag`, its parameters shared."""

    def __init__(self, bag: DHEEmbeddingBag) -> None:
        super().__init__()
        if bag.encoding != "uniform":
            raise InputError("the plain deep hash embedding has uniform encodings alone")
        self.prime, self.buckets = bag.prime, bag.buckets
        self.a, self.b = bag.hashes[0].clone(), bag.hashes[1].clone()
        # As nn.Linear has them, [out, in].
        self.layers = [
            (w.detach().t().contiguous(), b.detach()) for w, b in zip(bag.weights, bag.biases, strict=True)
        ]

    def forward(self, ids: Tensor) -> Tensor:
        """Rows [B, D] of ids [B]."""
        hashed = (ids[:, None] * self.a + self.b) % self.prime % self.buckets
        x = hashed.float().mul_(2.0 / (self.buckets - 1)).sub_(1.0)
        for weight, bias in self.layers[:-1]:
            x = F.linear(x, weight, bias).relu_()
        return F.linear(x, *self.layers[-1])


class PlainTables(nn.Module):
    """The rows of every table of a model for one id per feature, table by table."""

    def __init__(self, bags: Sequence[EmbeddingRepresentation]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(part for bag in bags for part in _plain(bag))
        self.per_table = len(self.parts) // len(bags)

    def forward(self, ids: Tensor) -> Tensor:
        """Rows of ids [F, B], [B, the tables' columns]."""
        starts = torch.arange(ids.shape[1])
        outputs = []
        for k, part in enumerate(self.parts):
            own = ids[k // self.per_table]
            outputs.append(part(own, starts) if isinstance(part, nn.EmbeddingBag) else part(own))
        return torch.cat(outputs, dim=1)


class PlainDLRM(nn.Module):
    """A whole DLRM in torch's modules and operators, its parameters shared."""

    def __init__(self, model: DLRM) -> None:
        super().__init__()
        self.bottom, self.top = model.bottom, model.top
        self.tables = PlainTables([model.embeddings.table(c.name) for c in model.embeddings.configs])
        vectors = 1 + sum(c.embedding_dim // model.dim for c in model.embeddings.configs)
        self.pairs = torch.tril_indices(vectors, vectors, offset=-1)

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        """Probabilities [B]; dense [B, N], ids [F, B]."""
        x = self.bottom(dense)
        rows = self.tables(ids).view(len(dense), -1, x.shape[1])
        vectors = torch.cat([x[:, None], rows], dim=1)
        products = torch.bmm(vectors, vectors.transpose(1, 2))
        crossed = torch.cat([x, products[:, self.pairs[0], self.pairs[1]]], dim=1)
        logits: Tensor = self.top(crossed)
        return logits.squeeze(1).sigmoid()


def _plain(bag: EmbeddingRepresentation) -> list[nn.Module]:
    if isinstance(bag, DHEEmbeddingBag):
        return [PlainDHE(bag)]
    if isinstance(bag, HybridEmbeddingBag):
        return [*_plain(bag.table), *_plain(bag.dhe)]
    if isinstance(bag, DenseEmbeddingBag):
        return [nn.EmbeddingBag.from_pretrained(bag.weight.detach(), mode="sum")]
    raise InputError(f"there is no plain form of {type(bag).__name__}")
