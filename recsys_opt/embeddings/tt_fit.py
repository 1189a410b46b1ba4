"""Tensor-train cores fitted to a table: exactly, by random sketches, from memory, a file or a stream.

| method | passes | error | for |
| --- | --- | --- | --- |
| exact | 1 | TT-SVD (Oseledets 2011, algorithm 1) by full decompositions in float64 | small tables |
| streaming | 2 | the same, but singular values below 1e-8 of the largest are lost | tables of any size |
| randomised | power_iterations + 1 | about the same: Halko, Martinsson and Tropp 2011 | large dim or p_last |
| randomised, of an iterator | 1 | up to some times larger: Tropp et al. 2017 | rows that are seen once |

One more pass computes the error of the finished cores, in the type that they are stored in; the single pass
keeps random sums of rows instead, from which it is estimated. TT-SVD's error is at most sqrt(d - 1) times the
least possible at these ranks. Beyond the table itself all methods but "exact" work within `work_bytes`.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from recsys_opt.embeddings.tt_als import fit_rows_
from recsys_opt.embeddings.tt_range import (
    Probes,
    Unfolding,
    by_gram,
    by_single_pass,
    by_subspace,
    checked_square,
    single_pass_width,
)
from recsys_opt.embeddings.tt_round import table_distance, table_norm
from recsys_opt.embeddings.tt_rows import interface_rows
from recsys_opt.embeddings.tt_shapes import resolve_shapes
from recsys_opt.embeddings.tt_source import RowSource, TableLike, open_table
from recsys_opt.embeddings.tt_svd import RankRule, balance, leading_cores, next_aim, padded, split
from recsys_opt.embeddings.tt_weighted import check_row_weights, weighted_rows
from recsys_opt.errors import InputError
from recsys_opt.progress import Progress, SilentProgress

Method = Literal["auto", "exact", "randomised", "streaming"]
METHODS: tuple[Method, ...] = ("auto", "exact", "randomised", "streaming")
WORK_BYTES = 512 << 20

_EXACT_ENTRIES = 1 << 21
"""Tables up to this size are decomposed whole by default: within a second."""
_GRAM_FLOPS = 1e12
"""Above this, random sketches by default: the Gram matrix takes some 20 s on two cores."""
_PROBES = 64


@dataclass(frozen=True)
class FitReport:
    """How a table was fitted, and how well."""

    method: str
    tt_ranks: tuple[int, ...]
    """Of the inner bonds."""
    error: float
    """Frobenius distance between table and cores over the table's norm: the rows that exist, the cores as
    stored."""
    error_range: tuple[float, float]
    """Where the error lies: the computed one twice, or around an estimate with 95 % confidence."""
    passes: int
    """Over the table, the one that computes the error included."""
    work_bytes: int
    """Memory that the fit planned to use beside table and result."""
    seconds: float
    weighted_error: float | None = None
    """The same with every row's square counted `row_weights` times, where these are given."""
    rows_fitted: int | None = None
    """Rows of weight that the cores were fitted to: all, or a sample of as many as there is room for."""

    def to_json(self) -> dict[str, Any]:
        """JSON values only."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class FitOptions:
    """How to fit; the defaults suit every table."""

    method: Method = "auto"
    work_bytes: int = WORK_BYTES
    """Memory to work in, beside the table and the cores."""
    oversampling: int = 10
    """Further directions that random sketches look in."""
    power_iterations: int = 2
    """Passes of the range finder."""
    seed: int = 0
    """Of the random sketches."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"method = {self.method!r}; choose one of {', '.join(METHODS)}")
        for name, least in (("work_bytes", 1 << 20), ("oversampling", 0), ("power_iterations", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} = {getattr(self, name)}; it must be at least {least}")


@dataclass(frozen=True)
class FittedTable:
    """A table as cores."""

    num_embeddings: int
    embedding_dim: int
    cores: list[Tensor]
    """[n_k, q_k, r_k, r_{k+1}]"""
    report: FitReport


def fit_table(
    weight: TableLike,
    tt_ranks: int | Sequence[int] | None,
    *,
    tolerance: float | None = None,
    rank_multiple: int = 1,
    num_embeddings: int | None = None,
    tt_p_shapes: Sequence[int] | None = None,
    tt_q_shapes: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    row_weights: Tensor | None = None,
    options: FitOptions | None = None,
    progress: Progress | None = None,
) -> FittedTable:
    """Opens a table, chooses its factors and fits; the arguments of `TTEmbeddingBag.from_pretrained`."""
    source = open_table(weight, num_embeddings)
    rows, columns = source.num_embeddings, source.embedding_dim
    some = 1 if tt_ranks is None else tt_ranks
    p, q, ranks = resolve_shapes(rows, columns, some, tt_p_shapes, tt_q_shapes)
    cores, report = fit_cores(
        source,
        p,
        q,
        None if tt_ranks is None else ranks[1:-1],
        tolerance=tolerance,
        rank_multiple=rank_multiple,
        options=options,
        dtype=dtype,
        row_weights=row_weights,
        progress=progress,
    )
    return FittedTable(rows, columns, cores, report)


@torch.no_grad()
def fit_cores(
    source: RowSource,
    p: Sequence[int],
    q: Sequence[int],
    ranks: Sequence[int] | None,
    *,
    tolerance: float | None = None,
    rank_multiple: int = 1,
    options: FitOptions | None = None,
    dtype: torch.dtype | None = None,
    row_weights: Tensor | None = None,
    progress: Progress | None = None,
) -> tuple[list[Tensor], FitReport]:
    """Cores for a table; what they make beyond its rows, up to prod(p), is left to chance.

    ranks          of the d - 1 inner bonds; None: the least that keep the relative error of the cores as
                   stored within `tolerance`, up to the next `rank_multiple`
    dtype          of the cores; default: the table's
    row_weights    [rows] how much each row counts: see `tt_weighted`
    returns        the cores, [n_k, q_k, r_k, r_{k+1}], of balanced size, and what was done
    """
    began = time.perf_counter()
    options, progress = options or FitOptions(), progress or SilentProgress()
    method = _method(source, p, q, options)
    if method == "exact" and not source.repeatable:
        source = dataclasses.replace(source, repeatable=True, _origin=source.whole())
    weights = _weights(row_weights, source, tolerance)
    aim = tolerance
    while True:
        rule = RankRule(len(p) - 1, ranks, aim, rank_multiple)
        wide, report = _fit_once(source, p, q, ranks, rule, method, options, dtype, weights, progress)
        cores = [core.to(dtype or source.dtype).contiguous() for core in wide]
        report = dataclasses.replace(report, seconds=time.perf_counter() - began)
        if tolerance is None or aim is None or report.error <= tolerance:
            return cores, report
        # The type of the cores, or the end of the table, cost more than the singular values told.
        norm = table_norm(wide, source.num_embeddings)
        rounding = table_distance(wide, cores, source.num_embeddings) / norm
        aim = next_aim(tolerance, aim, report.error, rounding, cores[0].dtype)


def _fit_once(
    source: RowSource,
    p: Sequence[int],
    q: Sequence[int],
    ranks: Sequence[int] | None,
    rule: RankRule,
    method: str,
    options: FitOptions,
    dtype: torch.dtype | None,
    weights: Tensor | None,
    progress: Progress,
) -> tuple[list[Tensor], FitReport]:
    """The cores before they are stored in `dtype`, and the report of them as stored."""
    work = torch.float64 if torch.float64 in (source.dtype, dtype) or method == "exact" else torch.float32
    probes: Probes | None = None
    if method == "exact":
        table = Unfolding(source, p, q, math.prod(p[:-1]), progress)
        rest, right = _whole(table, rule)
        work_bytes = 5 * 8 * math.prod(p) * math.prod(q)
    else:
        work_bytes = options.work_bytes
        size = _block_prefixes(source, p, q, rule, method, options, work)
        table = Unfolding(source, p, q, size, progress, work_bytes)
        if method == "streaming":
            rest, right = by_gram(table, rule, work)
        elif source.repeatable:
            rest, right = by_subspace(
                table,
                rule,
                work,
                oversampling=options.oversampling,
                power_iterations=options.power_iterations,
                seed=options.seed,
            )
        else:
            rest, right, probes = by_single_pass(
                table, rule, work, oversampling=options.oversampling, seed=options.seed, probes=_PROBES
            )
    last = right.reshape(-1, p[-1], q[-1], 1).permute(1, 2, 0, 3)
    cores = [*leading_cores(rest, p[:-1], q[:-1], rule, table.used), last]
    cores, fitted = padded(cores, ranks), None
    if weights is not None:
        fitted = weighted_rows(table, weights, cores[0].dtype, options.work_bytes, options.seed)
        fit_rows_(cores, fitted, options.work_bytes, progress)
    cores = balance(cores)
    stored = [core.to(dtype or source.dtype).to(work) for core in cores]
    weighted = None
    if probes:
        low, error, high = _estimated(table, stored, probes)
    else:
        error, weighted = _computed(table, stored, weights)
        low = high = error
    report = FitReport(
        method=method,
        tt_ranks=tuple(core.shape[3] for core in cores[:-1]),
        error=error,
        error_range=(low, high),
        passes=table.passes,
        work_bytes=work_bytes,
        seconds=0.0,
        weighted_error=weighted,
        rows_fitted=None if fitted is None else len(fitted.ids),
    )
    return cores, report


def _method(source: RowSource, p: Sequence[int], q: Sequence[int], options: FitOptions) -> str:
    entries, columns = math.prod(p) * math.prod(q), p[-1] * q[-1]
    if options.method == "streaming" and not source.repeatable:
        raise InputError(
            "method 'streaming' reads the table twice, but weight is an iterator, which can be read once; "
            "give a list or other iterable that can be read again, a file, or use method 'randomised'"
        )
    if options.method != "auto":
        return options.method
    if entries <= _EXACT_ENTRIES and 40 * entries <= options.work_bytes:
        return "exact"
    fits = 3 * 8 * columns**2 <= options.work_bytes // 2
    affordable = 2.0 * entries * columns <= _GRAM_FLOPS
    return "streaming" if source.repeatable and fits and affordable else "randomised"


def _whole(table: Unfolding, rule: RankRule) -> tuple[Tensor, Tensor]:
    """The first split from the table in memory."""
    parts = [block for _, block in table.blocks(torch.float64, "decomposition")]
    rule.set_norm(table.norm**2)
    left, right = split(parts[0] if len(parts) == 1 else torch.cat(parts), len(table.p) - 2, rule)
    rest = left.new_zeros(table.prefixes * table.prefix_columns, left.shape[1])
    rest[: left.shape[0]] = left
    return table.complete(rest.view(table.prefixes, table.prefix_columns, -1), right), right


def _block_prefixes(
    source: RowSource,
    p: Sequence[int],
    q: Sequence[int],
    rule: RankRule,
    method: str,
    options: FitOptions,
    work: torch.dtype,
) -> int:
    """Prefixes per block, so that blocks take what the rest of the work leaves; refuses too little memory."""
    columns, height = p[-1] * q[-1], math.prod(p[:-1]) * math.prod(q[:-1])
    rank = rule.ranks[-1] if rule.ranks else min(64, columns)
    gram_bytes = 3 * 8 * columns**2
    rest_bytes = 2 * work.itemsize * height * rank
    if method == "randomised":
        width = min(rank + options.oversampling, columns)
        if not source.repeatable:
            width = single_pass_width(rank, options.oversampling, columns, height)
        rest_bytes = 2 * work.itemsize * height * width
        gram_bytes = 4 * 8 * columns * width
    fixed = max(gram_bytes, rest_bytes) if method == "streaming" else gram_bytes + rest_bytes
    inner = min(math.prod(p[:-2]) * math.prod(q[:-2]), p[-2] * q[-2] * rank)
    fixed = max(fixed, rest_bytes + 3 * 8 * inner**2)
    prefix_bytes = p[-1] * math.prod(q) * (source.dtype.itemsize + 3 * 8)
    if fixed + prefix_bytes > options.work_bytes:
        raise InputError(
            f"work_bytes = {options.work_bytes:,} is too little for a {source.num_embeddings} x "
            f"{source.embedding_dim} table by method {method!r} with tt_p_shapes {list(p)}, tt_q_shapes "
            f"{list(q)} and rank {rank}: it needs about {fixed + prefix_bytes:,}; raise "
            "work_bytes, lower the rank, choose another method or a smaller last row factor"
        )
    room = min(options.work_bytes - fixed, 64 << 20)
    return max(min(room // prefix_bytes, math.prod(p[:-1])), 1)


def _computed(
    table: Unfolding, cores: Sequence[Tensor], weights: Tensor | None
) -> tuple[float, float | None]:
    """The relative error of the cores, plain and weighted, from one pass."""
    squared, rows = 0.0, table.block_prefixes * table.p[-1]
    lost = norm = 0.0
    table.progress.start(f"pass {table.passes + 1}: error", table.source.num_embeddings, "rows")
    for start, block in table.source.blocks(rows):
        made = interface_rows(cores, start, start + block.shape[0]).squeeze(2)
        missed = block.to(made.dtype) - made
        squared += checked_square(missed, start)
        if weights is not None:
            own = weights[start : start + block.shape[0]].double()
            lost += float(own @ missed.double().square().sum(1))
            norm += float(own @ block.double().square().sum(1))
        table.progress.advance(block.shape[0])
    table.passes += 1
    table.progress.finish()
    weighted = None if weights is None else math.sqrt(lost / norm) if norm else 0.0
    return math.sqrt(squared) / table.norm if table.norm else 0.0, weighted


def _weights(weights: Tensor | None, source: RowSource, tolerance: float | None) -> Tensor | None:
    if weights is None:
        return None
    if not source.repeatable:
        raise InputError(
            "row_weights need a further pass over the table, but weight is an iterator, which can be read "
            "once; give a list or other iterable that can be read again, or a file"
        )
    if tolerance is not None:
        raise InputError("a tolerance is about the plain error, which row_weights trade away; give tt_ranks")
    return check_row_weights(weights, source.num_embeddings).to(source.device)


def _estimated(table: Unfolding, cores: Sequence[Tensor], probes: Probes) -> tuple[float, float, float]:
    """The relative error of the cores and bounds of 95 % confidence, without another pass.

    The sum of squares is largest spread when the error has rank 1: then it is chi-squared.
    """
    last = cores[-1].permute(2, 0, 1, 3).reshape(cores[-1].shape[2], -1)

    def parts() -> Iterator[Tensor]:
        for start in range(0, table.used, table.block_prefixes):
            stop = min(start + table.block_prefixes, table.used)
            yield interface_rows(cores[:-1], start, stop).flatten(0, 1)

    squared, freedom = probes.estimate(parts(), last)
    if not table.norm:
        return 0.0, 0.0, 0.0
    low, high = (freedom / _chi_squared_quantile(freedom, z) for z in (1.959964, -1.959964))
    middle = math.sqrt(squared) / table.norm
    return middle * math.sqrt(low), middle, middle * math.sqrt(high)


def _chi_squared_quantile(freedom: int, z: float) -> float:
    """By Wilson and Hilferty: within 0.1 % from 30 degrees of freedom on. z: the normal quantile."""
    return float(freedom * (1.0 - 2.0 / (9.0 * freedom) + z * math.sqrt(2.0 / (9.0 * freedom))) ** 3)
