"""Time of deep hash embeddings on the CPU, against their plain form, with the same weights and queries.

    plain     hash, encode, MLP for every id of every table, in torch
    distinct  each distinct id of a query once, for every table: the module as it trains
    stored    the rows of small tables stored, of large ones each distinct id once: `freeze()`
    cached    and the rows of frequent ids of large tables stored: `CachedDHEBag`; "frequent" is by rows that
              come before those of the queries
    bf16      and the operands of the networks' products rounded, where the processor multiplies such numbers

Queries are rows of the generator, which has Criteo's skew, in turn; between calls a buffer larger than the
processor's caches is written, as other requests would.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from recsys_opt.bench.dhe_plain import PlainDLRM, PlainTables
from recsys_opt.bench.measure import Task, take_turns
from recsys_opt.data.synth import SyntheticCriteo
from recsys_opt.embeddings.base import EmbeddingRepresentation
from recsys_opt.embeddings.collection import EmbeddingCollection
from recsys_opt.embeddings.dhe import DHEEmbeddingBag
from recsys_opt.embeddings.dhe_cache import CachedDHEBag, most_frequent
from recsys_opt.embeddings.hybrid import HybridEmbeddingBag
from recsys_opt.errors import InputError
from recsys_opt.models.dlrm import DLRM, vector_order
from recsys_opt.models.recipes import criteo_kaggle, hashed_tables, table_configs
from recsys_opt.progress import Progress
from recsys_opt.serving.dense_net import PackedNet, has_packed_products
from recsys_opt.serving.frozen_tables import FrozenTables, freeze_tables

Kind = Literal["dhe", "hybrid"]
KINDS: tuple[Kind, ...] = ("dhe", "hybrid")
PARTS = ("tables", "model")
QUERIES = 16
"""Different ones, in turn."""
_ROWS = 10_000_000
"""Of the generator; queries are among the last of them."""


@dataclass(frozen=True)
class Settings:
    """What is measured: every combination of kinds, sizes and threads, tables alone and a whole DLRM."""

    kinds: tuple[Kind, ...] = KINDS
    sizes: tuple[int, ...] = (128, 1024)
    threads: tuple[int, ...] = (1, 2)
    hashes: int = 1024
    widths: tuple[int, ...] = (128,)
    max_cardinality: int | None = None
    """Larger tables are folded into so many rows; None: all of Kaggle's."""
    cache_rows: int = 100_000
    """Stored for each table that is computed."""
    counted_rows: int = 2_000_000
    """Generated rows whose lookups say which ids are frequent."""
    rounds: int = 9
    block_ms: float = 60.0
    cold_mb: int = 64
    """Written between two calls; 0: nothing."""

    def __post_init__(self) -> None:
        numbers = (*self.sizes, *self.threads, self.hashes, *self.widths, self.cache_rows, self.rounds)
        if min(*numbers, self.counted_rows) < 1 or self.cold_mb < 0:
            raise InputError("sizes, threads, hashes, widths, rows and rounds must be at least 1")
        if len(self.sizes) * QUERIES * max(self.sizes) + self.counted_rows > _ROWS:
            raise InputError(f"the queries and counted rows are more than {_ROWS:,}")


@dataclass(frozen=True)
class _Query:
    dense: Tensor
    ids: Tensor
    """[F, B]"""


def run(settings: Settings, progress: Progress) -> list[dict[str, Any]]:
    """Measures; a row for each kind, part, size, number of threads and candidate."""
    source = SyntheticCriteo(_ROWS, max_cardinality=settings.max_cardinality)
    queries = {size: _queries(source, size) for size in settings.sizes}
    before = torch.get_num_threads()
    rows: list[dict[str, Any]] = []
    count = len(settings.kinds) * len(settings.sizes) * len(settings.threads) * len(PARTS)
    progress.start("cases", count, "cases")
    try:
        for kind in settings.kinds:
            torch.manual_seed(0)
            tables = table_configs(source.sparse_columns, criteo_kaggle().embedding_dim)
            options = {"hashes": settings.hashes, "widths": list(settings.widths)}
            model = criteo_kaggle().build(hashed_tables(tables, kind, options=options)).eval()
            candidates = _candidates(model, source, settings)
            for size, threads in itertools.product(settings.sizes, settings.threads):
                errors = _errors(candidates, queries[size], model.dim)
                torch.set_num_threads(threads)
                for part in PARTS:
                    timed = _time(_calls(candidates, part), queries[size], settings)
                    for row in timed:
                        name = row["candidate"]
                        where = {"kind": kind, "part": part, "size": size, "threads": threads}
                        extra = {"max_error": errors[name], "bytes": candidates[name].bytes}
                        rows.append({**where, **row, **extra})
                    progress.advance(1, case=f"{kind} {part} {size}, {threads} threads")
                torch.set_num_threads(before)
    finally:
        torch.set_num_threads(before)
    progress.finish()
    return rows


