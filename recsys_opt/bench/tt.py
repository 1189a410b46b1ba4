"""One table's lookup and update: a tensor train beside the dense table, side by side in one run.

The rows that batches touch are cold when a batch comes round again, as in training, where no batch is
repeated; every candidate is compared with nn.EmbeddingBag round by round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from recsys_opt import ops
from recsys_opt.bench.ceilings import Ceilings, measure_cpu, measure_cuda
from recsys_opt.bench.measure import Clock, CudaClock, Turns, WallClock, quantile, take_turns
from recsys_opt.bench.tt_candidates import (
    MOST_GATHERED_BYTES,
    Tables,
    gathered_bytes,
    make_task,
    storage_bytes,
    works_of,
)
from recsys_opt.bench.tt_cases import BF16, EVICTED_BYTES, GRAPHS, Case, Settings, draw_batches
from recsys_opt.bench.tt_graphs import check_cuda, graph_task
from recsys_opt.bench.tt_roofline import count_distinct, need_of
from recsys_opt.progress import Progress


@dataclass(frozen=True)
class Result:
    """A measurement."""

    rows: list[dict[str, Any]]
    """One per case, work and candidate."""
    ceilings: list[Ceilings]
    """Of the machine, one per number of threads; one of a GPU."""


def run(preset: Sequence[Settings], progress: Progress) -> Result:
    """Measures the machine's ceilings, then every case."""
    device = preset[0].device
    if device.startswith("cuda"):
        check_cuda(device)
    before = torch.get_num_threads()
    rows: list[dict[str, Any]] = []
    ceilings = _ceilings(preset, progress)
    cases = [(settings, case) for settings in preset for case in settings.cases()]
    progress.start("cases", sum(len(settings.works) for settings, _ in cases), "work")
    tables = Tables(device)
    try:
        for settings, case in cases:
            torch.set_num_threads(case.threads)
            roof = ceilings[0 if device.startswith("cuda") else case.threads]
            rows += _measure(tables, case, settings, roof, progress)
    finally:
        torch.set_num_threads(before)
        ops.tt_allow_bf16(False)
    progress.finish()
    return Result(rows, list(ceilings.values()))


def _ceilings(preset: Sequence[Settings], progress: Progress) -> dict[int, Ceilings]:
    """By number of threads; of a GPU under 0."""
    sizes = tuple(sorted({4 * dim for settings in preset for dim in settings.embedding_dims}))
    if preset[0].device.startswith("cuda"):
        return {0: measure_cuda(preset[0].device, sizes)}
    threads = sorted({n for settings in preset for n in settings.threads})
    progress.start("the machine's ceilings", len(threads), "count of threads")
    found = {}
    for n in threads:
        found[n] = measure_cpu(n, sizes)
        progress.advance(1)
    progress.finish()
    return found


def _measure(
    tables: Tables, case: Case, settings: Settings, ceilings: Ceilings, progress: Progress
) -> list[dict[str, Any]]:
    batches = draw_batches(case, settings)
    distinct = count_distinct(case, batches)
    upstream = torch.randn(case.batch_size, case.shape.embedding_dim, device=settings.device)
    clock: Clock = CudaClock() if settings.device.startswith("cuda") else WallClock()
    where = {
        "device": settings.device,
        "threads": case.threads,
        "num_embeddings": case.shape.num_embeddings,
        "embedding_dim": case.shape.embedding_dim,
        "shapes": case.shape.text,
        "rank": case.rank,
        "ids": case.ids,
        "bag_size": case.bag_size,
        "batch_size": case.batch_size,
        "batches": len(batches),
        "caches": "cold" if settings.cold else "warm",
        "distinct_rows": round(distinct.rows),
        "distinct_prefixes": round(distinct.prefixes[-2]),
    }
    evict = torch.zeros(EVICTED_BYTES // 4 if settings.cold else 0)
    rows = []
    for work in settings.works:
        names = [
            name
            for name in settings.candidates
            if work in works_of(name, settings.works)
            and (name != "torch" or gathered_bytes(case, work) <= MOST_GATHERED_BYTES)
        ]
        modules = tables.of(case, names)
        tasks = {
            name: graph_task(work, module, case, batches, upstream)
            if name in GRAPHS
            else make_task(
                work,
                module,
                case,
                batches,
                upstream,
                bf16=name in BF16,
                evict=evict if settings.cold else None,
            )
            for name, module in modules.items()
        }
        turns = take_turns(
            tasks,
            rounds=settings.rounds,
            block_s=settings.block_ms / 1e3,
            most_calls=20 if settings.cold else 100,
            clock=clock,
        )
        for name, found in turns.items():
            figures = _figures(found, turns.get("dense"))
            need = need_of(name, work, case, distinct)
            stored = storage_bytes(modules[name])
            roof_s = need.roof_s(ceilings, 4 * case.shape.embedding_dim, stored, bf16=name.endswith("-bf16"))
            rows.append(
                {
                    **where,
                    "work": work,
                    "candidate": name,
                    **figures,
                    "storage_bytes": stored,
                    "least_flops": round(need.flops),
                    "least_bytes": round(need.streamed_bytes + need.gathered_bytes),
                    "roof_us": round(1e6 * roof_s, 2),
                    "share_of_roof": round(1e6 * roof_s / figures["median_us"], 4),
                }
            )
        progress.advance(1, last=f"{case.ids} {case.bag_size} x {case.batch_size} {work}")
    return rows


def _figures(turns: Turns, dense: Turns | None) -> dict[str, Any]:
    timing = turns.timing()
    figures: dict[str, Any] = {
        "median_us": round(1e6 * timing.median_s, 1),
        "p20_us": round(1e6 * timing.p20_s, 1),
        "p80_us": round(1e6 * timing.p80_s, 1),
        "calls": timing.repeats,
        "rounds": len(turns.rounds),
    }
    if dense is not None:
        ratios = turns.ratios(dense)
        for name, q in (("ratio", 0.5), ("ratio_p20", 0.2), ("ratio_p80", 0.8)):
            figures[name] = round(quantile(ratios, q), 3)
    return figures
