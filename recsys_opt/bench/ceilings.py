"""What the machine can do at most, measured: the roof under which kernels are judged."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from recsys_opt import _machine
from recsys_opt.bench.measure import CudaClock, Task

DEFAULT_CACHE_BYTES = 32 << 20
LEVELS = {"L1": 24 << 10, "L2": 512 << 10, "L3": 8 << 20, "memory": 512 << 20}
"""Bytes that fit the level and no smaller one, on common machines; of one thread."""
TABLE_BYTES = 640 << 20
"""Of the table that rows are gathered from: Kaggle's largest."""


@dataclass(frozen=True)
class Ceilings:
    """The highest rates measured."""

    threads: int
    """0 for a GPU."""
    fp32_flops_per_s: float
    """Fused multiply-adds count 2."""
    bf16_flops_per_s: float
    """bf16 products with fp32 sums; 0 without such an instruction."""
    read_bytes_per_s: dict[str, float]
    """In order, from each level of the memory."""
    gather_bytes_per_s: dict[int, float] = field(default_factory=dict)
    """By bytes of a row: rows at random from a table much larger than the caches."""

    cache_bytes: int = DEFAULT_CACHE_BYTES
    """Of the last level."""

    def read_rate(self, stored_bytes: int) -> float:
        """Bytes a second in order, where so much is read again and again: what fits the last level's cache
        may come from there."""
        cached = stored_bytes <= self.cache_bytes and "L3" in self.read_bytes_per_s
        return self.read_bytes_per_s["L3" if cached else "memory"]

    def to_json(self) -> dict[str, Any]:
        """JSON values only."""
        return asdict(self)


def measure_cpu(threads: int, row_bytes: tuple[int, ...], *, seconds: float = 0.05) -> Ceilings:
    """On `threads` threads; each the best of five tries of `seconds`, since others may use the machine."""

    def best(rate: Callable[..., float], *args: int) -> float:
        return rate(*args, threads, seconds)

    gathered = {size: -(-size // 64) * 64 for size in row_bytes}  # whole cache lines
    return Ceilings(
        threads,
        best(_machine.fp32_flops_per_s),
        best(_machine.bf16_flops_per_s),
        {
            level: best(_machine.read_bytes_per_s, size if level == "memory" else size * threads)
            for level, size in LEVELS.items()
        },
        {size: best(_machine.gather_bytes_per_s, TABLE_BYTES, lines) for size, lines in gathered.items()},
        last_level_bytes(),
    )


def last_level_bytes() -> int:
    """Of the largest cache that core 0 reads through; 32 MiB where the system does not say."""
    sizes = [DEFAULT_CACHE_BYTES]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        with contextlib.suppress(OSError, ValueError):
            sizes.append(int(path.read_text().strip().removesuffix("K")) << 10)
    return max(sizes[1:] or sizes)


def measure_cuda(device: str, row_bytes: tuple[int, ...]) -> Ceilings:
    """Of a GPU: large matrix products, a large copy (which reads and writes), a large gather of rows."""
    clock = CudaClock()

    def best_s(run: Callable[[], object]) -> float:
        clock.times_s(Task(run), 3)
        return min(clock.times_s(Task(run), 10))

    n = 8192
    rates = []
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        rates.append(2 * n**3 / best_s(lambda a=a, b=b: a @ b))  # type: ignore[misc]
    source = torch.empty(1 << 30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = 2 * source.numel() / best_s(lambda: target.copy_(source))
    gathered = {}
    for size in row_bytes:
        table = torch.zeros(TABLE_BYTES // size, size // 4, device=device)
        ids = torch.randint(0, table.shape[0], (1 << 20,), device=device)
        gathered[size] = 2 * ids.numel() * size / best_s(lambda t=table, i=ids: t.index_select(0, i))  # type: ignore[misc]
    cache_bytes = torch.cuda.get_device_properties(device).L2_cache_size
    return Ceilings(0, rates[0], rates[1], {"memory": copied}, gathered, cache_bytes)
