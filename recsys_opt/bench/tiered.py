"""Tables in two tiers beside nn.EmbeddingBag and tables in one: what the split and its remap cost."""

from __future__ import annotations

import ctypes
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from recsys_opt.bench.measure import CudaClock, Task, WallClock, take_turns
from recsys_opt.bench.tt_cases import FEWEST_BATCHES, MOST_BATCHES, POOL_LOOKUPS, draw_ids
from recsys_opt.bench.tt_cases import Settings as Ids
from recsys_opt.embeddings.dense import DenseEmbeddingBag
from recsys_opt.embeddings.fused_update import FusedUpdate
from recsys_opt.embeddings.tiered import TieredEmbeddingBag
from recsys_opt.errors import InputError
from recsys_opt.progress import Progress

WORKS = ("forward", "step")
"""forward without gradients; forward + backward + update."""
PLACES = {
    "memory": "the cold tier in memory; pinned, on a GPU",
    "file": "the cold tier in a memory-mapped file",
    "disk": "as file, with its pages put out of memory before each call",
    "disk-unasked": "as disk, with no page asked for before the lookup needs it",
    "ranks": "the cold tier in memory, and ids that are ranks: no remap",
    "whole": "in memory; the first so many of the tables wholly hot, the others wholly cold",
}
_IN_FILES = ("file", "disk", "disk-unasked")
_MADV_PAGEOUT, _MS_SYNC = 21, 4  # linux/mman.h
LEARNING_RATE = 0.01


@dataclass(frozen=True)
class Settings:
    """What is measured: every split in every place, on every batch."""

    num_embeddings: int = 10_131_227
    embedding_dim: int = 16
    tables: int = 1
    hot_shares: tuple[float, ...] = (0.0, 0.01, 0.1, 0.5, 1.0)
    places: tuple[str, ...] = ("memory", "file", "ranks")
    batch_sizes: tuple[int, ...] = (2048, 65536)
    works: tuple[str, ...] = WORKS
    algorithm: str = "sgd"
    """nn.EmbeddingBag is left out of the steps of others than SGD."""
    zipf_exponent: float = 1.05
    threads: int = 1
    rounds: int = 10
    block_ms: float = 30.0
    device: str = "cpu"
    cold_dir: Path | None = None
    """For the files; None: the system's folder for temporary ones."""

    def __post_init__(self) -> None:
        if min(self.num_embeddings, self.embedding_dim, self.tables, *self.batch_sizes) < 1:
            raise InputError("rows, columns, tables and batch sizes must all be at least 1")
        if min(self.threads, self.rounds) < 1 or not self.zipf_exponent > 0:
            raise InputError("threads and rounds must be at least 1, the Zipf exponent above 0")
        for share in self.hot_shares:
            if not 0 <= share <= 1:
                raise InputError(f"hot share {share}; it must be between 0 and 1")
        for what, values, known in (("place", self.places, PLACES), ("work", self.works, WORKS)):
            for name in values:
                if name not in known:
                    raise InputError(f"there is no {what} {name!r}; choose from {', '.join(known)}")
        if self.algorithm not in ("sgd", "adagrad", "rowwise_adagrad"):
            raise InputError(f"algorithm = {self.algorithm!r}; it must be sgd, adagrad or rowwise_adagrad")
        if set(_IN_FILES) & set(self.places) and self.device != "cpu":
            raise InputError(f"files are for the CPU; device = {self.device!r}: leave out the place 'file'")


Lookup = Callable[[Tensor], Tensor]
"""From the ids of all tables, table after table, to their rows side by side."""


@dataclass(frozen=True)
class Candidate:
    """A way to hold the tables."""

    name: str
    lookup: Lookup
    finish: Callable[[], object]
    """What comes behind the backward pass of a step."""
    takes_ranks: bool = False
    prepare: Callable[[], object] | None = None
    """What comes before each call, without being timed."""
    works: tuple[str, ...] = WORKS


def run(settings: Settings, progress: Progress) -> list[dict[str, Any]]:
    """Measures; one row per split, place, work and batch, and the others beside each split."""
    before = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        return _run(settings, progress)
    finally:
        torch.set_num_threads(before)


