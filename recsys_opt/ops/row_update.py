"""Lookups in stored rows whose backward pass updates the rows, in place of their gradients: what dense tables
and tables of two tiers share."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recsys_opt.ops.library import differentiated_once, eager_apply, eager_op, fake
from recsys_opt.ops.tt_update import ANCHOR, count_step

Tables = Sequence[Sequence[Tensor]]
"""Lists of a tensor for each table."""


class RowUpdate(NamedTuple):
    """An update of the looked-up rows in the backward pass, in place of the tables' gradients."""

    algorithm: int
    """One of TT_ALGORITHMS; csrc/tt/tt_update.h says what they compute, with a row for a slice."""
    states: Tables
    """Dense tables have one list, tiered ones that of the hot rows and that of the cold ones. In a list are
    the states of table 0, then of table 1, ...: SGD none; Adagrad one as large as the rows; row-wise Adagrad
    one number per row; Adam two as large as the rows. They have the rows' dtype."""
    hyperparameters: Tensor
    """[6] float64: lr, eps, beta1, beta2, weight_decay, step. Each backward pass of Adam adds 1 to the step
    first."""


class UpdatingBag:
    """A native lookup whose backward pass updates the rows. They must not require gradients, and get none.

    It looks up by the op `name`, of `rows`, `others`, indices, offsets, per_sample_weights and mean. Where
    there are others, they are remaps: the op also returns the positions of the ids, where a remap is not
    empty. It updates by the op `name`_backward_update, of the gradient, `rows`, their states, ids or
    positions, and the rest as in `update_rows`. For torch.compile there is the op `name`_updating.

    rows    names of the arguments that are lists of the tables' rows
    others  names of the lists behind them
    """

    def __init__(self, name: str, rows: Sequence[str], others: Sequence[str] = ()) -> None:
        self._name, self._rows, self._others = f"recsys_opt::{name}_updating", len(rows), len(others)
        self._look_up, self._update = eager_op(name), eager_op(f"{name}_backward_update")
        lists = ", ".join(f"Tensor[] {a}" for a in (*rows, *others, *(f"{r}_states" for r in rows)))
        returns = "(Tensor, Tensor)" if others else "Tensor"
        torch.library.define(
            self._name,
            f"(Tensor anchor, {lists}, Tensor indices, Tensor? offsets, Tensor? per_sample_weights, "
            f"int[] mean, int algorithm, Tensor hyperparameters) -> {returns}",
        )
        torch.library.impl(self._name, "default", self._traced)
        fake(self._name)(self._traced)
        torch.library.register_autograd(self._name, self._traced_backward, setup_context=self._save)

    def __call__(
        self,
        rows: Tables,
        others: Tables,
        indices: Tensor,
        offsets: Tensor | None,
        per_sample_weights: Tensor | None,
        mean: Sequence[bool],
        update: RowUpdate,
    ) -> Tensor:
        """The pooled rows."""
        flags, rows, others = [int(m) for m in mean], [*map(list, rows)], [*map(list, others)]
        batch = (indices, offsets, per_sample_weights, flags)
        if not torch.compiler.is_compiling():
            return _EAGER(ANCHOR, self, rows, others, *batch, update)
        op = getattr(torch.ops.recsys_opt, self._name.partition("::")[2])
        states = [*map(list, update.states)]
        found = op(ANCHOR, *rows, *others, *states, *batch, update.algorithm, update.hyperparameters)
        output: Tensor = found[0] if others else found
        return output

    def look_up(self, rows: Tables, others: Tables, *batch: Any) -> tuple[Tensor, Tensor]:
        """(pooled rows, what the update takes for ids)."""
        found = self._look_up(*rows, *others, *batch)
        return self._with_ids(found, others, batch[0])

    def update_rows(
        self,
        grad: Tensor,
        rows: Tables,
        batch: tuple[Tensor, Tensor | None, Tensor | None],
        mean: Sequence[int],
        factors_grad: bool,
        update: RowUpdate,
    ) -> Tensor | None:
        """Updates the rows; returns the gradient of the per-sample weights where they need one.

        batch  ids or positions, offsets, per-sample weights
        """
        count_step(update)
        factors = self._update(
            grad,
            *rows,
            *update.states,
            *batch,
            mean,
            factors_grad,
            update.algorithm,
            update.hyperparameters,
        )
        return factors if factors_grad else None

    def _with_ids(self, found: Any, others: Tables, indices: Tensor) -> tuple[Tensor, Tensor]:
        if not others:
            return found, indices
        output, positions = found
        return output, positions if any(remap.numel() for remap in others[0]) else indices

    def _split(self, arguments: Sequence[Any]) -> tuple[Tables, Tables, Tables, Sequence[Any]]:
        """Of `name`_updating: rows, others, states, what follows them."""
        ends = [1, 1 + self._rows, 1 + self._rows + self._others, 1 + 2 * self._rows + self._others]
        rows, others, states = (arguments[a:b] for a, b in itertools.pairwise(ends))
        return rows, others, states, arguments[ends[-1] :]

    def _traced(self, *arguments: Any) -> Any:
        rows, others, _, (*batch, _, _) = self._split(arguments)
        return self._look_up(*rows, *others, *batch)

    def _save(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        rows, others, states, (indices, offsets, factors, *rest) = self._split(inputs)
        ctx.mean, ctx.algorithm, hyperparameters = rest
        ctx.lists = [len(tensors) for tensors in inputs[1 : 1 + 2 * self._rows + self._others]]
        _, ids = self._with_ids(output, others, indices)
        ctx.save_for_backward(ids, offsets, factors, hyperparameters, *itertools.chain(*rows, *states))

    def _traced_backward(self, ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
        ids, offsets, factors, hyperparameters, *tensors = ctx.saved_tensors
        lists = []
        for count in (*ctx.lists[: self._rows], *ctx.lists[self._rows + self._others :]):
            lists.append(tensors[:count])
            tensors = tensors[count:]
        update = RowUpdate(ctx.algorithm, lists[self._rows :], hyperparameters)
        factors = self.update_rows(
            grad,
            lists[: self._rows],
            (ids, offsets, factors),
            ctx.mean,
            ctx.needs_input_grad[1 + len(ctx.lists) + 2],
            update,
        )
        return None, *([None] * n for n in ctx.lists), None, None, factors, None, None, None


class EagerUpdatingRows(torch.autograd.Function):
    """Rows and states are not saved as tensors whose version autograd checks: the lookups of one backward
    pass update them one after the other."""

    boxed_grads_call = False  # torch asks for it; where it is missing, by way of an AttributeError

    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        bag: UpdatingBag,
        rows: Tables,
        others: Tables,
        indices: Tensor,
        offsets: Tensor | None,
        per_sample_weights: Tensor | None,
        mean: list[int],
        update: RowUpdate,
    ) -> Tensor:
        """Looks up."""
        ctx.bag, ctx.rows, ctx.mean, ctx.update = bag, rows, mean, update
        ctx.factors_grad = per_sample_weights is not None and ctx.needs_input_grad[6]
        with torch._C._AutoDispatchBelowAutograd():  # 10 us of bookkeeping less
            output, ids = bag.look_up(rows, others, indices, offsets, per_sample_weights, mean)
        ctx.save_for_backward(ids, offsets, per_sample_weights)
        return output

    @staticmethod
    @differentiated_once
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Updates the rows; the gradient of the per-sample weights."""
        factors = ctx.bag.update_rows(
            grad, ctx.rows, ctx.saved_tensors, ctx.mean, ctx.factors_grad, ctx.update
        )
        for tensors in ctx.rows:
            torch.autograd.graph.increment_version(tensors)
        return None, None, None, None, None, None, factors, None, None


_EAGER: Callable[..., Tensor] = eager_apply(EagerUpdatingRows)
