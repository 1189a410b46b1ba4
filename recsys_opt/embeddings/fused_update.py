"""Updates that embedding tables make in the backward pass, without storing gradients."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from recsys_opt.errors import InputError

_DISTRIBUTED = torch.distributed.is_available()  # in this build of torch
Algorithm = Literal["sgd", "adagrad", "rowwise_adagrad", "adam"]


class FusedUpdate:
    """An update rule with its numbers, shared by the tables that are updated alike.

    algorithm      "sgd", "adagrad", "adam" as torch's; "rowwise_adagrad" is FBGEMM's exact one, with one
                   number of state for a row (a dense table) or a slice cores[k][i] (a tensor train)
    learning_rate  of the backward passes to come; `set_learning_rate` changes it
    eps            beside the square root
    betas          of Adam
    weight_decay   times the weight is added to the gradient (L2)

    Rows or slices that a batch does not use are left alone, so their Adam moments and weights do not decay
    (torch.optim.SparseAdam's rule). Every backward pass is an update: gradients of several passes do not add
    up, and nothing can clip, unscale (GradScaler) or average (DistributedDataParallel) a gradient that is
    never there; train ordinary parameters for those.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        learning_rate: float,
        *,
        eps: float = 1e-8,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
    ) -> None:
        if algorithm not in get_args(Algorithm):
            raise InputError(f"algorithm = {algorithm!r}; choose one of {', '.join(get_args(Algorithm))}")
        for name, value in (("learning_rate", learning_rate), ("eps", eps), ("weight_decay", weight_decay)):
            if not 0 <= value < math.inf:
                raise InputError(f"{name} = {value}; it must be a finite number, 0 or larger")
        if eps == 0 and algorithm != "sgd":  # a number whose gradients are all 0 would become 0 / 0
            raise InputError(f"eps = {eps}; {algorithm} needs it larger than 0")
        for beta in betas:
            if not 0 <= beta < 1:
                raise InputError(f"betas = {betas}; they must be at least 0 and below 1")
        self.algorithm = algorithm
        self.eps, self.betas, self.weight_decay = eps, betas, weight_decay
        self._learning_rate = learning_rate
        self._numbers: dict[torch.device, Tensor] = {}

    @property
    def learning_rate(self) -> float:
        """The rate of the backward passes to come."""
        return self._learning_rate

    def set_learning_rate(self, learning_rate: float) -> None:
        """Changes the rate; costs nothing where it stays the same."""
        if learning_rate == self._learning_rate:
            return
        self._learning_rate = learning_rate
        for numbers in self._numbers.values():
            numbers[0] = learning_rate

    def numbers(self, device: torch.device) -> Tensor:
        """[6] float64 for the op on a device: lr, eps, beta1, beta2, weight_decay, steps done (Adam's)."""
        found = self._numbers.get(device)
        if found is None:
            values = [self._learning_rate, self.eps, *self.betas, self.weight_decay, 0.0]
            found = self._numbers[device] = torch.tensor(values, dtype=torch.float64, device=device)
        return found

    def __repr__(self) -> str:
        return f"FusedUpdate({self.algorithm!r}, {self._learning_rate}, eps={self.eps})"


def shared_update(tables: Sequence[FusesUpdate]) -> FusedUpdate | None:
    """The update of tables that are looked up together; raises where they differ or one would be lost."""
    update = tables[0]._update
    for table in tables:
        if table._update is not update:
            raise InputError(
                f"tables that are looked up together have {update} and {table._update}; give fuse_update of "
                "all the same object, or None"
            )
    if update is not None and processes() > 1:
        for table in tables:
            table.refuse_lost_updates()
    return update


def processes() -> int:
    """Processes of the default group of torch.distributed; 1 without one."""
    return torch.distributed.get_world_size() if _DISTRIBUTED and torch.distributed.is_initialized() else 1


class FusesUpdate(ABC):
    """Mixed into a representation whose backward pass can update its own weights.

    Each backward pass is an update: gradients of several passes do not add up, and DistributedDataParallel
    has no gradient to average. With several processes training, a lookup is therefore refused, unless
    `differs_by_process` is set.
    """

    differs_by_process: bool = False
    """Set it on a table of which no other process holds a copy (model parallelism)."""

    stores_rows: ClassVar[bool]
    """Whether the weights are the table's rows, so that the row-wise rules are the usual ones."""

    _update: FusedUpdate | None = None

    @property
    def update(self) -> FusedUpdate | None:
        """The rule of the backward passes to come; None: the weights get gradients."""
        return self._update

    @property
    @abstractmethod
    def learns(self) -> bool:
        """Whether training changes the weights; False when they are frozen."""

    @abstractmethod
    def fuse_update(self, update: FusedUpdate | None) -> None:
        """Lets the backward passes to come update the weights by `update`, from a fresh state.

        None: gives the weights gradients again, where the representation can. Tables that are looked up
        together need the same object.
        """

    @abstractmethod
    def update_state(self) -> dict[str, Tensor]:
        """The rule's state for a checkpoint, by name; its tensors may be written to. Empty for SGD."""

    def refuse_lost_updates(self) -> None:
        """Raises where the processes of a group would each update their own copy of the table."""
        if self.differs_by_process or not torch.is_grad_enabled():
            return
        if processes() > 1:
            raise InputError(
                "a table updates itself in the backward pass, so that its copies in "
                f"{processes()} processes would drift apart: there is no gradient to average. "
                "fuse_update(None) or OptimizerConfig(table_update='stored') gives it gradients; in place of "
                "FBGEMM's tables take the representation 'dense'; set differs_by_process=True on a table "
                "that no other process holds"
            )
