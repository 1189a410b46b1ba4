"""One table's lookup and update: a tensor train beside the dense table, side by side in one run.

The rows that batches touch are cold when a batch comes round again, as in training, where no batch is
repeated; every candidate is compared with nn.EmbeddingBag round by round.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from recsys_opt.bench.measure import Clock, CudaClock, Turns, WallClock, quantile, take_turns
from recsys_opt.bench.tt_candidates import (
    MOST_GATHERED_BYTES,
    Tables,
    gathered_bytes,
    make_task,
    storage_bytes,
    works_of,
)
from recsys_opt.bench.tt_cases import Case, Settings, draw_batches
from recsys_opt.progress import Progress


def run(preset: Sequence[Settings], progress: Progress) -> list[dict[str, Any]]:
    """Measures; one row per case, work and candidate."""
    before = torch.get_num_threads()
    rows: list[dict[str, Any]] = []
    progress.start("cases", sum(1 for settings in preset for _ in settings.cases()), "case")
    tables = Tables(preset[0].device)
    try:
        for settings in preset:
            for case in settings.cases():
                torch.set_num_threads(case.threads)
                rows += _measure(tables, case, settings)
                progress.advance(1)
    finally:
        torch.set_num_threads(before)
    progress.finish()
    return rows


def _measure(tables: Tables, case: Case, settings: Settings) -> list[dict[str, Any]]:
    batches = draw_batches(case, settings)
    upstream = torch.randn(case.batch_size, case.shape.embedding_dim, device=settings.device)
    clock: Clock = CudaClock() if settings.device.startswith("cuda") else WallClock()
    where = {
        "threads": case.threads,
        "num_embeddings": case.shape.num_embeddings,
        "embedding_dim": case.shape.embedding_dim,
        "shapes": case.shape.text,
        "rank": case.rank,
        "ids": case.ids,
        "bag_size": case.bag_size,
        "batch_size": case.batch_size,
        "batches": len(batches),
    }
    rows = []
    for work in settings.works:
        names = [
            name
            for name in settings.candidates
            if work in works_of(name, settings.works)
            and (name != "torch" or gathered_bytes(case, work) <= MOST_GATHERED_BYTES)
        ]
        modules = tables.of(case, names)
        tasks = {name: make_task(work, m, case, batches, upstream) for name, m in modules.items()}
        turns = take_turns(tasks, rounds=settings.rounds, block_s=settings.block_ms / 1e3, clock=clock)
        for name, found in turns.items():
            figures = {"storage_bytes": storage_bytes(modules[name]), **_figures(found, turns.get("dense"))}
            rows.append({**where, "work": work, "candidate": name, **figures})
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