def _run(settings: Settings, progress: Progress) -> list[dict[str, Any]]:
    # The ids as `draw_ids` scatters them: rank r is the id r * multiplier % rows.
    rows = settings.num_embeddings
    ranking = (torch.arange(rows, dtype=torch.int64) * 2_654_435_761) % rows
    rank_of = torch.empty_like(ranking).index_copy_(0, ranking, torch.arange(rows))
    others = [_plain(settings), _dense(settings)]
    progress.start("splits", len(settings.hot_shares), "split")
    found = []
    with tempfile.TemporaryDirectory(dir=settings.cold_dir) as folder:
        tiered = {place: _Tiered(settings, place, ranking, Path(folder)) for place in settings.places}
        for share in settings.hot_shares:
            candidates = [*others, *(own.at(share) for own in tiered.values())]
            for batch_size in settings.batch_sizes:
                for work in settings.works:
                    found += _measure(settings, share, candidates, rank_of, batch_size, work)
            progress.advance(1)
    progress.finish()
    return found


def _plain(settings: Settings) -> Candidate:
    shape = (settings.num_embeddings, settings.embedding_dim)
    bags = [
        nn.EmbeddingBag(
            settings.num_embeddings,
            settings.embedding_dim,
            mode="sum",
            sparse=True,
            _weight=torch.full(shape, 0.01, device=settings.device),
        )
        for _ in range(settings.tables)
    ]
    optimizer = torch.optim.SGD([bag.weight for bag in bags], lr=LEARNING_RATE)

    def lookup(ids: Tensor) -> Tensor:
        parts = ids.view(settings.tables, -1)
        offsets = torch.arange(parts.shape[1], device=ids.device)
        made = [bag(part, offsets) for bag, part in zip(bags, parts, strict=True)]
        return made[0] if len(made) == 1 else torch.cat(made, dim=1)

    def finish() -> None:
        optimizer.step()
        optimizer.zero_grad()

    works = WORKS if settings.algorithm == "sgd" else ("forward",)
    return Candidate("nn.EmbeddingBag", lookup, finish, works=works)


def _dense(settings: Settings) -> Candidate:
    # There is no kernel of dense tables for a GPU: there a table is wholly hot instead.
    rows, dim = settings.num_embeddings, settings.embedding_dim
    if settings.device != "cpu":
        return _grouped("one tier", settings, [_bag(settings, rows, None) for _ in range(settings.tables)])
    return _grouped("one tier", settings, [DenseEmbeddingBag(rows, dim) for _ in range(settings.tables)])


class _Tiered:
    """Tables in a place, which are split anew for each share."""

    def __init__(self, settings: Settings, place: str, ranking: Tensor, folder: Path) -> None:
        self._settings, self._place = settings, place
        ranked = ranking if place in ("memory", *_IN_FILES) else None
        cold_dir = folder if place in _IN_FILES else None
        self._bags = [_bag(settings, 0, ranked, cold_dir) for _ in range(settings.tables)]

    def at(self, share: float) -> Candidate:
        """With so many of the rows in the hot tier."""
        rows, tables = self._settings.num_embeddings, self._settings.tables
        whole = round(share * tables)
        for t, bag in enumerate(self._bags):
            bag.fuse_update(None)
            bag.set_hot_rows((rows if t < whole else 0) if self._place == "whole" else round(share * rows))
            bag.ask_ahead = {"disk": True, "disk-unasked": False}.get(self._place)
        candidate = _grouped(f"tiered, {self._place}", self._settings, self._bags)
        if self._place.startswith("disk"):
            return replace(candidate, prepare=self._page_out)
        return replace(candidate, takes_ranks=self._place == "ranks")

    def _page_out(self) -> None:
        """Writes the files' pages to the disk and takes them out of memory."""
        system = ctypes.CDLL(None)
        for bag in self._bags:
            for tensor in (bag.cold, *(s for n, s in bag.update_state().items() if n.startswith("cold"))):
                size = ctypes.c_size_t(tensor.numel() * tensor.element_size())
                system.msync(ctypes.c_void_p(tensor.data_ptr()), size, _MS_SYNC)
                system.madvise(ctypes.c_void_p(tensor.data_ptr()), size, _MADV_PAGEOUT)


def _bag(
    settings: Settings, hot_rows: int, ranking: Tensor | None, cold_dir: Path | None = None
) -> TieredEmbeddingBag:
    return TieredEmbeddingBag(
        settings.num_embeddings,
        settings.embedding_dim,
        hot_rows,
        ranking=ranking,
        cold_dir=cold_dir,
        device=settings.device,
    )


