"""The least that a lookup or an update must do, and the time that the machine's ceilings allow for it.

A tensor train must multiply each distinct prefix of a batch once and each distinct row once, read the slices
of the cores that the batch uses, and write the output. A dense table must read each distinct row. An update
must do the forward work, multiply for both factors of every product, and read and write what it changes.
Whoever does more (a product for every lookup, say) has a smaller share of the roof.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from recsys_opt.bench.ceilings import Ceilings
from recsys_opt.bench.tt_cases import Case

_FLOAT, _ID = 4, 8
_SAMPLED = 8  # batches that are counted


@dataclass(frozen=True)
class Distinct:
    """Means over batches."""

    rows: float
    prefixes: tuple[float, ...]
    """Distinct (i_0 .. i_k) for k = 0 .. d - 1; the last are the rows."""
    slices: tuple[float, ...]
    """Distinct i_k."""


@dataclass(frozen=True)
class Need:
    """The least work of one call."""

    flops: float
    streamed_bytes: float
    """Read or written in order, or small enough to be read once."""
    gathered_bytes: float
    """Read or written row by row at random places."""

    def roof_s(self, ceilings: Ceilings, row_bytes: int, stored_bytes: int, *, bf16: bool = False) -> float:
        """The time below which no call can be: computing and moving may overlap, moving twice may not.

        What lies in order, and a whole table that fits the last level's cache, may come from that cache; rows
        of a larger table come from memory. bf16: products are of bf16 operands.
        """
        moving = self.streamed_bytes / ceilings.read_rate(0)
        if self.gathered_bytes and stored_bytes > ceilings.cache_bytes:
            moving += self.gathered_bytes / ceilings.gather_bytes_per_s[row_bytes]
        else:
            moving += self.gathered_bytes / ceilings.read_rate(0)
        rate = ceilings.bf16_flops_per_s if bf16 else ceilings.fp32_flops_per_s
        return max(self.flops / rate, moving)


def count_distinct(case: Case, batches: Sequence[Tensor]) -> Distinct:
    """Distinct rows, prefixes and slices of a batch, on average."""
    sample = [batch.cpu() for batch in batches[:_SAMPLED]]
    prefixes: list[float] = []
    slices: list[float] = []
    below = 1
    for n in reversed(case.shape.p):
        quotients = [batch // below for batch in sample]
        prefixes.insert(0, sum(q.unique().numel() for q in quotients) / len(sample))
        slices.insert(0, sum((q % n).unique().numel() for q in quotients) / len(sample))
        below *= n
    return Distinct(prefixes[-1], tuple(prefixes), tuple(slices))


def need_of(candidate: str, work: str, case: Case, distinct: Distinct) -> Need:
    """The least work of a candidate's kind of table."""
    outer = case.lookups * _ID + case.batch_size * (_ID + case.shape.embedding_dim * _FLOAT)
    if candidate in ("dense", "fbgemm", "tt-dense"):
        rows = distinct.rows * case.shape.embedding_dim * _FLOAT
        adds = case.lookups * case.shape.embedding_dim
        # An update reads and writes its rows; the lookup before it may have left them in the caches.
        return {
            "forward": Need(adds, outer, rows),
            "backward": Need(adds, outer, rows if candidate == "fbgemm" else 0),
            "step": Need(3 * adds, 2 * outer, 2 * rows),
        }[work]
    flops, cores = 0.0, 0.0
    ranks = (1, *(case.rank for _ in case.shape.p[1:]), 1)
    columns = 1
    for k, (q, used) in enumerate(zip(case.shape.q, distinct.slices, strict=True)):
        cores += used * q * ranks[k] * ranks[k + 1] * _FLOAT
        if k and not (candidate.startswith("tt-prefix") and k == 1):
            flops += distinct.prefixes[k] * 2 * columns * ranks[k] * q * ranks[k + 1]
        columns *= q
    if candidate.startswith("tt-prefix"):  # the product of the first two cores is stored
        stored = distinct.prefixes[1] * case.shape.q[0] * case.shape.q[1] * case.rank * _FLOAT
        if candidate == "tt-prefix-bf16":  # half the bytes, and two products at once
            flops, stored, outer = (
                flops / 2,
                stored / 2,
                outer - 2 * case.batch_size * case.shape.embedding_dim,
            )
        return Need(flops, outer + stored, 0)
    return {
        "forward": Need(flops, outer + cores, 0),
        "backward": Need(2 * flops, outer + 2 * cores, 0),
        "step": Need(3 * flops, 2 * outer + 3 * cores, 0),
    }[work]
