"""`TTEmbeddingBag`: a table of embeddings kept as a tensor train (TT-Rec, MLSys 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from recsys_opt import ops
from recsys_opt.embeddings.bag_arguments import (
    POOLING_MODES,
    check_call,
    check_mode,
    check_padding,
    check_weighted,
    refuse_dense_options,
)
from recsys_opt.embeddings.base import EmbeddingRepresentation
from recsys_opt.embeddings.tt_fit import WORK_BYTES, FitOptions, FitReport, Method, fit_table
from recsys_opt.embeddings.tt_freeze import Level, frozen
from recsys_opt.embeddings.tt_init import INITS, Init, default_table_std, init_cores_
from recsys_opt.embeddings.tt_round import RoundReport, round_cores
from recsys_opt.embeddings.tt_rows import table_rows
from recsys_opt.embeddings.tt_shapes import resolve_shapes
from recsys_opt.embeddings.tt_source import TableLike
from recsys_opt.embeddings.tt_update import FusesCoreUpdate, update_of
from recsys_opt.errors import InputError
from recsys_opt.progress import Progress
from recsys_opt.tables import Pooling, TableConfig

_OPTIONS = {"tt_ranks", "tt_p_shapes", "tt_q_shapes", "init"}


class TTEmbeddingBag(FusesCoreUpdate, EmbeddingRepresentation):
    """A drop-in for `nn.EmbeddingBag` whose table is d small cores instead of num_embeddings rows.

    Row i, column j of the table is the product over k of the r_k x r_{k+1} matrices cores[k][i_k, j_k], where
    the i_k are i's digits in the mixed radix `tt_p_shapes` and the j_k those of j in `tt_q_shapes`.

    num_embeddings  rows
    embedding_dim   columns
    tt_ranks        the rank of every bond, or d - 1 of them; multiples of 16 are fastest
    tt_p_shapes     row factors, product at least num_embeddings; default: near-balanced
    tt_q_shapes     column factors, product embedding_dim; default: 1 between the outer ones, 16 is 2, 1, 8
    mode            "sum" or "mean"
    padding_idx     an id that counts for nothing: no row, no gradient, no part in a mean
    init            "sampled_gaussian" (TT-Rec) or "gaussian"; either way a table entry has the standard
                    deviation of the DLRM repository's tables, 1 / sqrt(3 num_embeddings)
    include_last_offset  offsets has one more entry, the end of the last bag; ids after it are of no bag

    What differs from nn.EmbeddingBag:

    | nn.EmbeddingBag | here |
    | --- | --- |
    | mode "mean" by default | "sum" by default |
    | mode "max", max_norm, scale_grad_by_freq, sparse=True | refused: each needs stored rows |
    | `weight` | `cores`; `materialize()` is the table, `from_pretrained(weight, tt_ranks)` the way back |
    | the row of padding_idx is zeros | it is whatever the cores make; lookups leave it out all the same |
    | per_sample_weights need the table's type | they are converted to it |
    | ids of any integer type in places | int32 and int64, mixed with int32 or int64 offsets as you like |
    | a 2-D input without columns fails | its bags are empty: zeros |
    | a 1-D input may end beyond the last offset, with results that vary | those ids count for nothing |
    | a wrong id reads or names nothing | refused on the CPU with its position and the table's rows |
    | the gradient is a table, dense or sparse | the gradients are the cores', dense |

    Cores may be float32, float64, bfloat16 or float16. On the CPU those of 16 bits are computed with in fp32,
    and each result is rounded once, to the nearest; so is an update, and a change below half a last place is
    lost. Autocast changes nothing here, as in nn.EmbeddingBag: outputs have the cores' type. On the CPU
    `recsys_opt.ops.tt_allow_bf16(True)` rounds the operands of products to bf16 (float32 sums), which takes
    less time where the ranks are multiples of 16; on CUDA `tt_allow_tf32` is the like.

    The cores are ordinary parameters for any optimizer; `fuse_update` has the backward pass update them.
    Gradients cannot be differentiated again. functional_call works; torch.func.grad and vmap do not.

    torch.compile and torch.export make one graph of a bag for all batch sizes (0 and 1 apart, as in all of
    torch). An AOTInductor package, of a bag or of what `freeze` returns, runs where the ops are loaded:

        exported = torch.export.export(bag, (ids, offsets), dynamic_shapes=({0: Dim.AUTO}, {0: Dim.AUTO}))
        torch._inductor.aoti_compile_and_package(exported, package_path="bag.pt2")
        # elsewhere, without this package's Python:
        torch.ops.load_library("librecsys_opt.so")  # recsys_opt.ops.LIBRARY
        bag = torch._inductor.aoti_load_package("bag.pt2")
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        tt_ranks: int | Sequence[int],
        *,
        tt_p_shapes: Sequence[int] | None = None,
        tt_q_shapes: Sequence[int] | None = None,
        mode: Pooling = "sum",
        padding_idx: int | None = None,
        init: Init = "sampled_gaussian",
        include_last_offset: bool = False,
        max_norm: float | None = None,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        check_mode(mode)
        refuse_dense_options(max_norm=max_norm, scale_grad_by_freq=scale_grad_by_freq, sparse=sparse)
        if init not in INITS:
            raise InputError(f"init = {init!r}; choose one of {', '.join(INITS)}")
        p, q, ranks = resolve_shapes(num_embeddings, embedding_dim, tt_ranks, tt_p_shapes, tt_q_shapes)
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.tt_p_shapes, self.tt_q_shapes, self.tt_ranks = p, q, ranks
        self.mode, self.init, self.include_last_offset = mode, init, include_last_offset
        self.padding_idx = check_padding(padding_idx, num_embeddings)
        self.fit_error: float | None = None
        """Relative Frobenius distance to the table given to `from_pretrained`, before any training."""
        self.fit_report: FitReport | None = None
        """How `from_pretrained` fitted the table."""
        self.round_report: RoundReport | None = None
        """What `round` left out to make this table."""
        self.cores = nn.ParameterList(
            nn.Parameter(torch.empty(p[k], q[k], ranks[k], ranks[k + 1], dtype=dtype, device=device))
            for k in range(len(p))
        )
        self.reset_parameters()

    def reset_parameters(self, table_std: float | None = None) -> None:
        """Draws the cores anew, from torch's global generator.

        Table entries get standard deviation `table_std`; default: 1 / sqrt(3 num_embeddings), that of the
        DLRM repository's tables.
        """
        if self.cores[0].is_meta:  # nothing is drawn there, but torch loads its compiler, 1.7 s, to know
            return
        std = default_table_std(self.num_embeddings) if table_std is None else table_std
        init_cores_(list(self.cores), self.init, std)

    @classmethod
    def from_config(
        cls,
        config: TableConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """The module for a table; its options are tt_ranks (needed), tt_p_shapes, tt_q_shapes and init."""
        return cls._configured(config, "tt", _OPTIONS, {"tt_ranks": 32}, device=device, dtype=dtype)

    @classmethod
    def from_pretrained(
        cls,
        weight: TableLike,
        tt_ranks: int | Sequence[int] | None = None,
        *,
        tolerance: float | None = None,
        rank_multiple: int = 1,
        method: Method = "auto",
        num_embeddings: int | None = None,
        tt_p_shapes: Sequence[int] | None = None,
        tt_q_shapes: Sequence[int] | None = None,
        mode: Pooling = "sum",
        padding_idx: int | None = None,
        include_last_offset: bool = False,
        row_weights: Tensor | None = None,
        dtype: torch.dtype | None = None,
        work_bytes: int = WORK_BYTES,
        oversampling: int = 10,
        power_iterations: int = 2,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Self:
        """A bag whose table is close to `weight`, by TT-SVD; `fit_error` and `fit_report` say how close.

        weight          [num_embeddings, embedding_dim]: a tensor; a numpy array or memory map; the path of a
                        .npy or .safetensors file ("file.safetensors#name"), read in blocks; or an iterable of
                        row blocks: one that can be read again (a list), or an iterator, read in one pass
        tt_ranks        as in the constructor
        tolerance       instead of tt_ranks: the least ranks whose relative error is within it
        rank_multiple   ranks chosen by tolerance go up to the next multiple; those of 16 are fastest
        method          "exact", "streaming" or "randomised" (see `recsys_opt.embeddings.tt_fit`); "auto"
                        takes exact for small tables, else streaming where that takes seconds
        num_embeddings  rows of an iterable
        row_weights     [num_embeddings] how often each row is looked up: the cores are then fitted to the
                        rows of weight, by alternating least squares from TT-SVD on, in one more pass over
                        the table (`fit_report.weighted_error`); a row of weight 0 may come out as
                        anything small
        dtype           of the cores; default: the table's
        work_bytes      memory to work in, beside the table and the cores; not for "exact"
        oversampling, power_iterations, seed  of "randomised"
        """
        options = FitOptions(method, work_bytes, oversampling, power_iterations, seed)
        fitted = fit_table(
            weight,
            tt_ranks,
            tolerance=tolerance,
            rank_multiple=rank_multiple,
            num_embeddings=num_embeddings,
            tt_p_shapes=tt_p_shapes,
            tt_q_shapes=tt_q_shapes,
            dtype=dtype,
            row_weights=row_weights,
            options=options,
            progress=progress,
        )
        bag = cls(
            fitted.num_embeddings,
            fitted.embedding_dim,
            fitted.report.tt_ranks,
            tt_p_shapes=[core.shape[0] for core in fitted.cores],
            tt_q_shapes=[core.shape[1] for core in fitted.cores],
            mode=mode,
            padding_idx=padding_idx,
            include_last_offset=include_last_offset,
            device="meta",
        )
        bag.cores = nn.ParameterList(nn.Parameter(core) for core in fitted.cores)
        bag.fit_error, bag.fit_report = fitted.report.error, fitted.report
        return bag

    def forward(
        self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        """Pooled rows; see `EmbeddingRepresentation.forward`."""
        check_call(input, offsets, per_sample_weights, self.include_last_offset)
        return _look_up((self,), input, offsets, per_sample_weights, self.include_last_offset)

    @classmethod
    def forward_group(
        cls,
        bags: Sequence[Self],
        indices: Tensor,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        """Pooled rows of several tables in one launch; see `EmbeddingRepresentation.forward_group`."""
        return _look_up(bags, indices, offsets, per_sample_weights, True)

    def materialize(
        self, rows: range | None = None, *, out: Tensor | None = None, work_bytes: int = 64 << 20
    ) -> Tensor:
        """The table, [num_embeddings, embedding_dim], or a range of its rows.

        out         where to write, with rows made in blocks that take `work_bytes`: a memory map as well;
                    without it, and where gradients are wanted, the result is differentiable
        """
        rows = range(self.num_embeddings) if rows is None else rows
        return table_rows(list(self.cores), self.num_embeddings, rows, out, work_bytes)

    def round(
        self,
        tolerance: float | None = None,
        *,
        tt_ranks: int | Sequence[int] | None = None,
        rank_multiple: int = 1,
    ) -> Self:
        """A bag with smaller ranks and nearly the same table; its `round_report` says how near.

        tolerance      relative error that the least ranks may make
        tt_ranks       instead: the ranks; a bond that has less keeps what it has
        rank_multiple  ranks chosen by tolerance go up to the next multiple that the table has; those of 16
                       are fastest
        """
        cores, report = round_cores(
            list(self.cores),
            self.num_embeddings,
            ranks=tt_ranks,
            tolerance=tolerance,
            rank_multiple=rank_multiple,
        )
        bag = self.with_cores(cores)
        bag.round_report = report
        return bag

    def freeze(
        self, level: Level, *, dtype: torch.dtype | None = None, max_bytes: int | None = None
    ) -> EmbeddingRepresentation:
        """A copy for serving, in evaluation mode and without gradients: "cores" is smallest, "dense" fastest.

        level      cores: the same cores
                   prefix: neighbouring cores multiplied, most of a lookup's work done beforehand, as
                   `FrozenPrefixBag`; as a bag of three cores where `max_bytes` leaves so many
                   dense: the whole table, as `FrozenEmbeddingBag`
        dtype      of what is stored, e.g. torch.bfloat16; default: the cores'
        max_bytes  for "prefix" of four cores: multiply so that the result takes no more
        """
        return frozen(self, level, dtype, max_bytes)

    def with_cores(self, cores: Sequence[Tensor], *, requires_grad: bool = True) -> Self:
        """A bag like this one whose parameters are `cores`, of any factors and ranks that make its rows."""
        bag = type(self)(
            self.num_embeddings,
            self.embedding_dim,
            [core.shape[3] for core in cores[:-1]],
            tt_p_shapes=[core.shape[0] for core in cores],
            tt_q_shapes=[core.shape[1] for core in cores],
            mode=self.mode,
            padding_idx=self.padding_idx,
            init=self.init,
            include_last_offset=self.include_last_offset,
            device="meta",
        )
        bag.cores = nn.ParameterList(nn.Parameter(core, requires_grad=requires_grad) for core in cores)
        return bag

    def settled_options(self) -> dict[str, Any]:
        """Ranks, row and column factors."""
        shapes = {"tt_p_shapes": list(self.tt_p_shapes), "tt_q_shapes": list(self.tt_q_shapes)}
        return {"tt_ranks": list(self.tt_ranks[1:-1]), **shapes}

    def storage_bytes(self) -> int:
        """Bytes of the cores."""
        return sum(core.numel() * core.element_size() for core in self.cores)

    def flops_per_lookup(self) -> int:
        """Floating-point operations of one row's chain of products, from the left."""
        flops, columns = 0, self.tt_q_shapes[0]
        for k in range(1, len(self.tt_q_shapes)):
            flops += 2 * columns * self.tt_ranks[k] * self.tt_q_shapes[k] * self.tt_ranks[k + 1]
            columns *= self.tt_q_shapes[k]
        return flops

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        metadata: Any,
        strict: bool,
        missing: Any,
        unexpected: Any,
        errors: Any,
    ) -> None:
        """As nn.Module's; says in the table's terms what a state of another table is."""
        found = sorted(key for key in state_dict if key.startswith(prefix + "cores."))
        shapes = [tuple(state_dict[key].shape) for key in found]
        if not found and prefix + "weight" in state_dict:
            errors.append(
                f"{prefix}weight is a table of rows, {list(state_dict[prefix + 'weight'].shape)}; "
                "TTEmbeddingBag.from_pretrained(weight, tt_ranks) makes a tensor train of it."
            )
        elif found and shapes != [tuple(core.shape) for core in self.cores]:
            kept = (
                _described(shapes)
                if all(len(shape) == 4 for shape in shapes)
                else f"cores of shapes {shapes}"
            )
            own = _described([tuple(core.shape) for core in self.cores])
            errors.append(
                f"{prefix}cores: the state has {kept}; this table has {own}. Build the table with the "
                "shapes and ranks of the state."
            )
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)

    def extra_repr(self) -> str:
        """Shape, factors, ranks, pooling and the compression."""
        dense = self.num_embeddings * self.embedding_dim
        ratio = dense / sum(core.numel() for core in self.cores)
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        last = ", include_last_offset=True" if self.include_last_offset else ""
        return (
            f"{self.num_embeddings}, {self.embedding_dim}, tt_ranks={list(self.tt_ranks[1:-1])}, "
            f"tt_p_shapes={list(self.tt_p_shapes)}, tt_q_shapes={list(self.tt_q_shapes)}, "
            f"mode={self.mode!r}{padding}{last}, {ratio:.1f}x smaller"
        )


def _look_up(
    bags: Sequence[TTEmbeddingBag],
    indices: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    include_last_offset: bool,
) -> Tensor:
    cores: list[Tensor] = []
    counts, rows, modes, padding = [], [], [], []
    for bag in bags:
        own = bag.core_tensors()
        cores += own
        counts.append(len(own))
        rows.append(bag.num_embeddings)
        modes.append(POOLING_MODES[bag.mode])
        padding.append(-1 if bag.padding_idx is None else bag.padding_idx)
    if per_sample_weights is not None:
        check_weighted(bag.mode for bag in bags)
        per_sample_weights = per_sample_weights.to(cores[0].dtype)
    return ops.tt_embedding_bag(
        indices,
        offsets,
        cores,
        cores_per_table=counts,
        num_embeddings=rows,
        pooling_modes=modes,
        padding_idx=padding,
        per_sample_weights=per_sample_weights,
        include_last_offset=include_last_offset,
        update=update_of(bags, cores[0].device),
    )


def _described(shapes: Sequence[Sequence[int]]) -> str:
    """Cores of these shapes, [n, q, r, r'] each, as factors and ranks."""
    p, q, _, right = (list(numbers) for numbers in zip(*shapes, strict=True))
    return f"tt_p_shapes={p}, tt_q_shapes={q}, tt_ranks={right[:-1]}"
