"""One table's lookup and update: a tensor train beside the dense table, side by side in one run.

Each candidate runs one bag per sample with one id, forward alone and forward + backward + SGD update. Batches
rotate, so that a candidate does not find the same rows in the caches each time.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from recsys_opt import reference
from recsys_opt.bench.measure import Timing, side_by_side
from recsys_opt.embeddings.base import FusesUpdate
from recsys_opt.embeddings.registry import build_embedding
from recsys_opt.embeddings.tt import TTEmbeddingBag
from recsys_opt.errors import InputError
from recsys_opt.progress import Progress
from recsys_opt.tables import TableConfig

POOL = 8
"""Batches that a candidate cycles through."""
IDS = ("uniform", "zipf")
CANDIDATES = ("dense", "fbgemm", "torch", "tt")
"""nn.EmbeddingBag; FBGEMM's fused table; the tensor train by gathers and batched products in torch; ours."""

Step = Callable[[Tensor], object]


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    num_embeddings: int = 10_131_227
    embedding_dim: int = 16
    ranks: tuple[int, ...] = (32,)
    batch_sizes: tuple[int, ...] = (2048, 65536)
    ids: tuple[str, ...] = IDS
    zipf_exponent: float = 1.05
    threads: tuple[int, ...] = (1,)
    repeats: int = 20
    candidates: tuple[str, ...] = tuple(
        c for c in CANDIDATES if c != "fbgemm" or importlib.util.find_spec("fbgemm_gpu")
    )

    def __post_init__(self) -> None:
        counts = (self.num_embeddings, self.embedding_dim, self.repeats)
        if min(*counts, *self.ranks, *self.batch_sizes, *self.threads) < 1:
            raise InputError("rows, columns, ranks, batch sizes, threads and repeats must all be at least 1")
        if not self.zipf_exponent > 0:
            raise InputError(f"zipf_exponent = {self.zipf_exponent}; it must be above 0")
        for name in self.candidates:
            if name not in CANDIDATES:
                raise InputError(f"there is no candidate {name!r}; choose from {', '.join(CANDIDATES)}")


class GatheredTT(nn.Module):
    """The tensor train without a kernel: each lookup gathers its slices of the cores and multiplies them."""

    def __init__(self, bag: TTEmbeddingBag) -> None:
        super().__init__()
        self.cores = nn.ParameterList(nn.Parameter(core.detach().clone()) for core in bag.cores)

    def forward(self, ids: Tensor, offsets: Tensor) -> Tensor:
        """One id per bag."""
        return reference.tt_rows(ids, list(self.cores))


def run(settings: Settings, progress: Progress) -> list[dict[str, Any]]:
    """Measures; one row per case and candidate."""
    cases = [
        (threads, rank, ids, batch)
        for threads in settings.threads
        for rank in settings.ranks
        for ids in settings.ids
        for batch in settings.batch_sizes
    ]
    before = torch.get_num_threads()
    rows: list[dict[str, Any]] = []
    built: dict[int, dict[str, nn.Module]] = {}
    shared = {name: _table(name, settings) for name in settings.candidates if name in ("dense", "fbgemm")}
    progress.start("cases", len(cases), "case")
    try:
        for threads, rank, ids, batch in cases:
            torch.set_num_threads(threads)
            if rank not in built:
                built[rank] = _trains(rank, settings)
            modules = {
                name: (shared if name in shared else built[rank])[name] for name in settings.candidates
            }
            rows += _measure(modules, settings, threads, rank, ids, batch)
            progress.advance(1)
    finally:
        torch.set_num_threads(before)
    progress.finish()
    return rows


def _table(name: str, settings: Settings) -> nn.Module:
    rows, columns = settings.num_embeddings, settings.embedding_dim
    torch.manual_seed(0)
    if name == "dense":
        return nn.EmbeddingBag(rows, columns, mode="sum", sparse=True)
    bag = build_embedding(TableConfig("t", rows, columns, representation="fbgemm"))
    assert isinstance(bag, FusesUpdate)
    bag.configure_update("sgd", 0.01, 1e-8)
    return bag


def _trains(rank: int, settings: Settings) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    bag = TTEmbeddingBag(settings.num_embeddings, settings.embedding_dim, rank)
    return {"tt": bag, "torch": GatheredTT(bag)}


def _measure(
    modules: dict[str, nn.Module], settings: Settings, threads: int, rank: int, ids: str, batch: int
) -> list[dict[str, Any]]:
    batches = [draw_ids(ids, batch, settings, seed) for seed in range(POOL)]
    offsets, upstream = torch.arange(batch), torch.randn(batch, settings.embedding_dim)
    forward: dict[str, Callable[[], object]] = {}
    train: dict[str, Callable[[], object]] = {}
    for name, module in modules.items():
        forward[name] = _rotating(batches, _forward_step(module, offsets))
        train[name] = _rotating(batches, _train_step(module, offsets, upstream))
    timings = {
        "forward": side_by_side(forward, repeats=settings.repeats),
        "forward+backward+sgd": side_by_side(train, repeats=settings.repeats),
    }
    where = {"threads": threads, "rank": rank, "ids": ids, "batch_size": batch}
    distinct = float(sum(torch.unique(b).numel() for b in batches)) / len(batches)
    return [
        {**where, "distinct_ids": round(distinct), "candidate": name, "work": work, **_figures(timing)}
        for work, measured in timings.items()
        for name, timing in measured.items()
    ]


def _figures(timing: Timing) -> dict[str, float]:
    return {
        "median_us": round(1e6 * timing.median_s, 1),
        "p20_us": round(1e6 * timing.p20_s, 1),
        "p80_us": round(1e6 * timing.p80_s, 1),
        "repeats": timing.repeats,
    }


def draw_ids(kind: str, count: int, settings: Settings, seed: int) -> Tensor:
    """[count] int64 ids: uniform, or a power law over the rows (by inversion of its continuous form)."""
    rows, generator = settings.num_embeddings, torch.Generator().manual_seed(seed)
    if kind == "uniform":
        return torch.randint(0, rows, (count,), generator=generator)
    if kind != "zipf":
        raise InputError(f"ids = {kind!r}; choose from {', '.join(IDS)}")
    u = torch.rand(count, generator=generator, dtype=torch.float64)
    power = 1.0 - settings.zipf_exponent
    if abs(power) < 1e-9:
        rank = torch.exp(u * math.log(rows + 1))
    else:
        rank = (1.0 + u * ((rows + 1) ** power - 1.0)) ** (1.0 / power)
    # Hot rows are not neighbours: the multiplier is prime and larger than any table.
    return (rank.long().clamp(1, rows) - 1) * 2_654_435_761 % rows


def _rotating(batches: Sequence[Tensor], step: Step) -> Callable[[], object]:
    turn = 0

    def call() -> object:
        nonlocal turn
        turn += 1
        return step(batches[turn % len(batches)])

    return call


def _forward_step(module: nn.Module, offsets: Tensor) -> Step:
    def step(ids: Tensor) -> object:
        with torch.no_grad():
            return module(ids, offsets)

    return step


def _train_step(module: nn.Module, offsets: Tensor, upstream: Tensor) -> Step:
    parameters = list(module.parameters())
    sparse = isinstance(module, nn.EmbeddingBag)
    optimizer = torch.optim.SGD(parameters, lr=0.01, fused=not sparse) if parameters else None

    def step(ids: Tensor) -> object:
        if optimizer is not None:
            optimizer.zero_grad()
        module(ids, offsets).backward(upstream)
        if optimizer is not None:
            optimizer.step()
        return None

    return step
