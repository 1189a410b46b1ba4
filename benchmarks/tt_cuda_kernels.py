"""Measures the choices in the CUDA kernels of the tensor train, on a GPU; scripts/gpu_check.sh runs it.

  direct     up to how many lookups a forward pass is faster without a plan (`ops.tt_direct_lookups`)
  run        lookups of a unit (`run` in csrc/tt/tt_bounds_cuda.cuh)
  precision  time and error of fp32, tf32, fp16 and bf16 cores, and of fp64
  tables     26 tables of Criteo Kaggle's sizes in one call beside 26 calls, and the memory that takes

Times are of CUDA graphs that hold a call for each of several batches, by CUDA events; median of the replays.
Errors are ||result - exact|| / ||exact||, exact by the float64 kernels.

    python benchmarks/tt_cuda_kernels.py OUT.json [--quick | --dry-run]
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recsys_opt import ops
from recsys_opt.bench.record import write_record
from recsys_opt.bench.tt_cases import Settings, draw_ids
from recsys_opt.embeddings.tt_shapes import row_factors

ROWS, P, Q, RANK = 10_131_227, (200, 220, 250), (2, 2, 4), 32
# Criteo Kaggle's tables; their cardinalities are published with its DLRM.
KAGGLE_ROWS = (
    *(1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194),
    *(27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572),
)
PRECISIONS = {
    "fp64": (torch.float64, False),
    "fp32": (torch.float32, False),
    "tf32": (torch.float32, True),
    "fp16": (torch.float16, True),
    "bf16": (torch.bfloat16, True),
}
Op = Callable[[Tensor], Any]


@dataclass(frozen=True)
class Scale:
    """How much is measured, and where."""

    device: str
    batch: int
    small: int
    table_batches: tuple[int, ...]
    direct: tuple[int, ...]
    runs: tuple[int, ...]
    batches: int = 8
    replays: int = 15


FULL = Scale(
    "cuda",
    65536,
    512,
    (2048, 32768),
    (32, 128, 256, 512, 1024, 2048, 4096, 16384),
    (64, 128, 256, 512, 1024),
)
DRY = Scale("cpu", 64, 8, (16,), (8, 16), (64, 256), batches=2, replays=2)


@dataclass(frozen=True)
class Trains:
    """Tables of one call."""

    rows: tuple[int, ...]
    factors: tuple[tuple[int, ...], ...]

    @property
    def options(self) -> tuple[list[int], ...]:
        """cores_per_table, num_embeddings, pooling_modes, padding_idx."""
        n = len(self.rows)
        return [len(Q)] * n, list(self.rows), [0] * n, [-1] * n

    def cores(self, dtype: torch.dtype, device: str) -> list[Tensor]:
        bonds, generator = (1, RANK, RANK, 1), torch.Generator(device).manual_seed(0)
        return [
            (torch.randn(p[k], Q[k], bonds[k], bonds[k + 1], generator=generator, device=device) / RANK**0.5)
            .to(torch.float16)  # the same numbers in every precision but bf16
            .to(dtype)
            for p in self.factors
            for k in range(len(Q))
        ]

    def batches(self, kind: str, batch: int, scale: Scale) -> list[Tensor]:
        drawn = [
            [
                draw_ids(kind, batch, Settings(num_embeddings=rows), seed * len(self.rows) + t)
                for t, rows in enumerate(self.rows)
            ]
            for seed in range(scale.batches)
        ]
        return [torch.cat(of_tables).to(scale.device) for of_tables in drawn]

    def forward(self, cores: list[Tensor]) -> Op:
        def run(ids: Tensor) -> Tensor:
            result: Tensor = torch.ops.recsys_opt.tt_embedding_bag(
                ids, _offsets(ids), cores, *self.options, None
            )
            return result

        return run

    def backward(self, cores: list[Tensor], grad: Tensor) -> Op:
        def run(ids: Tensor) -> Any:
            op = torch.ops.recsys_opt.tt_embedding_bag_backward
            return op(grad, ids, _offsets(ids), cores, *self.options, None, False)

        return run

    def update(self, cores: list[Tensor], grad: Tensor) -> Op:
        """Backward and SGD in one."""
        rates = torch.tensor([1e-3, 1e-8, 0.9, 0.999, 0.0, 1.0], dtype=torch.float64, device=grad.device)

        def run(ids: Tensor) -> Any:
            op = torch.ops.recsys_opt.tt_embedding_bag_backward_update
            return op(grad, ids, _offsets(ids), cores, [], *self.options, None, False, 0, rates)

        return run


LARGEST = Trains((ROWS,), (P,))
KAGGLE = Trains(KAGGLE_ROWS, tuple(P if rows == ROWS else row_factors(rows, 3) for rows in KAGGLE_ROWS))


def milliseconds(op: Op, ids: Sequence[Tensor], scale: Scale) -> Iterator[float]:
    """Of each pass over the batches."""
    if scale.device == "cpu":
        for _ in range(scale.replays):
            began_s = time.perf_counter()
            for batch in ids:
                op(batch)
            yield 1e3 * (time.perf_counter() - began_s)
        return
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for batch in ids:
            op(batch)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for batch in ids:
            op(batch)
    graph.replay()
    for _ in range(scale.replays):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        graph.replay()
        ended.record()
        ended.synchronize()
        yield began.elapsed_time(ended)


def microseconds(op: Op, ids: Sequence[Tensor], scale: Scale) -> dict[str, float]:
    """The median time of op(batch)."""
    ordered = sorted(1000 * ms / len(ids) for ms in milliseconds(op, ids, scale))
    return {
        "median_us": round(statistics.median(ordered), 2),
        "p20_us": round(ordered[len(ordered) // 5], 2),
        "p80_us": round(ordered[-1 - len(ordered) // 5], 2),
    }


def peak_mib(op: Op, ids: Tensor) -> float | None:
    """Most memory that a call takes besides what there is already; None on a CPU."""
    if ids.device.type != "cuda":
        return None
    op(ids)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    op(ids)
    torch.cuda.synchronize()
    return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)


_known_offsets: dict[tuple[int, torch.device], Tensor] = {}


def _offsets(ids: Tensor) -> Tensor:
    """One id a bag."""
    key = ids.numel(), ids.device
    if key not in _known_offsets:
        _known_offsets[key] = torch.arange(ids.numel() + 1, device=ids.device)
    return _known_offsets[key]


@contextmanager
def setting(name: str, value: int, scale: Scale) -> Iterator[None]:
    """Changes a setting of the CUDA kernels."""
    if scale.device == "cpu":
        yield
        return
    before = torch.ops.recsys_opt.tt_cuda_setting(name, value)
    try:
        yield
    finally:
        torch.ops.recsys_opt.tt_cuda_setting(name, before)


def gradient(batch: int, dtype: torch.dtype, scale: Scale, tables: int = 1) -> Tensor:
    generator = torch.Generator(scale.device).manual_seed(1)
    columns = math.prod(Q) * tables
    return torch.randn(batch, columns, generator=generator, device=scale.device).to(dtype)


def sweep_direct(scale: Scale) -> list[dict[str, Any]]:
    op, rows = LARGEST.forward(LARGEST.cores(torch.float32, scale.device)), []
    for batch in scale.direct:
        ids = LARGEST.batches("zipf", batch, scale)
        for path, most in (("direct", batch), ("planned", 0)):
            with setting("direct_lookups", most, scale):
                row = {"sweep": "direct", "work": "forward", "batch_size": batch, "path": path}
                rows.append({**row, **microseconds(op, ids, scale)})
    return rows


def sweep_run(scale: Scale) -> list[dict[str, Any]]:
    cores, rows = LARGEST.cores(torch.float32, scale.device), []
    for kind in ("zipf", "uniform"):
        ids = LARGEST.batches(kind, scale.batch, scale)
        grad = gradient(scale.batch, torch.float32, scale)
        works = {"forward": LARGEST.forward(cores), "backward": LARGEST.backward(cores, grad)}
        for run in scale.runs:
            with setting("run", run, scale):
                for work, op in works.items():
                    row = {"sweep": "run", "run": run, "work": work, "ids": kind, "batch_size": scale.batch}
                    rows.append({**row, **microseconds(op, ids, scale)})
    return rows


def errors(got: Sequence[Tensor], exact: Sequence[Tensor]) -> list[float]:
    pairs = zip(got, exact, strict=True)
    return [float(f"{((a.double() - b).norm() / b.norm()).item():.3g}") for a, b in pairs]


def precisions(scale: Scale) -> list[dict[str, Any]]:
    rows = []
    for batch in (scale.small, scale.batch):
        ids = LARGEST.batches("zipf", batch, scale)
        for name, (dtype, tf32) in PRECISIONS.items():
            cores, grad = LARGEST.cores(dtype, scale.device), gradient(batch, dtype, scale)
            doubles = [core.double() for core in cores]
            exact = [
                LARGEST.forward(doubles)(ids[0]),
                *LARGEST.backward(doubles, grad.double())(ids[0]),
            ]
            with setting("tf32", int(tf32), scale):
                works = {
                    "forward": LARGEST.forward(cores),
                    "backward": LARGEST.backward(cores, grad),
                    "backward+sgd": LARGEST.update([core.clone() for core in cores], grad),
                }
                got = [works["forward"](ids[0]), *works["backward"](ids[0])]
                found = errors(got, exact)
                for work, op in works.items():
                    row = {"sweep": "precision", "precision": name, "work": work, "batch_size": batch}
                    rows.append({**row, **microseconds(op, ids, scale), "errors_output_and_cores": found})
    return rows


def many_tables(batch: int, scale: Scale) -> list[dict[str, Any]]:
    tables = len(KAGGLE.rows)
    cores, rows = KAGGLE.cores(torch.float32, scale.device), []
    ids, grad = KAGGLE.batches("zipf", batch, scale), gradient(batch, torch.float32, scale, tables)
    columns = math.prod(Q)
    grads = [grad[:, columns * t : columns * (t + 1)].contiguous() for t in range(tables)]
    alone = [Trains(KAGGLE.rows[t : t + 1], KAGGLE.factors[t : t + 1]) for t in range(tables)]
    own = [cores[len(Q) * t : len(Q) * (t + 1)] for t in range(tables)]

    def one_by_one(make: Callable[[int], Op]) -> Op:
        each = [make(t) for t in range(tables)]
        return lambda i: [op(part) for op, part in zip(each, i.split(batch), strict=True)]

    works = {
        ("forward", "one call"): KAGGLE.forward(cores),
        ("forward", "a call each"): one_by_one(lambda t: alone[t].forward(own[t])),
        ("backward", "one call"): KAGGLE.backward(cores, grad),
        ("backward", "a call each"): one_by_one(lambda t: alone[t].backward(own[t], grads[t])),
        ("backward+sgd", "one call"): KAGGLE.update(cores, grad),
        ("backward+sgd", "a call each"): one_by_one(lambda t: alone[t].update(own[t], grads[t])),
    }
    for (work, how), op in works.items():
        row = {"sweep": "tables", "tables": tables, "work": work, "how": how, "batch_size": batch}
        peak = {"peak_mib": peak_mib(op, ids[0])}
        rows.append({**row, **microseconds(op, ids, scale), **peak})
    return rows


def once(scale: Scale) -> None:
    """Each kernel's largest work once, for a profiler."""
    ids, cores = LARGEST.batches("zipf", scale.batch, scale)[0], LARGEST.cores(torch.float32, scale.device)
    grad = gradient(scale.batch, torch.float32, scale)
    for tf32 in (0, 1):
        with setting("tf32", tf32, scale):
            LARGEST.forward(cores)(ids)
            LARGEST.update(cores, grad)(ids)
    LARGEST.backward(cores, grad)(ids)
    LARGEST.forward(cores)(ids[: scale.small])
    if scale.device != "cpu":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--quick", action="store_true", help="one pass over the kernels, for a profiler")
    parser.add_argument(
        "--dry-run", action="store_true", help="everything in small by the CPU kernels, to test this script"
    )
    arguments = parser.parse_args()
    scale = DRY if arguments.dry_run else FULL
    if scale.device == "cuda" and not (torch.cuda.is_available() and ops.has_cuda_kernel("tt_embedding_bag")):
        raise SystemExit("tt_cuda_kernels: needs a CUDA GPU and a build with the CUDA kernels")
    if arguments.quick:
        once(scale)
        return
    rows = sweep_direct(scale)
    rows += sweep_run(scale)
    rows += precisions(scale)
    for batch in scale.table_batches:
        rows += many_tables(batch, scale)
    write_record(arguments.out, "tt_cuda_kernels", rows)
    for row in rows:
        print("  ".join(f"{key}={value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
