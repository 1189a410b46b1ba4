"""Bandwidth of this machine's memories by the size of a row: what hardware.toml needs, measured.

Rows are drawn at random by every core at once; a row's bytes count, whatever the machine moves to get them.
Small rows are far from what a copy reaches, which is measured beside them.
"""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from recsys_opt import _machine
from recsys_opt.bench.measure import quantile
from recsys_opt.environment import cpu_model
from recsys_opt.errors import InputError
from recsys_opt.planner.hardware import Hardware, Tier
from recsys_opt.progress import Progress, SilentProgress

ROW_BYTES = (16, 32, 64, 128, 256, 512, 1024)
KINDS = ("read", "update")
RESERVED_SHARE = 0.25
"""Of the machine's memory: for the loading of data, activations and the system."""
FROM_DISK = 0.8
"""A file's reads count as the disk's where at least this share of the pages touched came from there."""


@dataclass(frozen=True)
class Settings:
    """How much is measured, and how often."""

    row_bytes: tuple[int, ...] = ROW_BYTES
    rounds: int = 5
    """Of all sizes; the median counts."""
    memory_bytes: int = 2 << 30
    """Of the table in memory; it should be many times the caches."""
    file_bytes: int = 4 << 30
    """Of the file."""
    seconds: float = 0.1
    """Of one measurement in memory."""
    file_seconds: float = 0.4
    """Of one on the disk."""
    threads: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))

    def __post_init__(self) -> None:
        for size in self.row_bytes:
            if size < 8 or size % 8 or size > 1 << 20:
                raise InputError(f"row_bytes = {size}; a multiple of 8 up to {1 << 20} can be measured")
        if not self.row_bytes or self.rounds < 1:
            raise InputError(
                f"{len(self.row_bytes)} row sizes, {self.rounds} rounds; give at least one of each"
            )
        least = self.threads * max(self.row_bytes)
        for what, value in (("memory_bytes", self.memory_bytes), ("file_bytes", self.file_bytes)):
            if value < least:
                raise InputError(
                    f"{what} = {value}; {self.threads} threads and rows of {max(self.row_bytes)} bytes need "
                    f"{least} at least, and a table many times the caches' size to measure the memory"
                )


@dataclass(frozen=True)
class Rate:
    """Bytes of rows a second, of one tier, size and kind."""

    tier: str
    row_bytes: int
    kind: str
    """"read", "update" (counted once), or "copy" (in order; row_bytes is 0)."""
    bytes_per_s: float
    """The median of the rounds."""
    p20: float
    p80: float
    from_disk: float | None = None
    """Of a file's reads: pages that came from the disk, as a share of those touched."""


@dataclass(frozen=True)
class Measured:
    """A machine, measured."""

    hardware: Hardware
    rates: tuple[Rate, ...]
    remarks: tuple[str, ...]
    """What is not as it should be."""


def measure(settings: Settings, folder: Path, progress: Progress | None = None) -> Measured:
    """Measures this machine's memory and a file that is mapped into it.

    folder  on the disk to measure; a file of `settings.file_bytes` is made there and removed
    """
    progress = progress or SilentProgress()
    _require_room(settings, folder)
    rates = [*_measure_memory(settings, progress), *_measure_disk(settings, folder, progress)]
    progress.finish()
    remarks = []
    cached = [r.row_bytes for r in rates if r.from_disk is not None and r.from_disk < FROM_DISK]
    if cached:
        remarks.append(
            f"the file's rows of {cached} bytes came from memory for the most part, not from the "
            f"disk of {folder}: the system does not let go of the pages (a file system in memory?); name a "
            "folder on a disk with --disk, or take a larger --file-bytes"
        )
    links = Hardware.load("cpu-disk")
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    threads = f"{settings.threads} thread{'s' if settings.threads > 1 else ''}"
    hardware = Hardware(
        name="this machine",
        source=f"measured by `recsys-opt bench hardware` on {cpu_model()}, {threads}; links assumed",
        measured=True,
        nodes=1,
        devices_per_node=1,
        fast=tier_of("ddr", total, int(total * RESERVED_SHARE), rates),
        slow=tier_of("disk", shutil.disk_usage(folder).free, 0, rates),
        intra_node=links.intra_node,
        inter_node=links.inter_node,
    )
    return Measured(hardware, tuple(rates), tuple(remarks))


def tier_of(name: str, memory_bytes: int, reserved_bytes: int, rates: Sequence[Rate]) -> Tier:
    """A tier with the rates that were measured of it, to four digits."""
    found = {
        (r.kind, r.row_bytes): float(f"{r.bytes_per_s:.4g}")
        for r in rates
        if r.tier == name and r.kind in KINDS
    }
    sizes = tuple(sorted({size for _, size in found}))
    return Tier(
        name,
        memory_bytes,
        sizes,
        tuple(found["read", size] for size in sizes),
        tuple(found["update", size] for size in sizes),
        reserved_bytes,
    )


