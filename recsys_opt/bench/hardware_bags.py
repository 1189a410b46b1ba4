"""Bandwidth of a GPU's two tiers by the size of a row, measured through the lookups that train there.

A `TieredEmbeddingBag` with all rows in the fast tier, and one with none, look up rows at random and update
them in the backward pass: what the planner's figures are about, the kernels' own losses included.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from recsys_opt.bench.hardware import RESERVED_SHARE, Measured, Rate, tier_of
from recsys_opt.bench.measure import Clock, CudaClock, Task, quantile
from recsys_opt.embeddings.fused_update import FusedUpdate
from recsys_opt.embeddings.tiered import TieredEmbeddingBag
from recsys_opt.errors import InputError
from recsys_opt.planner.hardware import Hardware
from recsys_opt.progress import Progress, SilentProgress

BAG = 8
"""Ids of a bag, so that what is written is little beside what is read."""
HBM_RESERVED = 0.15
"""Of a GPU's memory: dense parameters, activations and the framework."""


@dataclass(frozen=True)
class BagSettings:
    """How much is measured, and how often."""

    row_bytes: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 1024)
    rounds: int = 7
    """Of all sizes; the median counts."""
    table_bytes: int = 1 << 30
    """Of each table; many times the last cache."""
    lookups: int = 1 << 20
    """Of a call."""

    def __post_init__(self) -> None:
        for size in self.row_bytes:
            if size < 4 or size % 4 or size > self.table_bytes:
                raise InputError(f"row_bytes = {size}; rows of fp32 weights have 4, 8, ... bytes")
        if not self.row_bytes or self.rounds < 1 or self.lookups < BAG:
            raise InputError(
                f"{len(self.row_bytes)} row sizes, {self.rounds} rounds, {self.lookups} lookups; ask for one "
                f"size and round at least, and {BAG} lookups"
            )


def measure_gpu(settings: BagSettings, device: torch.device, progress: Progress | None = None) -> Measured:
    """Measures a GPU's memory and the pinned host memory that it reads in place."""
    rates = list(bag_rates(settings, device, ("hbm", "uvm"), CudaClock(), progress))
    found = torch.cuda.get_device_properties(device)
    gpus = torch.cuda.device_count()
    like = next(
        (name for key, name in (("H200", "h200"), ("A100", "a100-80gb")) if key in found.name), "h100"
    )
    links = Hardware.load(like)
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // gpus
    hardware = Hardware(
        name="this machine",
        source=f"measured by `recsys-opt bench hardware` on {found.name}; links assumed, as those of {like}",
        measured=True,
        nodes=1,
        devices_per_node=gpus,
        fast=tier_of("hbm", found.total_memory, int(found.total_memory * HBM_RESERVED), rates),
        slow=tier_of("uvm", host, int(host * RESERVED_SHARE), rates),
        intra_node=links.intra_node,
        inter_node=links.inter_node,
    )
    return Measured(hardware, tuple(rates), ())


def bag_rates(
    settings: BagSettings,
    device: torch.device,
    tiers: tuple[str, str],
    clock: Clock,
    progress: Progress | None = None,
) -> Iterator[Rate]:
    """Bytes of rows a second in the fast and in the slow tier, called `tiers`."""
    progress = progress or SilentProgress()
    progress.start("lookups", 2 * len(settings.row_bytes), "tables")
    for tier, is_fast in zip(tiers, (True, False), strict=True):
        for size in settings.row_bytes:
            rows = settings.table_bytes // size
            bag = TieredEmbeddingBag(rows, size // 4, rows if is_fast else 0, device=device)
            yield from _rates_of(bag, tier, size, settings, clock)
            progress.advance(1)
    progress.finish()


def _rates_of(
    bag: TieredEmbeddingBag, tier: str, size: int, settings: BagSettings, clock: Clock
) -> Iterator[Rate]:
    device = bag.hot.device
    bags = settings.lookups // BAG
    offsets = torch.arange(0, bags * BAG, BAG, device=device)
    random = torch.Generator(device="cpu").manual_seed(size)
    # A call's rows come round again after this many calls, by which time others have filled the caches.
    batches = [
        torch.randint(0, bag.num_embeddings, (bags * BAG,), generator=random).to(device) for _ in range(4)
    ]
    gradient = torch.full((bags, bag.embedding_dim), 1e-6, device=device)
    bag.fuse_update(FusedUpdate("sgd", 0.01))
    turn = 0

    def next_ids() -> torch.Tensor:
        nonlocal turn
        turn += 1
        return batches[turn % len(batches)]

    def read() -> None:
        with torch.no_grad():
            bag(next_ids(), offsets)

    outputs: list[torch.Tensor] = []

    def look_up() -> None:
        outputs[:] = [bag(next_ids(), offsets)]

    tasks = {
        "read": Task(read),
        "update": Task(lambda: outputs[0].backward(gradient), prepare=look_up),
    }
    for kind, task in tasks.items():
        clock.times_s(task, 2)
        times = clock.times_s(task, settings.rounds)
        moved = float(bags * BAG * size)
        yield Rate(
            tier,
            size,
            kind,
            moved / quantile(times, 0.5),
            moved / quantile(times, 0.8),
            moved / quantile(times, 0.2),
        )
