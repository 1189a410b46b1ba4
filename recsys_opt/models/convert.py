"""A trained model with its tables in another representation: dense tables become tensor trains, or back."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from recsys_opt.embeddings.base import EmbeddingRepresentation
from recsys_opt.embeddings.dense import DenseEmbeddingBag
from recsys_opt.embeddings.hot_rows import CachedTTEmbeddingBag
from recsys_opt.embeddings.tiered import TieredEmbeddingBag
from recsys_opt.embeddings.tt import TTEmbeddingBag
from recsys_opt.embeddings.tt_round import table_distance, table_norm
from recsys_opt.embeddings.tt_svd import padded
from recsys_opt.errors import InputError
from recsys_opt.models.dlrm import DLRM
from recsys_opt.progress import Progress, SilentProgress
from recsys_opt.tables import TableConfig

_SHAPES = ("tt_p_shapes", "tt_q_shapes")
_POSSIBLE = ("dense", "tiered", "tt", "tt_cached")
_HOLDING = ("refresh_every", "decay", "hysteresis", "write_back_limit")
"""How a cached table chooses its held rows from now on; it computes the same now, whatever they are."""


@dataclass(frozen=True)
class TableFit:
    """What became of one table."""

    name: str
    num_embeddings: int
    representation: str
    """The new one."""
    tt_ranks: tuple[int, ...]
    """Of a tensor train, without the outer ones; empty otherwise."""
    bytes_before: int
    bytes_after: int
    fit_error: float
    """Relative Frobenius distance between the new table and the old one."""
    seconds: float
    weighted_error: float | None = None
    """The same with every row's square counted as often as the row is looked up, where that is known."""

    def to_json(self) -> dict[str, Any]:
        """JSON values only."""
        return {**asdict(self), "tt_ranks": list(self.tt_ranks)}


def convert_model(
    model: DLRM,
    tables: Sequence[TableConfig],
    *,
    tolerance: float | None = None,
    row_weights: Callable[[str], Tensor | None] | None = None,
    progress: Progress | None = None,
) -> tuple[DLRM, list[TableFit]]:
    """A model that computes what `model` does, as closely as `tables` can, and what was fitted.

    model      a trained model; the new one takes over its MLPs and unchanged tables, without a copy
    tables     the model's tables in order, with the representation that each should have: a table that
               becomes "tt" is fitted by TT-SVD, so is one that becomes "tt_cached", with no row held yet; one
               that becomes "dense" or "tiered" is written out, and the ranks of a tensor train are cut by
               rounding; how a table chooses the rows that it holds changes without a fit
    tolerance  the fitted tables get, instead of their tt_ranks, the least multiples of 8 whose relative error
               is within it
    row_weights  by a table's name, how often each of its rows is looked up: fitted are the rows that are, as
               `TTEmbeddingBag.from_pretrained` says; not with a tolerance, nor by rounding
    """
    _check(model, tables)
    progress = progress or SilentProgress()
    changed = [
        new for old, new in zip(model.embeddings.configs, tables, strict=True) if not _is_same(old, new)
    ]
    progress.start("fitting tables", sum(c.num_embeddings for c in changed), "rows")
    fits, modules = [], {}
    for config in changed:
        source, began = model.embeddings.table(config.name), time.perf_counter()
        weights = row_weights(config.name) if row_weights is not None and tolerance is None else None
        modules[config.name], error, weighted = _fit(source, config, tolerance, weights)
        progress.advance(config.num_embeddings, table=config.name, error=f"{error:.3g}")
        module = modules[config.name]
        train = module.tt if isinstance(module, CachedTTEmbeddingBag) else module
        ranks = train.tt_ranks[1:-1] if isinstance(train, TTEmbeddingBag) else ()
        fits.append(
            TableFit(
                name=config.name,
                num_embeddings=config.num_embeddings,
                representation=config.representation,
                tt_ranks=ranks,
                bytes_before=source.storage_bytes(),
                bytes_after=module.storage_bytes(),
                fit_error=error,
                seconds=time.perf_counter() - began,
                weighted_error=weighted,
            )
        )
    progress.finish()
    for config in tables:
        kept = model.embeddings.table(config.name)
        if config.name not in modules and isinstance(kept, CachedTTEmbeddingBag):
            for name in config.options.keys() & set(_HOLDING):
                setattr(kept, name, config.options[name])
    tables = [
        replace(
            c, options={**c.options, **modules.get(c.name, model.embeddings.table(c.name)).settled_options()}
        )
        for c in tables
    ]
    found = DLRM(
        tables,
        dense_features=model.dense_features,
        bottom_mlp=_widths(model.bottom),
        top_mlp=_widths(model.top),
        device="meta",
    )
    found.bottom, found.top = model.bottom, model.top
    for config in tables:
        found.embeddings.tables.add(
            config.name, modules.get(config.name, model.embeddings.tables[config.name])
        )
    return found.train(model.training), fits


