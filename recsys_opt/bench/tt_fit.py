"""Fitting tensor trains to tables: time, memory and error of each method, in a process of its own.

Tables are random (nothing to find: the error says how much of the norm any train of that rank can hold),
planted (a train of half the rank with noise of 30 % of its size: the least error is known), or given (a file,
such as a trained checkpoint's table). A case reads its table from memory, from a file, or row block by row
block, once.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from recsys_opt.embeddings.tt import TTEmbeddingBag
from recsys_opt.embeddings.tt_fit import Method
from recsys_opt.embeddings.tt_source import TableLike, open_table
from recsys_opt.errors import InputError
from recsys_opt.progress import Progress

Kind = Literal["random", "planted", "given"]
METHODS = ("exact", "streaming", "randomised", "single-pass")
NOISE = 0.3
"""Of a planted table, as a share of the train's size."""


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    rows: tuple[int, ...] = (1_000_000, 10_131_227)
    dim: int = 16
    rank: int = 32
    kinds: tuple[Kind, ...] = ("planted", "random")
    methods: tuple[str, ...] = METHODS
    exact_most_rows: int = 1_000_000
    """Larger tables are left out of method "exact", whose memory is several times the table in float64."""
    file_bytes: int = 2_000_000_000
    """Of a planted table in a file, fitted within `work_bytes`; 0: none."""
    work_bytes: int = 500_000_000
    threads: int = 2
    table: str | None = None
    """A file with a table to fit besides."""

    def __post_init__(self) -> None:
        for name in self.methods:
            if name not in METHODS:
                raise InputError(f"there is no method {name!r}; choose from {', '.join(METHODS)}")
        if min(self.dim, self.rank, self.threads, *self.rows) < 1 or self.file_bytes < 0:
            raise InputError("rows, columns, rank and threads must be at least 1, file bytes at least 0")


@dataclass(frozen=True)
class Case:
    """One fit."""

    kind: Kind
    rows: int
    dim: int
    rank: int
    method: str
    source: Literal["memory", "file"]
    work_bytes: int
    threads: int
    path: str | None = None


