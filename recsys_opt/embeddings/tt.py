"""`TTEmbeddingBag`: a table of embeddings kept as a tensor train (TT-Rec, MLSys 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from recsys_opt import ops, reference
from recsys_opt.embeddings.bag_arguments import check_mode, refuse_dense_options, to_bags
from recsys_opt.embeddings.base import EmbeddingRepresentation
from recsys_opt.embeddings.dense import DenseEmbeddingBag
from recsys_opt.embeddings.tt_init import INITS, Init, default_table_std, fit_cores, init_cores_
from recsys_opt.embeddings.tt_shapes import resolve_shapes
from recsys_opt.errors import BatchError, InputError
from recsys_opt.tables import Pooling, TableConfig

_MODES = {"sum": 0, "mean": 1}
_OPTIONS = {"tt_ranks", "tt_p_shapes", "tt_q_shapes", "init"}


class TTEmbeddingBag(EmbeddingRepresentation):
    """A drop-in for `nn.EmbeddingBag` whose table is d small cores instead of num_embeddings rows.

    Row i, column j of the table is the product over k of the r_k x r_{k+1} matrices cores[k][i_k, j_k], where
    the i_k are i's digits in the mixed radix `tt_p_shapes` and the j_k those of j in `tt_q_shapes`.

    num_embeddings  rows
    embedding_dim   columns
    tt_ranks        the rank of every bond, or d - 1 of them; multiples of 16 are fastest
    tt_p_shapes     row factors, product at least num_embeddings; default: near-balanced
    tt_q_shapes     column factors, product embedding_dim; default: near-balanced, ascending
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

    Gradients cannot be differentiated again. functional_call works; torch.func.grad and vmap do not.
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
        if padding_idx is not None and not -num_embeddings <= padding_idx < num_embeddings:
            raise InputError(f"padding_idx = {padding_idx} is outside the table's {num_embeddings} rows")
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.tt_p_shapes, self.tt_q_shapes, self.tt_ranks = p, q, ranks
        self.mode, self.init, self.include_last_offset = mode, init, include_last_offset
        self.padding_idx = padding_idx % num_embeddings if padding_idx is not None else None
        self.fit_error: float | None = None
        """Relative Frobenius distance to the table given to `from_pretrained`, before any training."""
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
        unknown = sorted(set(config.options) - _OPTIONS)
        if unknown:
            raise InputError(
                f"table {config.name}: tt has no option {unknown[0]!r}; it has {', '.join(sorted(_OPTIONS))}"
            )
        if "tt_ranks" not in config.options:
            raise InputError(f"table {config.name}: tt needs the option tt_ranks, e.g. {{'tt_ranks': 32}}")
        try:
            return cls(
                config.num_embeddings,
                config.embedding_dim,
                mode=config.pooling,
                device=device,
                dtype=dtype,
                **config.options,
            )
        except InputError as error:
            raise InputError(f"table {config.name}: {error}") from None

    @classmethod
    def from_pretrained(
        cls,
        weight: Tensor,
        tt_ranks: int | Sequence[int],
        *,
        tt_p_shapes: Sequence[int] | None = None,
        tt_q_shapes: Sequence[int] | None = None,
        mode: Pooling = "sum",
        padding_idx: int | None = None,
    ) -> Self:
        """A bag whose table is close to `weight`, by TT-SVD; its `fit_error` says how close.

        weight  [num_embeddings, embedding_dim]; worked on whole, in float64
        """
        bag = cls(
            weight.shape[0],
            weight.shape[1],
            tt_ranks,
            tt_p_shapes=tt_p_shapes,
            tt_q_shapes=tt_q_shapes,
            mode=mode,
            padding_idx=padding_idx,
            dtype=weight.dtype,
            device="meta",
        )
        cores, bag.fit_error = fit_cores(weight.detach(), bag.tt_p_shapes, bag.tt_q_shapes, bag.tt_ranks)
        bag.cores = nn.ParameterList(nn.Parameter(core) for core in cores)
        return bag

    def forward(
        self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        """Pooled rows; see `EmbeddingRepresentation.forward`."""
        indices, bounds, weights = to_bags(input, offsets, per_sample_weights, self.include_last_offset)
        return self.forward_group([self], indices, bounds, weights)

    @classmethod
    def forward_group(
        cls,
        bags: Sequence[Self],
        indices: Tensor,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        """Pooled rows of several tables in one launch; see `EmbeddingRepresentation.forward_group`."""
        if offsets is None:
            offsets = torch.arange(indices.shape[0] + 1, device=indices.device)
        if per_sample_weights is not None:
            averaging = [t for t, bag in enumerate(bags) if bag.mode == "mean"]
            if averaging:
                raise BatchError(
                    f"per_sample_weights needs sum pooling, but table {averaging[0]} averages; use 'sum' "
                    "with weights divided by the bag's length"
                )
            per_sample_weights = per_sample_weights.to(bags[0].cores[0].dtype)
        return ops.tt_embedding_bag(
            indices,
            offsets,
            [core for bag in bags for core in bag.cores],
            cores_per_table=[len(bag.cores) for bag in bags],
            num_embeddings=[bag.num_embeddings for bag in bags],
            pooling_modes=[_MODES[bag.mode] for bag in bags],
            padding_idx=[-1 if bag.padding_idx is None else bag.padding_idx for bag in bags],
            per_sample_weights=per_sample_weights,
        )

    def materialize(self) -> Tensor:
        """The whole table, [num_embeddings, embedding_dim]; differentiable."""
        ids = torch.arange(self.num_embeddings, device=self.cores[0].device)
        return reference.tt_rows(ids, list(self.cores))

    def freeze(self, level: Literal["cores", "prefix", "dense"]) -> EmbeddingRepresentation:
        """A copy for serving, without gradients: "cores" is smallest, "dense" fastest.

        cores   the same cores
        prefix  the product of the first two cores as one: most of a lookup's work done beforehand
        dense   the whole table
        """
        with torch.no_grad():
            if level == "dense":
                return self._frozen_dense()
            cores = [core.detach().clone() for core in self.cores]
            if level == "prefix":
                if len(cores) == 2:
                    raise InputError(
                        "the product of a table's only two cores is the table: use 'dense' or 'cores'"
                    )
                first, second = cores[:2]
                both = torch.einsum("iars,jbst->ijabrt", first, second)
                cores[:2] = [both.flatten(2, 3).flatten(0, 1)]
            elif level != "cores":
                raise InputError(f"level = {level!r}; choose 'cores', 'prefix' or 'dense'")
            frozen = type(self)(
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
            frozen.cores = nn.ParameterList(nn.Parameter(core, requires_grad=False) for core in cores)
            return frozen

    def _frozen_dense(self) -> DenseEmbeddingBag:
        if self.include_last_offset or (self.padding_idx is not None and self.mode == "mean"):
            raise InputError(
                "a dense table has no include_last_offset and no padded mean: use 'prefix' or 'cores'"
            )
        table = self.materialize()
        if self.padding_idx is not None:
            table[self.padding_idx] = 0.0
        dense = DenseEmbeddingBag(self.num_embeddings, self.embedding_dim, mode=self.mode, device="meta")
        dense.weight = nn.Parameter(table, requires_grad=False)
        return dense

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


def _described(shapes: Sequence[Sequence[int]]) -> str:
    """Cores of these shapes, [n, q, r, r'] each, as factors and ranks."""
    p, q, _, right = (list(numbers) for numbers in zip(*shapes, strict=True))
    return f"tt_p_shapes={p}, tt_q_shapes={q}, tt_ranks={right[:-1]}"