def _fit(
    source: EmbeddingRepresentation, config: TableConfig, tolerance: float | None, weights: Tensor | None
) -> tuple[EmbeddingRepresentation, float, float | None]:
    """The new table, its relative error, and that error weighted."""
    if isinstance(source, TTEmbeddingBag) and config.representation == "tt":
        had = dict(zip(_SHAPES, (source.tt_p_shapes, source.tt_q_shapes), strict=True))
        if all(tuple(config.options.get(key) or had[key]) == had[key] for key in _SHAPES):
            return *_rounded(source, config, tolerance), None
    with torch.no_grad():
        table = source.materialize()
    if config.representation == "dense":
        dense = DenseEmbeddingBag.from_config(config, device="meta")
        dense.weight = nn.Parameter(table)
        return dense, 0.0, None
    if config.representation == "tiered":
        own = {key: value for key, value in config.options.items() if key != "ranked"}
        return TieredEmbeddingBag.from_pretrained(table, mode=config.pooling, **own), 0.0, None
    shape = {k: v for k, v in config.options.items() if k in ("tt_ranks", "tt_p_shapes", "tt_q_shapes")}
    if tolerance is not None:
        shape |= {"tt_ranks": None, "tolerance": tolerance, "rank_multiple": 8}
    if config.representation == "tt_cached":
        train = TTEmbeddingBag.from_pretrained(table, row_weights=weights, **shape)
        assert train.fit_report is not None
        own = {**config.options, "tt_ranks": list(train.tt_ranks[1:-1])}
        cached = CachedTTEmbeddingBag.from_config(replace(config, options=own), dtype=table.dtype)
        cached.tt = train
        return cached, train.fit_report.error, train.fit_report.weighted_error
    bag = TTEmbeddingBag.from_pretrained(table, mode=config.pooling, row_weights=weights, **shape)
    assert bag.fit_report is not None
    return bag, bag.fit_report.error, bag.fit_report.weighted_error


def _rounded(
    source: TTEmbeddingBag, config: TableConfig, tolerance: float | None
) -> tuple[EmbeddingRepresentation, float]:
    """A tensor train of less rank from the cores alone; filled with zeros where the new rank is larger."""
    wanted = config.options["tt_ranks"]
    if tolerance is not None:
        bag = source.round(tolerance, rank_multiple=8)
    else:
        bag = source.round(tt_ranks=wanted)
        full = [wanted] * (len(bag.cores) - 1) if isinstance(wanted, int) else wanted
        bag = bag.with_cores(padded(list(bag.cores), full))
    return bag, table_distance(list(source.cores), list(bag.cores), bag.num_embeddings) / (
        table_norm(list(source.cores), bag.num_embeddings) or 1.0
    )


def _check(model: DLRM, tables: Sequence[TableConfig]) -> None:
    before = {c.name: replace(c, representation="", options={}) for c in model.embeddings.configs}
    after = {c.name: replace(c, representation="", options={}) for c in tables}
    if list(before.items()) != list(after.items()):
        different = [
            f"{name}: {before.get(name, 'none')} -> {after.get(name, 'none')}"
            for name in before | after
            if before.get(name) != after.get(name)
        ]
        raise InputError(
            "the tables must be the model's, in its order, with nothing changed but representation and "
            f"options ({'; '.join(different) or 'the order differs'})"
        )
    for old, new in zip(model.embeddings.configs, tables, strict=True):
        if not _is_same(old, new) and new.representation not in _POSSIBLE:
            raise InputError(
                f"table {new.name} cannot become {new.representation!r}; a trained table can become "
                f"{', '.join(_POSSIBLE)}"
            )


def _is_same(old: TableConfig, new: TableConfig) -> bool:
    """Whether a trained table already computes what is wanted; shapes that nobody asks for may be any."""
    ours, theirs = dict(old.options), dict(new.options)
    if old.representation == new.representation and "hashes" in theirs:  # the rest is settled when made
        return all(ours.get(key) == value for key, value in theirs.items() if key != "table_options")
    for options in (ours, theirs):
        ranks = options.get("tt_ranks")
        bonds = max((len(options[k]) for k in _SHAPES if options.get(k) is not None), default=3) - 1
        options["tt_ranks"] = [ranks] * bonds if isinstance(ranks, int) else ranks and list(ranks)
    for options in (ours, theirs):
        for key in (*_HOLDING, "ranked", "cold_dir"):
            options.pop(key, None)
    for key in _SHAPES:
        wanted = theirs.pop(key, None)
        had = ours.pop(key, None)
        if wanted is not None and (had is None or list(wanted) != list(had)):
            return False
    return (old.representation, ours) == (new.representation, theirs)


def _widths(mlp: nn.Sequential) -> list[int]:
    return [layer.out_features for layer in mlp if isinstance(layer, nn.Linear)]