def run(settings: Settings, progress: Progress) -> list[dict[str, Any]]:
    """Measures every case in a fresh process; one row each."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="recsys-opt-bench-") as folder:
        cases = list(_cases(settings, Path(folder) / "table.npy"))
        progress.start("fits", len(cases), "fit")
        context = multiprocessing.get_context("spawn")
        for case in cases:
            if case.kind != "given" and case.path and not Path(case.path).exists():
                _write(case)
            with context.Pool(1) as pool:
                rows.append(pool.apply(measure, (case,)))
            progress.advance(1, last=f"{case.method} {rows[-1]['seconds']:.1f} s")
    progress.finish()
    return rows


def _cases(settings: Settings, path: Path) -> Iterator[Case]:
    def case(kind: Kind, rows: int, method: str, path: str | None = None) -> Case:
        source: Literal["memory", "file"] = "file" if path else "memory"
        sizes = (rows, settings.dim, settings.rank)
        return Case(kind, *sizes, method, source, settings.work_bytes, settings.threads, path)

    for rows in settings.rows:
        for kind in settings.kinds:
            for method in settings.methods:
                if method != "exact" or rows <= settings.exact_most_rows:
                    yield case(kind, rows, method)
    bounded = [m for m in settings.methods if m != "exact"]
    if settings.file_bytes:
        rows = settings.file_bytes // (4 * settings.dim)
        for method in bounded:
            yield case("planted", rows, method, str(path))
    if settings.table:
        for method in bounded:
            yield case("given", 0, method, settings.table)


def planted_blocks(case: Case, block: int = 1 << 20) -> Iterator[Tensor]:
    """Rows of a train of half the case's rank, entries of variance 1, with Gaussian noise."""
    torch.manual_seed(0)
    bag = TTEmbeddingBag(case.rows, case.dim, max(case.rank // 2, 1))
    bag.reset_parameters(1.0)
    scale = float(bag.materialize(range(min(case.rows, block))).detach().std())
    for start in range(0, case.rows, block):
        rows = range(start, min(start + block, case.rows))
        out = torch.empty(len(rows), case.dim)
        bag.materialize(rows, out=out)
        yield out.div_(scale).add_(torch.randn(out.shape), alpha=NOISE)


def least_error(case: Case) -> float | None:
    """What the noise leaves of a planted table, about: no train of so small a rank can follow it."""
    return NOISE / math.sqrt(1 + NOISE**2) if case.kind == "planted" else None


def _write(case: Case) -> None:
    assert case.path is not None
    file = np.lib.format.open_memmap(case.path, "w+", np.float32, (case.rows, case.dim))
    start = 0
    for block in planted_blocks(case):
        file[start : start + len(block)] = block.numpy()
        start += len(block)
    file.flush()


def measure(case: Case) -> dict[str, Any]:
    """Fits in this process; its memory at the peak is counted from when the table is there."""
    torch.set_num_threads(case.threads)
    TTEmbeddingBag.from_pretrained(torch.randn(3000, case.dim), 2, method="streaming")  # loads what is lazy
    weight = _table(case)
    method: Method = "randomised" if case.method == "single-pass" else _method(case.method)
    if case.method == "single-pass":
        case = replace(case, rows=open_table(weight).num_embeddings)
        weight = _once(weight)
    _forget_peak()  # that of making the table
    before, began = _peak_bytes(), time.perf_counter()
    bag = TTEmbeddingBag.from_pretrained(
        weight, case.rank, method=method, num_embeddings=case.rows or None, work_bytes=case.work_bytes
    )
    seconds, after = time.perf_counter() - began, _peak_bytes()
    report = bag.fit_report
    assert report is not None
    row = asdict(case)
    row |= {"rows": bag.num_embeddings, "path": Path(case.path).name if case.path else None}
    return {
        **row,
        "table_bytes": 4 * bag.num_embeddings * bag.embedding_dim,
        "cores_bytes": bag.storage_bytes(),
        "tt_p_shapes": list(bag.tt_p_shapes),
        "tt_q_shapes": list(bag.tt_q_shapes),
        "seconds": round(seconds, 3),
        "peak_bytes": after - before,
        "passes": report.passes,
        "error": report.error,
        "error_range": list(report.error_range),
        "least_error": least_error(case),
    }


def _method(name: str) -> Method:
    found: dict[str, Method] = {"exact": "exact", "streaming": "streaming", "randomised": "randomised"}
    return found[name]


def _table(case: Case) -> TableLike:
    if case.source == "file":
        assert case.path is not None
        return case.path
    table = torch.empty(case.rows, case.dim)
    if case.kind == "random":
        return table.normal_(generator=torch.Generator().manual_seed(0))
    start = 0
    for block in planted_blocks(case, 1 << 18):
        table[start : start + len(block)] = block
        start += len(block)
    return table


def _once(weight: TableLike) -> Iterator[Tensor]:
    """Row blocks that can be read once."""
    for _, block in open_table(weight).blocks(1 << 16):
        yield block


def _forget_peak() -> None:
    """Makes the peak start from what is in use now; on Linux."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # freed memory that the heap still holds would be used for nothing
        Path("/proc/self/clear_refs").write_text("5")


def _peak_bytes() -> int:
    with contextlib.suppress(OSError):  # getrusage's peak begins with that of the process that started this
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def text(rows: Sequence[dict[str, Any]]) -> str:
    """A table for a person."""
    lines = [
        f"{'table':<8}{'rows':>12}{'from':>8}{'MB':>7}  {'method':<12}{'passes':>6}{'time':>9}{'peak':>9}"
        f"{'error':>9}{'least':>8}"
    ]
    for row in rows:
        least = f"{row['least_error']:.4f}" if row["least_error"] else "-"
        lines.append(
            f"{row['kind']:<8}{row['rows']:>12,}{row['source']:>8}{row['table_bytes'] / 1e6:>7.0f}  "
            f"{row['method']:<12}{row['passes']:>6}{row['seconds']:>7.1f} s{row['peak_bytes'] / 1e6:>6.0f} MB"
            f"{row['error']:>9.4f}{least:>8}"
        )
    lines.append("peak: memory beside the table; error: of the single pass an estimate, of the others exact")
    return "\n".join(lines)
