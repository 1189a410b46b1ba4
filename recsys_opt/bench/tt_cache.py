"""When holding frequent rows of a tensor train dense pays: step time and hit rate against the rows held.

Beside the plain tensor train and nn.EmbeddingBag runs the design that was not chosen: the difference to the
tensor train held dense and added to its row, so that a hit saves nothing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from recsys_opt.bench.measure import Task, Turns, quantile, take_turns
from recsys_opt.bench.tt_candidates import LEARNING_RATE, storage_bytes
from recsys_opt.bench.tt_cases import Case, Shape, draw_batches
from recsys_opt.bench.tt_cases import Settings as Tables
from recsys_opt.embeddings.hot_rows import CachedTTEmbeddingBag
from recsys_opt.embeddings.hot_store import COUNTED_LOOKUPS
from recsys_opt.embeddings.tt import TTEmbeddingBag
from recsys_opt.errors import InputError
from recsys_opt.ops.hot_rows import hot_rows_bag, hot_rows_split
from recsys_opt.progress import Progress
from recsys_opt.report.figure import figure
from recsys_opt.report.page import CURVES
from recsys_opt.report.svg import Level, Series, chart
from recsys_opt.training.optimizers import ModelOptimizer, OptimizerConfig

WORKS = ("forward", "step")
"""forward without gradients; forward + backward + SGD, with counting."""
REFRESHES = 3
"""Refreshes that are timed; each sees as many new lookups as `refresh_every` steps make, 2^20 at most."""


@dataclass(frozen=True)
class Settings:
    """What is measured: every combination of these."""

    num_embeddings: int = 10_131_227
    embedding_dim: int = 16
    rank: int = 32
    fractions: tuple[float, ...] = (0.0001, 0.001, 0.01)
    """Rows held, as a share of the table's."""
    zipf_exponents: tuple[float, ...] = (0.8, 1.05, 1.2)
    """Distributions of ids besides the uniform one."""
    batch_sizes: tuple[int, ...] = (2048, 65536)
    threads: int = 1
    rounds: int = 8
    block_ms: float = 30.0
    refresh_every: int = 100

    def __post_init__(self) -> None:
        counts = (self.num_embeddings, self.embedding_dim, self.rank, self.threads, self.rounds)
        if min(*counts, *self.batch_sizes, self.refresh_every) < 1:
            raise InputError("rows, columns, rank, batch sizes, threads, rounds and steps must be at least 1")
        for fraction in self.fractions:
            if not 0 < fraction <= 1:
                raise InputError(f"fraction = {fraction}; it must be above 0 and at most 1")
        for exponent in self.zipf_exponents:
            if not exponent > 0:
                raise InputError(f"Zipf exponent = {exponent}; it must be above 0")

    def distributions(self) -> Iterator[tuple[str, Tables]]:
        """Names and what draws their ids."""
        for exponent in self.zipf_exponents:
            yield f"Zipf({exponent:g})", Tables(self.num_embeddings, zipf_exponent=exponent)
        yield "uniform", Tables(self.num_embeddings)


class AddedDifference(nn.Module):
    """The design not chosen: held rows are differences, added to the rows that the cores make for all ids."""

    def __init__(self, bag: CachedTTEmbeddingBag) -> None:
        super().__init__()
        self.bag = bag

    def forward(self, ids: Tensor, offsets: Tensor) -> Tensor:
        """One id per bag."""
        hot = self.bag.hot
        slots = hot_rows_split(ids, None, [hot.keys], [hot.directory], [self.bag.num_embeddings], [-1])[0]
        return hot_rows_bag(self.bag.tt(ids, offsets), [hot.weight], slots, None, None, [False])