def _grouped(name: str, settings: Settings, bags: Sequence[Any]) -> Candidate:
    update = FusedUpdate(settings.algorithm, LEARNING_RATE)  # type: ignore[arg-type]
    for bag in bags:
        bag.fuse_update(update)

    def lookup(ids: Tensor) -> Tensor:
        if settings.tables == 1:  # as a user of one table calls it, as nn.EmbeddingBag is called
            return cast(Tensor, bags[0](ids, torch.arange(len(ids), device=ids.device)))
        return cast(Tensor, type(bags[0]).forward_group(bags, ids))

    return Candidate(name, lookup, lambda: None)


def _measure(
    settings: Settings,
    share: float,
    candidates: Sequence[Candidate],
    rank_of: Tensor,
    batch_size: int,
    work: str,
) -> list[dict[str, Any]]:
    count = max(FEWEST_BATCHES, min(-(-POOL_LOOKUPS // (batch_size * settings.tables)), MOST_BATCHES))
    law = Ids(num_embeddings=settings.num_embeddings, zipf_exponent=settings.zipf_exponent)
    lookups = batch_size * settings.tables
    ids = draw_ids("zipf", count * lookups, law, 0)
    ranks = rank_of[ids]
    hot = float((ranks < round(share * settings.num_embeddings)).double().mean())
    batches = {kind: list(t.to(settings.device).split(lookups)) for kind, t in ((False, ids), (True, ranks))}
    upstream = (
        torch.randn(batch_size, settings.tables * settings.embedding_dim, device=settings.device) * 1e-3
    )
    tasks = {
        c.name: Task(_call(c, batches[c.takes_ranks], work, upstream), c.prepare)
        for c in candidates
        if work in c.works
    }
    clock = WallClock() if settings.device == "cpu" else CudaClock()
    found = take_turns(tasks, rounds=settings.rounds, block_s=settings.block_ms / 1e3, clock=clock)
    made = []
    for name, turns in found.items():
        timing = turns.timing()
        row: dict[str, Any] = {"candidate": name, "hot_share": share, "hot_lookups": round(hot, 4)}
        row |= {"work": work, "batch_size": batch_size, "tables": settings.tables}
        row |= {"median_us": round(1e6 * timing.median_s, 2), "p20_us": round(1e6 * timing.p20_s, 2)}
        row |= {"p80_us": round(1e6 * timing.p80_s, 2), "calls": timing.repeats}
        for other, key in (("nn.EmbeddingBag", "ratio"), ("one tier", "ratio_to_one_tier")):
            if other in found and name != other:
                row[key] = round(statistics.median(turns.ratios(found[other])), 3)
        made.append(row)
    return made


def _call(
    candidate: Candidate, batches: Sequence[Tensor], work: str, upstream: Tensor
) -> Callable[[], object]:
    turn = iter(range(1 << 62))

    def forward() -> None:
        with torch.no_grad():
            candidate.lookup(batches[next(turn) % len(batches)])

    def step() -> None:
        candidate.lookup(batches[next(turn) % len(batches)]).backward(upstream)
        candidate.finish()

    return forward if work == "forward" else step


def text(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table for a person: a line per split and candidate, a column per work and batch."""
    columns = list(dict.fromkeys((row["work"], row["batch_size"]) for row in rows))
    cells = {(row["hot_share"], row["candidate"], row["work"], row["batch_size"]): row for row in rows}
    heads = "".join(f"{f'{work} {batch}':>19}" for work, batch in columns)
    lines = [f"{'hot rows (lookups)':<20}{'':<17}{heads}"]
    for share in dict.fromkeys(row["hot_share"] for row in rows):
        own = [row for row in rows if row["hot_share"] == share]
        split = f"{share:.0%} ({own[0]['hot_lookups']:.1%})"
        for name in dict.fromkeys(row["candidate"] for row in own):
            line = f"{split:<20}{name:<17}"
            for column in columns:
                row = cells.get((share, name, *column))
                ratio = "" if row is None or "ratio" not in row else f" ({row['ratio']:.2f})"
                line += (f"{row['median_us']:,.0f}{ratio}" if row else "-").rjust(19)
            lines.append(line)
            split = ""
    lines.append("median us, one id per bag (ratio to nn.EmbeddingBag, round by round)")
    return "\n".join(lines)