def _calls(candidates: dict[str, _Candidate], part: str) -> dict[str, Callable[[_Query], object]]:
    if part == "model":
        return {name: own.model for name, own in candidates.items()}
    return {name: own.alone for name, own in candidates.items()}


def _queries(source: SyntheticCriteo, size: int) -> list[_Query]:
    found = []
    for i in range(QUERIES):
        start = source.num_rows - (i + 1) * size
        rows = source.rows(start, start + size)
        ids = np.ascontiguousarray(rows.sparse.T)
        found.append(_Query(torch.from_numpy(rows.dense), torch.from_numpy(ids).long()))
    return found


@dataclass(frozen=True)
class _Candidate:
    """A form of the tables, alone and in the whole model."""

    tables: Callable[[Tensor], Sequence[Tensor]]
    """Ids [F, B] -> rows, in groups."""
    order: Sequence[int]
    """Where each vector is in the groups side by side."""
    model: Callable[[_Query], Tensor]
    bytes: int

    def alone(self, query: _Query) -> Sequence[Tensor]:
        """The tables' rows, in groups."""
        return self.tables(query.ids)


@torch.no_grad()
def _candidates(model: DLRM, source: SyntheticCriteo, settings: Settings) -> dict[str, _Candidate]:
    embeddings = model.embeddings
    bags = [embeddings.table(c.name) for c in embeddings.configs]
    plain_tables, plain_model = PlainTables(bags), PlainDLRM(model)
    parameters = sum(bag.storage_bytes() for bag in bags)
    vectors = range(sum(embeddings.feature_dims) // model.dim)
    net = PackedNet(model, model.vector_order)
    found = {
        "plain": _Candidate(
            lambda ids: [plain_tables(ids)],
            vectors,
            lambda query: plain_model(query.dense, query.ids),
            parameters,
        ),
        "distinct": _Candidate(
            lambda ids: embeddings.forward_groups(ids.reshape(-1)),
            model.vector_order,
            lambda query: net(query.dense, embeddings.forward_groups(query.ids.reshape(-1))),
            parameters,
        ),
    }
    frozen = freeze_tables(embeddings, model.dim, "prefix", None, torch.device("cpu"))
    cache = _with_cache(model, source, settings)
    with_cache = freeze_tables(cache, model.dim, "prefix", None, torch.device("cpu"))
    found |= {"stored": _frozen(model, frozen), "cached": _frozen(model, with_cache)}
    if has_packed_products(torch.bfloat16):
        rounded = freeze_tables(cache, model.dim, "prefix", None, torch.device("cpu"), bf16_networks=True)
        found["bf16"] = _frozen(model, rounded)
    return found


def _frozen(model: DLRM, tables: FrozenTables) -> _Candidate:
    order = vector_order(tables.order, tables.columns, model.dim)
    net = PackedNet(model, order)
    size = sum(tensor.nbytes for tensor in tables.tensors())
    return _Candidate(tables, order, lambda query: net(query.dense, tables(query.ids)), size)


def _with_cache(model: DLRM, source: SyntheticCriteo, settings: Settings) -> EmbeddingCollection:
    """The model's tables for serving, with the rows of frequent ids of those that are computed stored."""
    counted = torch.from_numpy(source.rows(0, settings.counted_rows).sparse)
    configs = model.embeddings.configs
    found = EmbeddingCollection(configs, device="meta")
    for column, config in enumerate(configs):
        bag = model.embeddings.table(config.name)
        assert isinstance(bag, (DHEEmbeddingBag, HybridEmbeddingBag))
        frozen: EmbeddingRepresentation = bag.freeze()
        hot = most_frequent(counted[:, column], settings.cache_rows)
        if isinstance(frozen, DHEEmbeddingBag):
            frozen = CachedDHEBag.of(frozen, hot)
        elif isinstance(frozen, HybridEmbeddingBag) and isinstance(frozen.dhe, DHEEmbeddingBag):
            frozen = HybridEmbeddingBag.of_parts(frozen.table, CachedDHEBag.of(frozen.dhe, hot))
        found.tables.add(config.name, frozen)
    return found


@torch.no_grad()
def _errors(candidates: dict[str, _Candidate], queries: Sequence[_Query], dim: int) -> dict[str, float]:
    """The largest difference of a row's number, and of a probability, to the plain form's."""
    found = {}
    plain = candidates["plain"]
    for name, own in candidates.items():
        worst = 0.0
        for query in queries[:2]:
            pieces = [rows.split(dim, dim=1) for rows in (*own.tables(query.ids),)]
            vectors = [vector for piece in pieces for vector in piece]
            rows = torch.cat([vectors[place] for place in own.order], dim=1)
            worst = max(worst, float((rows - plain.tables(query.ids)[0]).abs().max()))
            worst = max(worst, float((own.model(query) - plain.model(query)).abs().max()))
        found[name] = worst
    return found


def _time(
    runs: dict[str, Callable[[_Query], object]], queries: Sequence[_Query], settings: Settings
) -> list[dict[str, Any]]:
    swept = torch.zeros(settings.cold_mb << 18)
    tasks = {}
    for name, call in runs.items():
        own = itertools.cycle(queries)
        asked = [next(own)]

        def prepare(asked: list[_Query] = asked, own: Iterator[_Query] = own) -> None:
            asked[0] = next(own)
            swept.add_(1.0)

        def run_one(asked: list[_Query] = asked, call: Callable[[_Query], object] = call) -> object:
            with torch.inference_mode():
                return call(asked[0])

        tasks[name] = Task(run_one, prepare)
    turns = take_turns(tasks, rounds=settings.rounds, block_s=settings.block_ms / 1e3)
    rows = []
    for name, found in turns.items():
        timing = found.timing()
        row: dict[str, Any] = {"candidate": name, "median_ms": round(1e3 * timing.median_s, 4)}
        row |= {"p20_ms": round(1e3 * timing.p20_s, 4), "p80_ms": round(1e3 * timing.p80_s, 4)}
        row["calls"] = timing.repeats
        # Of the plain form's time to this one's, round by round.
        row["faster"] = round(1 / statistics.median(found.ratios(turns["plain"])), 2)
        rows.append(row)
    return rows


def text(rows: Sequence[dict[str, Any]]) -> str:
    """A table for a person: a line per kind, part and candidate, a column per size and number of threads."""
    cases = list(dict.fromkeys((row["size"], row["threads"]) for row in rows))
    cells = {(row["kind"], row["part"], row["candidate"], row["size"], row["threads"]): row for row in rows}
    heads = "".join(
        f"{f'{size}, {threads} thread' + ('s' if threads > 1 else ''):>22}" for size, threads in cases
    )
    lines = [f"{'':<25}{'MB':>9}{'error':>10}{heads}"]
    for kind, part, name in dict.fromkeys((r["kind"], r["part"], r["candidate"]) for r in rows):
        own = [cells[kind, part, name, *case] for case in cases]
        worst = max(row["max_error"] for row in own)
        times = "".join(f"{row['median_ms']:.2f} ({row['faster']:.1f}x)".rjust(22) for row in own)
        lines.append(f"{f'{kind} {part}, {name}':<25}{own[0]['bytes'] / 1e6:>9.1f}{worst:>10.1e}{times}")
    lines.append("median ms of a query (times faster than plain, round by round); error: largest difference")
    return "\n".join(lines)