def run(settings: Settings, progress: Progress) -> list[dict[str, Any]]:
    """Measures; one row per distribution, batch size, work and candidate."""
    before = torch.get_num_threads()
    rows: list[dict[str, Any]] = []
    cases = [(name, tables, b) for name, tables in settings.distributions() for b in settings.batch_sizes]
    progress.start("cases", len(cases), "case")
    shape = next(Tables(settings.num_embeddings, (settings.embedding_dim,)).shapes())
    dense = nn.EmbeddingBag(
        settings.num_embeddings,
        settings.embedding_dim,
        mode="sum",
        sparse=True,
        _weight=torch.full((settings.num_embeddings, settings.embedding_dim), 0.01),
    )
    try:
        torch.set_num_threads(settings.threads)
        for name, tables, batch_size in cases:
            rows += _measure(settings, shape, name, tables, batch_size, dense)
            progress.advance(1)
    finally:
        torch.set_num_threads(before)
    progress.finish()
    return rows


def _measure(
    settings: Settings, shape: Shape, name: str, tables: Tables, batch_size: int, dense: nn.Module
) -> list[dict[str, Any]]:
    kind = "uniform" if name == "uniform" else "zipf"
    case = Case(shape, settings.rank, kind, 1, batch_size, settings.threads)
    batches = draw_batches(case, tables)
    # Hot rows are chosen by other lookups of the same distribution than those that are timed.
    sample = torch.cat(batches)[torch.randperm(len(batches) * batch_size)].split(COUNTED_LOOKUPS)
    timed, sample = batches[: len(batches) // 2], sample[: len(sample) // 2]
    modules: dict[str, nn.Module] = {"dense": dense, "tt": _bag(TTEmbeddingBag, case)}
    facts: dict[str, dict[str, Any]] = {"dense": {"held": 0}, "tt": {"held": 0}}
    for fraction in settings.fractions:
        held = max(1, round(fraction * settings.num_embeddings))
        bag = _bag(CachedTTEmbeddingBag, case, cache_rows=held, refresh_every=None)
        label = f"held {100 * fraction:g}%"
        modules[label] = bag
        facts[label] = {"fraction": fraction, **_fill(bag, sample, timed, settings, batch_size)}
    modules["added"] = AddedDifference(bag)  # of the largest store
    facts["added"] = facts[label]
    where = {
        "ids": name,
        "batch_size": batch_size,
        "num_embeddings": settings.num_embeddings,
        "embedding_dim": settings.embedding_dim,
        "rank": settings.rank,
        "threads": settings.threads,
        "refresh_every": settings.refresh_every,
    }
    rows = []
    upstream = torch.randn(batch_size, settings.embedding_dim)
    for work in WORKS:
        tasks = {name: _task(work, module, timed, upstream) for name, module in modules.items()}
        turns = take_turns(tasks, rounds=settings.rounds, block_s=settings.block_ms / 1e3)
        for candidate, found in turns.items():
            about = {"candidate": candidate, "work": work, **facts[candidate]}
            about["storage_bytes"] = storage_bytes(modules[candidate])
            rows.append({**where, **about, **_figures(found, turns, about, settings)})
    return rows


def _bag(kind: Any, case: Case, **options: Any) -> Any:
    torch.manual_seed(0)
    shape = case.shape
    factors = {"tt_p_shapes": shape.p, "tt_q_shapes": shape.q}
    return kind(shape.num_embeddings, shape.embedding_dim, case.rank, **factors, **options)


def _fill(
    bag: CachedTTEmbeddingBag,
    sample: Sequence[Tensor],
    timed: Sequence[Tensor],
    settings: Settings,
    batch_size: int,
) -> dict[str, Any]:
    """Chooses the rows to hold; says how often they are hit and what a refresh costs."""

    def count(batches: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for ids in batches:
                bag(ids, torch.arange(len(ids)))

    timed_parts = REFRESHES + 1
    each = max(1, min(len(sample) // timed_parts, settings.refresh_every * batch_size // COUNTED_LOOKUPS))
    count(sample[: len(sample) - REFRESHES * each])
    bag.refresh()
    times, evicted = [], []
    for i in range(REFRESHES):
        count(sample[len(sample) - (i + 1) * each :][:each])
        with torch.no_grad():
            bag.hot.weight.mul_(1.01)  # trained, so that what leaves is to be written back
        began = time.perf_counter()
        evicted.append(bag.refresh().evicted)
        times.append(time.perf_counter() - began)
    hits = (bag.hot.slots_of(torch.cat(list(timed))) >= 0).double().mean()
    return {
        "held": int((bag.hot.keys >= 0).sum()),
        "hit_rate": round(float(hits), 4),
        "refresh_ms": round(1e3 * statistics.median(times), 2),
        "refresh_evicted": statistics.median(evicted),
    }


def _task(work: str, module: nn.Module, batches: Sequence[Tensor], upstream: Tensor) -> Task:
    offsets, turn = torch.arange(len(upstream)), 0

    def following() -> Tensor:
        nonlocal turn
        turn += 1
        return batches[turn % len(batches)]

    if work == "forward":

        def forward() -> None:
            module.eval()
            with torch.no_grad():
                module(following(), offsets)

        return Task(forward)
    if isinstance(module, nn.EmbeddingBag):
        plain = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE)
        zero_grad: Callable[[], object] = plain.zero_grad
        update: Callable[[], object] = plain.step
    else:  # as `recsys-opt train` does it: cores are updated in the backward pass
        config = OptimizerConfig("sgd", table_lr=LEARNING_RATE, core_lr=LEARNING_RATE)
        own = ModelOptimizer(module, config)
        zero_grad, update = own.zero_grad, own.step

    def step() -> None:
        module.train()
        zero_grad()
        module(following(), offsets).backward(upstream)
        update()

    return Task(step)


def _figures(
    turns: Turns, all_turns: dict[str, Turns], about: dict[str, Any], settings: Settings
) -> dict[str, Any]:
    timing = turns.timing()
    figures: dict[str, Any] = {
        "median_us": round(1e6 * timing.median_s, 1),
        "p20_us": round(1e6 * timing.p20_s, 1),
        "p80_us": round(1e6 * timing.p80_s, 1),
    }
    for name in ("tt", "dense"):
        ratios = turns.ratios(all_turns[name])
        figures[f"ratio_to_{name}"] = round(quantile(ratios, 0.5), 3)
    if about["work"] == "step" and "refresh_ms" in about:
        share = 1e-3 * about["refresh_ms"] / settings.refresh_every
        figures["with_refresh_us"] = round(1e6 * (timing.median_s + share), 1)
        plain = all_turns["tt"].timing().median_s
        figures["with_refresh_to_tt"] = round(figures["ratio_to_tt"] + share / plain, 3)
    return figures


def curves(rows: Sequence[dict[str, Any]]) -> str:
    """An SVG: step time over the plain tensor train's, and hit rate, against the share of rows held."""
    distributions = list(dict.fromkeys(row["ids"] for row in rows))

    def plot(batch_size: int, field: str, y_label: str, levels: Sequence[Level] = ()) -> str:
        series = []
        for colour, ids in enumerate(distributions):
            points = [
                row
                for row in rows
                if (row["ids"], row["batch_size"], row["work"]) == (ids, batch_size, "step")
                and row["candidate"].startswith("held")
            ]
            x = [100 * row["fraction"] for row in points]
            series.append(Series(ids, x, [row[field] for row in points], colour % CURVES, markers=True))
        return chart(series, x_label="rows held, % of the table", y_label=y_label, levels=levels, log_x=True)

    sizes = list(dict.fromkeys(row["batch_size"] for row in rows))
    alone = [Level("tensor train alone", 1.0)]
    plots = [
        (
            f"Step of {size:,} ids over the tensor train's",
            plot(size, "with_refresh_to_tt", "time, refreshes included", alone),
        )
        for size in sizes
    ]
    plots.append(("Lookups that hit", plot(max(sizes), "hit_rate", "hit rate")))
    first = rows[0]
    return figure(
        "Frequent rows of a tensor train held dense",
        f"{first['num_embeddings']:,} x {first['embedding_dim']}, R = {first['rank']}, one id a bag, "
        f"{first['threads']} thread(s), a refresh every {first['refresh_every']} steps",
        plots,
        [(name, i % CURVES) for i, name in enumerate(distributions)],
    )
