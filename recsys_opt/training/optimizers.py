"""SGD and Adagrad over a model's three kinds of parameters, each with its learning rate.

    mlp     the MLPs: torch's SGD or Adagrad
    cores   parameters of compressed tables (tensor-train cores and the like): the same
    tables  parameters of dense tables, whether their rows are in one tier or in two, and of rows held dense
            beside compressed tables, whose gradients are sparse: SGD or exact row-wise Adagrad

Exact means that the gradients of an id that occurs several times in a batch are summed first, and its row is
updated once. Row-wise Adagrad keeps one number per row (FBGEMM's and torchrec's EXACT_ROWWISE_ADAGRAD):

    state[i] += mean over columns of gradient[i]^2
    row[i]   -= lr * gradient[i] / (sqrt(state[i]) + eps)

Tables that fuse the update into the backward pass (tensor trains and dense tables unless `table_update` says
otherwise, FBGEMM's always) get the same rule and rate, and bring their state. Their gradients are never
stored. What the optimizer itself updates are the MLPs, held rows, and tables with stored gradients.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from recsys_opt import ops
from recsys_opt.embeddings.base import EmbeddingRepresentation
from recsys_opt.embeddings.dense import DenseEmbeddingBag
from recsys_opt.embeddings.fused_update import FusedUpdate, FusesUpdate
from recsys_opt.embeddings.hot_store import HotRows
from recsys_opt.embeddings.tiered import TieredEmbeddingBag
from recsys_opt.embeddings.tiered_rows import Ranking
from recsys_opt.embeddings.tt_update import FusesCoreUpdate
from recsys_opt.errors import InputError

Kind = Literal["mlp", "cores", "tables"]


@dataclass(frozen=True)
class OptimizerConfig:
    """The update rule and its learning rates."""

    algorithm: Literal["sgd", "adagrad"] = "sgd"
    """The rule for every parameter; dense tables get Adagrad's row-wise form."""
    mlp_lr: float = 0.1
    """Learning rate of the MLPs."""
    table_lr: float = 0.1
    """Learning rate of dense tables."""
    core_lr: float = 0.1
    """Learning rate of compressed tables' parameters."""
    eps: float = 1e-8
    """Adagrad's term beside the square root."""
    table_update: Literal["fused", "stored"] = "fused"
    """fused: embedding tables, dense ones and tensor trains, update themselves in the backward pass, row by
    row or slice by slice; stored: they store gradients, for the optimizer to use. The results differ by
    rounding alone. FBGEMM's tables have no gradients to store; beside frozen tables others of their
    representation store them always."""

    def __post_init__(self) -> None:
        if self.algorithm not in ("sgd", "adagrad"):
            raise InputError(f"algorithm = {self.algorithm!r}; it must be 'sgd' or 'adagrad'")
        if self.table_update not in ("fused", "stored"):
            raise InputError(f"table_update = {self.table_update!r}; it must be 'fused' or 'stored'")
        for name in ("mlp_lr", "table_lr", "core_lr", "eps"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise InputError(f"{name} = {value}; it must be a finite number, 0 or larger")
        if self.eps == 0:  # a weight whose gradients are all 0 would become 0 / 0
            raise InputError(f"eps = {self.eps}; it must be larger than 0")

    def learning_rate(self, kind: Kind) -> float:
        """The learning rate of one kind of parameters."""
        return {"mlp": self.mlp_lr, "cores": self.core_lr, "tables": self.table_lr}[kind]


def parameters_by_kind(model: nn.Module) -> dict[Kind, dict[str, nn.Parameter]]:
    """The model's parameters by kind and name; a parameter that two modules share is listed once."""
    kinds: dict[int, Kind] = {}
    for module in model.modules():
        if isinstance(module, (DenseEmbeddingBag, TieredEmbeddingBag, HotRows)):
            kinds |= {id(parameter): "tables" for parameter in module.parameters(recurse=False)}
    for module in model.modules():
        if isinstance(module, EmbeddingRepresentation):
            for parameter in module.parameters():
                kinds.setdefault(id(parameter), "cores")
    found: dict[Kind, dict[str, nn.Parameter]] = {"mlp": {}, "cores": {}, "tables": {}}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found[kinds.get(id(parameter), "mlp")][name] = parameter
    return found


_CAN_STORE = (DenseEmbeddingBag, TieredEmbeddingBag, FusesCoreUpdate)
"""Tables that can give gradients in place of updating themselves."""


def _fuse_updates(
    model: nn.Module, config: OptimizerConfig
) -> dict[Kind, tuple[FusedUpdate, dict[str, FusesUpdate]]]:
    """Gives the tables that are to update themselves their rule, one object per kind of parameters."""
    found: dict[Kind, tuple[FusedUpdate, dict[str, FusesUpdate]]] = {}
    tables = {name: m for name, m in model.named_modules() if isinstance(m, FusesUpdate)}
    # A lookup of several tables updates all or none: beside frozen ones the others store gradients.
    storing = {type(m) for m in tables.values() if config.table_update == "stored" or not m.learns}
    for name, module in tables.items():
        if not module.learns:
            continue
        kind: Kind = "tables" if module.stores_rows else "cores"
        if type(module) in storing and isinstance(module, _CAN_STORE):
            module.fuse_update(None)
            continue
        if kind not in found:
            rowwise = kind == "tables" and config.algorithm == "adagrad"
            rate = config.learning_rate(kind)
            found[kind] = (
                FusedUpdate("rowwise_adagrad" if rowwise else config.algorithm, rate, eps=config.eps),
                {},
            )
        update, modules = found[kind]
        module.fuse_update(update)
        modules[name] = module
    return found


class ModelOptimizer:
    """Updates all parameters of a model in one `step`.

    The state is plain tensors by name, so that a checkpoint can hold it; equal gradients give equal updates,
    bit for bit, whatever the number of threads.
    """

    def __init__(self, model: nn.Module, config: OptimizerConfig) -> None:
        self.config = config
        self._fused = _fuse_updates(model, config)
        self._parameters = parameters_by_kind(model)
        self._scale = 1.0
        self._state: dict[str, Tensor] = {}
        if config.algorithm == "adagrad":
            for kind, named in self._parameters.items():
                for name, p in named.items():
                    shape = p.shape[:1] if kind == "tables" else p.shape
                    self._state[name] = p.new_zeros(shape)
        self._stores = {name: m for name, m in model.named_modules() if isinstance(m, HotRows)}
        self._generations: dict[str, int] = {}
        if config.algorithm == "adagrad":
            # Whose row each number of a store's state is about: slots change their owners.
            self._state |= {f"{name}.keys": store.keys.clone() for name, store in self._stores.items()}

    def scale_learning_rates(self, factor: float) -> None:
        """Makes every learning rate `factor` times that of the config (warm-up, decay)."""
        self._scale = factor
        for kind, (update, _) in self._fused.items():
            update.set_learning_rate(self.config.learning_rate(kind) * factor)

    def zero_grad(self) -> None:
        """Forgets all gradients."""
        for named in self._parameters.values():
            for p in named.values():
                p.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """One update of every parameter that has a gradient."""
        self._forget_replaced_rows()
        for kind, named in self._parameters.items():
            lr = self.config.learning_rate(kind) * self._scale
            having = {name: p for name, p in named.items() if p.grad is not None}
            if not having:
                continue
            if kind == "tables":
                self._update_tables(having, lr)
            else:
                self._update_dense(having, lr)

    def state_dict(self) -> dict[str, Tensor]:
        """The state's tensors by parameter name; empty for SGD."""
        fused = [item for _, modules in self._fused.values() for item in modules.items()]
        states = ((f"{name}.{key}", state) for name, m in fused for key, state in m.update_state().items())
        return self._state | dict(states)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copies a state of `state_dict` in; its names and shapes must be this optimizer's."""
        ours = self.state_dict()
        if missing := _names(ours.keys() - state.keys()):
            raise InputError(f"the optimizer state lacks {missing}; it is of another model or algorithm")
        if extra := _names(state.keys() - ours.keys()):
            raise InputError(
                f"the optimizer state has {extra}, unknown here; it is of another model or algorithm"
            )
        for name, own in ours.items():
            if state[name].shape != own.shape:
                raise InputError(
                    f"the optimizer state of {name} has shape {list(state[name].shape)}; here it is "
                    f"{list(own.shape)}"
                )
            own.copy_(state[name])
        self._generations.clear()

    def retier(self, model: nn.Module, table: TieredEmbeddingBag, hot_rows: int, ranking: Ranking) -> None:
        """`TieredEmbeddingBag.retier` of one of the model's tables, whose states here move with its rows."""
        name = next(name for name, module in model.named_modules() if module is table)
        tiers = f"{name}.hot", f"{name}.cold"
        held = [(self._state[tiers[0]], self._state[tiers[1]])] if tiers[0] in self._state else []
        for pair in table.retier(hot_rows=hot_rows, ranking=ranking, beside=held):
            self._state |= dict(zip(tiers, pair, strict=True))
        self._parameters = parameters_by_kind(model)

    def _forget_replaced_rows(self) -> None:
        """A row that has come into a store starts without state, as a dense table's rows do."""
        if self.config.algorithm == "sgd":
            return
        for name, store in self._stores.items():
            if self._generations.get(name) == store.generation:
                continue
            owner = self._state[f"{name}.keys"]
            self._state[f"{name}.weight"].mul_(owner == store.keys)
            owner.copy_(store.keys)
            self._generations[name] = store.generation

    def _update_dense(self, named: Mapping[str, nn.Parameter], lr: float) -> None:
        parameters: list[Tensor] = list(named.values())
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.config.algorithm == "sgd":
            torch._foreach_add_(parameters, gradients, alpha=-lr)
            return
        states = [self._state[name] for name in named]
        ops.adagrad_(parameters, states, gradients, lr, self.config.eps)

    def _update_tables(self, named: Mapping[str, nn.Parameter], lr: float) -> None:
        gradients = [p.grad for p in named.values() if p.grad is not None]
        ids = [gradient._indices()[0] for gradient in gradients]
        rows = [gradient._values() for gradient in gradients]
        weights = list(named.values())
        if self.config.algorithm == "sgd":
            ops.sgd_rows_(weights, ids, rows, lr)
        else:
            states = [self._state[name] for name in named]
            ops.rowwise_adagrad_rows_(weights, states, ids, rows, lr, self.config.eps)


def _names(keys: Iterable[str]) -> str:
    return ", ".join(sorted(keys))
