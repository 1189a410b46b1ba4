"""Measures the choices in the CUDA kernels of the tensor train, on a GPU; scripts/gpu_check.sh runs it.

  direct     up to how many lookups a forward pass is faster without a plan (`ops.tt_direct_lookups`)
  run        lookups of a unit (`run` in csrc/tt/tt_bounds_cuda.cuh)
  precision  time and error of fp32, tf32, fp16 and bf16 cores, and of fp64
  tables     26 tables in one call beside 26 calls

Times are of CUDA graphs that hold a call for each of several batches, by CUDA events; median of the replays.
Errors are ||result - exact|| / ||exact||, exact by the float64 kernels.

    python benchmarks/tt_cuda_kernels.py OUT.json [--quick]
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recsys_opt import ops
from recsys_opt.bench.record import write_record
from recsys_opt.bench.tt_cases import Settings, draw_ids

ROWS, P, Q, RANK = 10_131_227, (200, 220, 250), (2, 2, 4), 32
BATCHES, REPLAYS = 8, 15
PRECISIONS = {
    "fp64": (torch.float64, False),
    "fp32": (torch.float32, False),
    "tf32": (torch.float32, True),
    "fp16": (torch.float16, True),
    "bf16": (torch.bfloat16, True),
}
Op = Callable[[Tensor], Any]


def make_cores(tables: int, dtype: torch.dtype) -> list[Tensor]:
    bonds, generator = (1, RANK, RANK, 1), torch.Generator("cuda").manual_seed(0)
    return [
        (torch.randn(P[k], Q[k], bonds[k], bonds[k + 1], generator=generator, device="cuda") / RANK**0.5)
        .to(torch.float16)  # the same numbers in every precision but bf16
        .to(dtype)
        for _ in range(tables)
        for k in range(len(P))
    ]


def options(tables: int) -> tuple[list[int], ...]:
    return [len(P)] * tables, [ROWS] * tables, [0] * tables, [-1] * tables


def batches(kind: str, batch: int, tables: int = 1) -> list[Tensor]:
    drawn = [
        [draw_ids(kind, batch, Settings(num_embeddings=ROWS), seed * tables + t) for t in range(tables)]
        for seed in range(BATCHES)
    ]
    return [torch.cat(of_tables).cuda() for of_tables in drawn]


def microseconds(op: Op, ids: Sequence[Tensor]) -> dict[str, float]:
    """The median time of op(batch)."""
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
    times = []
    for _ in range(REPLAYS):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        graph.replay()
        ended.record()
        ended.synchronize()
        times.append(1000 * began.elapsed_time(ended) / len(ids))
    ordered = sorted(times)
    return {
        "median_us": round(statistics.median(times), 2),
        "p20_us": round(ordered[len(ordered) // 5], 2),
        "p80_us": round(ordered[-1 - len(ordered) // 5], 2),
    }


def forward_op(cores: list[Tensor], tables: int = 1) -> Op:
    def run(ids: Tensor) -> Tensor:
        result: Tensor = torch.ops.recsys_opt.tt_embedding_bag(
            ids, _offsets(ids), cores, *options(tables), None
        )
        return result

    return run


def backward_op(cores: list[Tensor], grad: Tensor, tables: int = 1) -> Op:
    def run(ids: Tensor) -> Any:
        op = torch.ops.recsys_opt.tt_embedding_bag_backward
        return op(grad, ids, _offsets(ids), cores, *options(tables), None, False)

    return run


def update_op(cores: list[Tensor], grad: Tensor, tables: int = 1) -> Op:
    numbers = torch.tensor([1e-3, 1e-8, 0.9, 0.999, 0.0, 1.0], dtype=torch.float64, device="cuda")

    def run(ids: Tensor) -> Any:
        op = torch.ops.recsys_opt.tt_embedding_bag_backward_update
        return op(grad, ids, _offsets(ids), cores, [], *options(tables), None, False, 0, numbers)

    return run


_known_offsets: dict[int, Tensor] = {}


def _offsets(ids: Tensor) -> Tensor:
    """One id a bag."""
    count = ids.numel()
    if count not in _known_offsets:
        _known_offsets[count] = torch.arange(count + 1, device="cuda")
    return _known_offsets[count]


@contextmanager
def setting(name: str, value: int):
    before = torch.ops.recsys_opt.tt_cuda_setting(name, value)
    try:
        yield
    finally:
        torch.ops.recsys_opt.tt_cuda_setting(name, before)


def gradient(batch: int, dtype: torch.dtype, tables: int = 1) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(1)
    return torch.randn(batch, 16 * tables, generator=generator, device="cuda").to(dtype)


def sweep_direct(sizes: Sequence[int]) -> list[dict[str, Any]]:
    op, rows = forward_op(make_cores(1, torch.float32)), []
    for batch in sizes:
        ids = batches("zipf", batch)
        for path, most in (("direct", batch), ("planned", 0)):
            with setting("direct_lookups", most):
                row = {"sweep": "direct", "work": "forward", "batch_size": batch, "path": path}
                rows.append({**row, **microseconds(op, ids)})
    return rows


def sweep_run(runs: Sequence[int]) -> list[dict[str, Any]]:
    cores, rows = make_cores(1, torch.float32), []
    for kind in ("zipf", "uniform"):
        ids = batches(kind, 65536)
        grad = gradient(65536, torch.float32)
        for run in runs:
            with setting("run", run):
                for work, op in (("forward", forward_op(cores)), ("backward", backward_op(cores, grad))):
                    row = {"sweep": "run", "run": run, "work": work, "ids": kind, "batch_size": 65536}
                    rows.append({**row, **microseconds(op, ids)})
    return rows


def errors(got: Sequence[Tensor], exact: Sequence[Tensor]) -> list[float]:
    pairs = zip(got, exact, strict=True)
    return [float(f"{((a.double() - b).norm() / b.norm()).item():.3g}") for a, b in pairs]


def precisions() -> list[dict[str, Any]]:
    rows = []
    for batch in (512, 65536):
        ids = batches("zipf", batch)
        for name, (dtype, tf32) in PRECISIONS.items():
            cores, grad = make_cores(1, dtype), gradient(batch, dtype)
            doubles = [core.double() for core in cores]
            exact = [
                forward_op(doubles)(ids[0]),
                *backward_op(doubles, grad.double())(ids[0]),
            ]
            with setting("tf32", int(tf32)):
                ops_ = {
                    "forward": forward_op(cores),
                    "backward": backward_op(cores, grad),
                    "backward+sgd": update_op([core.clone() for core in cores], grad),
                }
                got = [ops_["forward"](ids[0]), *ops_["backward"](ids[0])]
                found = errors(got, exact)
                for work, op in ops_.items():
                    row = {"sweep": "precision", "precision": name, "work": work, "batch_size": batch}
                    rows.append({**row, **microseconds(op, ids), "errors_output_and_cores": found})
    return rows


def many_tables(batch: int, tables: int = 26) -> list[dict[str, Any]]:
    cores, rows = make_cores(tables, torch.float32), []
    ids, grad = batches("zipf", batch, tables), gradient(batch, torch.float32, tables)
    alone = [grad[:, 16 * t : 16 * (t + 1)].contiguous() for t in range(tables)]

    def one_by_one(make: Callable[[int], Op]) -> Op:
        each = [make(t) for t in range(tables)]
        return lambda i: [op(part) for op, part in zip(each, i.split(batch), strict=True)]

    works = {
        ("forward", "one call"): forward_op(cores, tables),
        ("forward", "a call each"): one_by_one(lambda t: forward_op(cores[3 * t : 3 * t + 3])),
        ("backward", "one call"): backward_op(cores, grad, tables),
        ("backward", "a call each"): one_by_one(lambda t: backward_op(cores[3 * t : 3 * t + 3], alone[t])),
    }
    for (work, how), op in works.items():
        row = {"sweep": "tables", "tables": tables, "work": work, "how": how, "batch_size": batch}
        rows.append({**row, **microseconds(op, ids)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--quick", action="store_true", help="one pass over the kernels, for a profiler")
    arguments = parser.parse_args()
    if not (torch.cuda.is_available() and ops.has_cuda_kernel("tt_embedding_bag")):
        raise SystemExit("tt_cuda_kernels: needs a CUDA GPU and a build with the CUDA kernels")
    if arguments.quick:
        ids, cores = batches("zipf", 65536)[0], make_cores(1, torch.float32)
        forward_op(cores)(ids)
        backward_op(cores, gradient(65536, torch.float32))(ids)
        forward_op(cores)(ids[:512])
        torch.cuda.synchronize()
        return
    rows = sweep_direct((32, 128, 256, 512, 1024, 2048, 4096, 16384))
    rows += sweep_run((64, 128, 256, 512, 1024))
    rows += precisions()
    rows += many_tables(2048)
    write_record(arguments.out, "tt_cuda_kernels", rows)
    for row in rows:
        print("  ".join(f"{key}={value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
