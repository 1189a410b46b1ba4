"""Serving levels of a tensor-train table: bytes, error and time of a lookup, beside nn.EmbeddingBag."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from recsys_opt.bench.measure import Task, take_turns
from recsys_opt.bench.tt_candidates import make_task, storage_bytes
from recsys_opt.bench.tt_cases import Case, Shape, draw_batches
from recsys_opt.bench.tt_cases import Settings as Tables
from recsys_opt.embeddings.tt import TTEmbeddingBag
from recsys_opt.embeddings.tt_freeze import LEVELS
from recsys_opt.errors import InputError
from recsys_opt.progress import Progress

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_ERROR_ROWS = 1 << 18
"""Rows whose error is measured: the first so many."""


@dataclass(frozen=True)
class Settings:
    """What is measured: every level in every type, on every batch."""

    num_embeddings: int = 10_131_227
    embedding_dim: int = 16
    tt_p_shapes: tuple[int, ...] = (200, 220, 250)
    tt_q_shapes: tuple[int, ...] = (2, 2, 4)
    rank: int = 32
    dtypes: tuple[str, ...] = ("fp32", "bf16", "fp16")
    batch_sizes: tuple[int, ...] = (1, 16, 128, 2048, 65536)
    ids: tuple[str, ...] = ("zipf",)
    threads: int = 1
    rounds: int = 10
    block_ms: float = 30.0

    def __post_init__(self) -> None:
        if min(self.rank, self.threads, self.rounds, *self.batch_sizes) < 1:
            raise InputError("rank, threads, rounds and batch sizes must be at least 1")
        for name in self.dtypes:
            if name not in DTYPES:
                raise InputError(f"there is no type {name!r}; choose from {', '.join(DTYPES)}")


def run(settings: Settings, progress: Progress) -> list[dict[str, Any]]:
    """Measures; one row per batch, ids, level and type. Types without a kernel are left out."""
    modules, errors = _modules(settings)
    shape = Shape(settings.num_embeddings, settings.embedding_dim, settings.tt_p_shapes, settings.tt_q_shapes)
    cases = [
        Case(shape, settings.rank, ids, 1, batch, settings.threads)
        for ids in settings.ids
        for batch in settings.batch_sizes
    ]
    before = torch.get_num_threads()
    rows: list[dict[str, Any]] = []
    progress.start("cases", len(cases), "case")
    torch.set_num_threads(settings.threads)
    try:
        for case in cases:
            rows += _measure(modules, errors, case, settings)
            progress.advance(1)
    finally:
        torch.set_num_threads(before)
    progress.finish()
    return rows


def _modules(settings: Settings) -> tuple[dict[str, nn.Module], dict[str, float]]:
    """The candidates, and the relative error of each one's rows."""
    torch.manual_seed(0)
    bag = TTEmbeddingBag(
        settings.num_embeddings,
        settings.embedding_dim,
        settings.rank,
        tt_p_shapes=settings.tt_p_shapes,
        tt_q_shapes=settings.tt_q_shapes,
    )
    rows = range(min(settings.num_embeddings, _ERROR_ROWS))
    with torch.no_grad():
        exact = bag.with_cores([core.double() for core in bag.cores]).materialize(rows)
    modules: dict[str, nn.Module] = {}
    errors: dict[str, float] = {}
    for name in settings.dtypes:
        for level in LEVELS:
            frozen = bag.freeze(level, dtype=DTYPES[name])
            if not _runs(frozen):
                continue
            ids = torch.arange(len(rows))
            made = torch.cat([frozen(part, torch.arange(len(part))) for part in ids.split(1 << 16)])
            modules[f"{level} {name}"] = frozen
            errors[f"{level} {name}"] = float((made.double() - exact).norm() / exact.norm())
        if name == "fp32":
            dense = modules["dense fp32"]
            assert isinstance(dense.weight, Tensor)
            modules["nn.EmbeddingBag"] = nn.EmbeddingBag.from_pretrained(dense.weight, mode="sum")
            errors["nn.EmbeddingBag"] = errors["dense fp32"]
    return modules, errors


def _runs(module: nn.Module) -> bool:
    """Whether there is a kernel for the module's type."""
    try:
        module(torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    except RuntimeError:
        return False
    return True


def _measure(
    modules: dict[str, nn.Module], errors: dict[str, float], case: Case, settings: Settings
) -> list[dict[str, Any]]:
    batches = draw_batches(case, Tables(num_embeddings=settings.num_embeddings))
    upstream = torch.empty(0)
    tasks: dict[str, Task] = {
        name: make_task("forward", module, case, batches, upstream) for name, module in modules.items()
    }
    found = take_turns(tasks, rounds=settings.rounds, block_s=settings.block_ms / 1e3)
    rows = []
    for name, turns in found.items():
        timing = turns.timing()
        row: dict[str, Any] = {"candidate": name, "ids": case.ids, "batch_size": case.batch_size}
        row |= {"bytes": storage_bytes(modules[name]), "error": errors[name]}
        row |= {"median_us": round(1e6 * timing.median_s, 2), "p20_us": round(1e6 * timing.p20_s, 2)}
        row |= {"p80_us": round(1e6 * timing.p80_s, 2), "calls": timing.repeats}
        if "nn.EmbeddingBag" in found:
            row["ratio"] = round(statistics.median(turns.ratios(found["nn.EmbeddingBag"])), 3)
        rows.append(row)
    return rows


def text(rows: Sequence[dict[str, Any]]) -> str:
    """A table for a person: a line per candidate, a column per batch."""
    batches = list(dict.fromkeys((row["ids"], row["batch_size"]) for row in rows))
    names = list(dict.fromkeys(row["candidate"] for row in rows))
    cells = {(row["candidate"], row["ids"], row["batch_size"]): row for row in rows}
    heads = "".join(f"{f'{ids} {batch}':>20}" for ids, batch in batches)
    lines = [f"{'':<17}{'MB':>9}{'error':>10}{heads}"]
    for name in names:
        first = cells[name, *batches[0]]
        times = ""
        for batch in batches:
            row = cells[name, *batch]
            ratio = f" ({row['ratio']:.2f})" if "ratio" in row else ""
            times += f"{row['median_us']:.1f}{ratio}".rjust(20)
        lines.append(f"{name:<17}{first['bytes'] / 1e6:>9.2f}{first['error']:>10.1e}{times}")
    lines.append("median us of a forward pass, one id per bag (ratio to nn.EmbeddingBag, round by round)")
    return "\n".join(lines)