def _require_room(settings: Settings, folder: Path) -> None:
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; name one on the disk to measure")
    free = shutil.disk_usage(folder).free
    if settings.file_bytes > free // 2:
        raise InputError(
            f"file_bytes = {settings.file_bytes}: {folder} has {free} bytes free, of which half may be "
            "taken; ask for a smaller file or name another folder"
        )
    available = _available_bytes()
    if settings.memory_bytes > available // 2:
        raise InputError(
            f"memory_bytes = {settings.memory_bytes}: {available} bytes of memory are available, of "
            "which half may be taken; ask for a smaller table"
        )


def _available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _measure_memory(settings: Settings, progress: Progress) -> Iterator[Rate]:
    threads, seconds = settings.threads, settings.seconds
    progress.start("memory", settings.rounds * (2 * len(settings.row_bytes) + 1), "measurements")
    with mmap.mmap(-1, settings.memory_bytes) as memory:
        _fill(memory)
        found: dict[tuple[int, str], list[float]] = {}
        for seed in range(settings.rounds):
            for size in settings.row_bytes:
                for kind in KINDS:
                    rate, _ = _machine.row_rate(
                        memory, size, threads, seconds, update=kind == "update", mapped_file=False, seed=seed
                    )
                    found.setdefault((size, kind), []).append(rate * size)
                    progress.advance(1)
            found.setdefault((0, "copy"), []).append(_machine.copy_bytes_per_s(memory, threads, seconds))
            progress.advance(1)
    yield from _medians("ddr", found)


def _measure_disk(settings: Settings, folder: Path, progress: Progress) -> Iterator[Rate]:
    found: dict[tuple[int, str], list[float]] = {}
    shares: dict[tuple[int, str], list[float]] = {}
    sizes = sorted({*settings.row_bytes, mmap.PAGESIZE})
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".bench_hardware.", suffix=".partial") as file:
        progress.start("write the file", settings.file_bytes, "bytes")
        _write(file.fileno(), settings.file_bytes, progress)
        progress.start("disk", settings.rounds * (2 * len(sizes) + 1), "measurements")
        for seed in range(settings.rounds):
            for size in sizes:
                for kind in KINDS:
                    rate, share = _disk_rate(file.fileno(), settings, size, kind, seed)
                    found.setdefault((size, kind), []).append(rate * size)
                    shares.setdefault((size, kind), []).append(share)
                    progress.advance(1)
            found.setdefault((0, "copy"), []).append(_read_in_order(file.fileno(), settings))
            progress.advance(1)
    yield from _medians("disk", found, shares)


def _disk_rate(fd: int, settings: Settings, size: int, kind: str, seed: int) -> tuple[float, float]:
    """(rows a second, share of the pages touched that came from the disk)."""
    with _mapped(fd) as memory:
        before = _bytes_from_disk()
        rate, rows = _machine.row_rate(
            memory,
            size,
            settings.threads,
            settings.file_seconds,
            update=kind == "update",
            mapped_file=True,
            seed=1 + seed * 64 + size,
        )
        came = _bytes_from_disk() - before
    # Rows do not cross pages where their size divides a page's; a row drawn twice is in memory already.
    pages = settings.file_bytes / mmap.PAGESIZE
    touched = pages * -np.expm1(-rows * max(1.0, size / mmap.PAGESIZE) / pages)
    return rate, min(came / (touched * mmap.PAGESIZE), 1.0)


@contextmanager
def _mapped(fd: int) -> Iterator[mmap.mmap]:
    """The file in memory, none of its pages there yet, each read when it is touched."""
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    with mmap.mmap(fd, 0) as memory:
        memory.madvise(mmap.MADV_RANDOM)
        yield memory


def _bytes_from_disk() -> int:
    """That the system has read for this process so far."""
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("read_bytes:"):
            return int(line.split()[1])
    return 0


def _fill(memory: mmap.mmap) -> None:
    """Gives the memory pages of its own."""
    view = np.frombuffer(memory, dtype=np.uint8)
    view.fill(1)
    del view  # or the memory could not be closed


def _write(fd: int, size: int, progress: Progress) -> None:
    # Not zeros, which a file system may keep as holes.
    block = np.random.default_rng(0).bytes(4 << 20)
    done = 0
    while done < size:
        done += os.write(fd, block[: size - done])
        progress.advance(len(block))
    os.fsync(fd)


def _read_in_order(fd: int, settings: Settings) -> float:
    """Bytes a second of reading the file's first part in order."""
    import time

    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    buffer = bytearray(8 << 20)
    began, at = time.perf_counter(), 0
    while time.perf_counter() - began < settings.file_seconds:
        at += os.preadv(fd, [buffer], at % settings.file_bytes)
    return at / (time.perf_counter() - began)


def _medians(
    tier: str,
    found: dict[tuple[int, str], list[float]],
    shares: dict[tuple[int, str], list[float]] | None = None,
) -> Iterator[Rate]:
    for (size, kind), rates in found.items():
        share = (shares or {}).get((size, kind))
        low, middle, high = (quantile(rates, q) for q in (0.2, 0.5, 0.8))
        yield Rate(tier, size, kind, middle, low, high, None if share is None else quantile(share, 0.5))
