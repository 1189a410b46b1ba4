"""The candidates of `bench train`: the Criteo Kaggle DLRM with each kind of tables, and its training step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from recsys_opt import ops
from recsys_opt.data.dataset import SparseColumn
from recsys_opt.embeddings.collection import EmbeddingCollection
from recsys_opt.models.dlrm import DLRM
from recsys_opt.models.recipes import criteo_kaggle, table_configs
from recsys_opt.training.optimizers import ModelOptimizer, OptimizerConfig

LEARNING_RATE = 0.1
TABLES = {
    "nn": "nn.EmbeddingBag for every table, torch's SGD",
    "fbgemm": "FBGEMM's fused tables",
    "dense": "our dense tables",
    "tt": "the largest as tensor trains, the others our dense ones",
}


@dataclass(frozen=True)
class Candidate:
    """One way to run a training step."""

    tables: str
    precision: Literal["fp32", "bf16"]
    algorithm: Literal["sgd", "adagrad"]

    @property
    def model(self) -> str:
        """Candidates of equal `model` share one: tables that update themselves have one rule."""
        return f"{self.tables} {self.algorithm}"

    @property
    def name(self) -> str:
        """For the printed table."""
        return f"{self.tables} {self.precision} {self.algorithm}"


@dataclass(frozen=True)
class TTOptions:
    """Which tables are tensor trains, of what rank and column factors."""

    tables: int
    """So many of the largest."""
    rank: int
    q_shapes: tuple[int, ...] | None = None
    """Column factors; None: the library's default."""


class StockTables(nn.Module):
    """nn.EmbeddingBag for every table, one after another, as in the DLRM repository; one id per bag."""

    def __init__(self, tables: EmbeddingCollection) -> None:
        """Shares the weights of dense tables."""
        super().__init__()
        bags = []
        for name in tables.tables:
            # A parameter of its own: ours stops to require a gradient once the table updates itself.
            weight = nn.Parameter(tables.tables[name].get_parameter("weight").detach())
            bag = nn.EmbeddingBag(1, 1, mode="sum", sparse=True)
            bag.num_embeddings, bag.embedding_dim = weight.shape
            bag.weight = weight
            bags.append(bag)
        self.bags = nn.ModuleList(bags)
        self.group_order = tuple(range(len(bags)))

    def forward_groups(self, values: Tensor, offsets: Tensor | None = None) -> list[Tensor]:
        """One output per table."""
        columns = values.view(len(self.bags), -1)
        starts = torch.arange(columns.shape[1], dtype=values.dtype)
        return [bag(ids, starts) for bag, ids in zip(self.bags, columns, strict=True)]


def build_models(candidates: Sequence[Candidate], rows: Sequence[int], tt: TTOptions) -> dict[str, DLRM]:
    """The candidates' models, by `Candidate.model`; nn.EmbeddingBag and our dense tables share weights."""
    columns = [SparseColumn(f"C{i + 1}", n) for i, n in enumerate(rows)]
    largest = [c.name for c in sorted(columns, key=lambda c: -c.num_embeddings)[: tt.tables]]
    recipe = criteo_kaggle()
    own: dict[str, Any] = {"tt_ranks": tt.rank}
    if tt.q_shapes is not None:
        own["tt_q_shapes"] = list(tt.q_shapes)

    def dlrm(columns: Sequence[SparseColumn], representation: str, tt_tables: Sequence[str] = ()) -> DLRM:
        torch.manual_seed(0)
        return recipe.build(
            table_configs(
                columns,
                recipe.embedding_dim,
                tt_options={name: own for name in tt_tables},
                dense_representation=representation,
            )
        )

    models: dict[str, DLRM] = {}
    shared: EmbeddingCollection | None = None
    for candidate in candidates:
        if candidate.model in models:
            continue
        if candidate.tables == "tt":
            models[candidate.model] = dlrm(columns, "dense", largest)
        elif candidate.tables == "fbgemm":
            models[candidate.model] = dlrm(columns, "fbgemm")
        else:
            shared = shared or dlrm(columns, "dense").embeddings
            model = dlrm([SparseColumn(c.name, 1) for c in columns], "dense")
            if candidate.tables == "nn":
                model.add_module("embeddings", StockTables(shared))
            else:
                _share_weights(model.embeddings, shared)
            models[candidate.model] = model
    return models


def _share_weights(tables: EmbeddingCollection, source: EmbeddingCollection) -> None:
    for name in tables.tables:
        table, weight = tables.table(name), source.table(name).get_parameter("weight")
        table.num_embeddings = weight.shape[0]
        table.register_parameter("weight", nn.Parameter(weight.detach()))


Batch = tuple[Tensor, Tensor, Tensor]
"""dense [B, 13], values [26 * B], labels [B]"""


def make_step(model: DLRM, candidate: Candidate, batches: Sequence[Batch]) -> Callable[[], None]:
    """One call trains on the next batch; it sets the process's precision of tensor trains to its own."""
    bf16 = candidate.precision == "bf16"
    zero_grad, update = _optimizer(model, candidate)

    def forever() -> Iterator[Batch]:
        while True:
            yield from batches

    following = forever()

    def step() -> None:
        dense, values, labels = next(following)
        ops.tt_allow_bf16(bf16)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(dense, values)
        loss = binary_cross_entropy_with_logits(logits.float(), labels)
        zero_grad()
        loss.backward()
        update()

    return step


def _optimizer(model: DLRM, candidate: Candidate) -> tuple[Callable[[], object], Callable[[], object]]:
    if candidate.tables == "nn":
        stock = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
        return stock.zero_grad, stock.step
    rates = (LEARNING_RATE,) * 3
    own = ModelOptimizer(model, OptimizerConfig(candidate.algorithm, *rates))
    return own.zero_grad, own.step
