"""`bench tt` with CUDA graphs: a call's launches are captured once, then replayed in one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from recsys_opt import ops
from recsys_opt.bench.measure import Task
from recsys_opt.bench.tt_candidates import make_task
from recsys_opt.bench.tt_cases import Case
from recsys_opt.errors import InputError

WARM_UPS = 3
"""Calls before the capture: what is made once (an optimizer's state, host memory) cannot be made in it."""


def check_cuda(device: str) -> None:
    """Raises where torch has no GPU to measure, or our kernels are not built for it."""
    if not torch.cuda.is_available():
        raise InputError(f"device = {device!r}; torch {torch.__version__} finds no CUDA GPU here")
    if not ops.has_cuda_kernel("tt_embedding_bag"):
        raise InputError(
            f"device = {device!r}; this build has no CUDA kernels: run scripts/setup.sh with a CUDA torch "
            "and nvcc"
        )


def graph_task(work: str, module: nn.Module, case: Case, batches: Sequence[Tensor], upstream: Tensor) -> Task:
    """One call copies the next batch's ids to where the graph reads them and replays `work` on them."""
    ids = batches[0].clone()
    replay = capture(make_task(work, module, case, [ids], upstream).run, ids.device)
    turn = 0

    def run() -> None:
        nonlocal turn
        turn += 1
        ids.copy_(batches[turn % len(batches)])
        replay()

    return Task(run)


def capture(run: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """Captures what `run` launches on a CUDA device; the result replays it.

    The tensors that `run` reads and writes stay in their places, so what it allocates is the graph's own.
    """
    if device.type != "cuda":
        raise InputError(f"device = {str(device)!r}; only what runs on a CUDA GPU can be a CUDA graph")
    check_cuda(str(device))
    with torch.cuda.device(device):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
    return graph.replay
