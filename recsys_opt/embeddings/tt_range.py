"""The last core of a table and the rest, from passes over blocks of rows.

The table's last unfolding is M, [rows of prefixes x columns of prefixes, p_last q_last]; a block of whole
prefixes is some of its rows. Each function here finds r orthonormal right vectors V of M and returns
(rest, V^T) with rest = M V, from which the other cores follow in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from recsys_opt.embeddings.tt_source import RowSource
from recsys_opt.embeddings.tt_svd import RankRule, coefficients, descending_eigh, gram, present, split
from recsys_opt.errors import InputError
from recsys_opt.progress import Progress


@dataclass
class Unfolding:
    """M in blocks of whole prefixes."""

    source: RowSource
    p: Sequence[int]
    q: Sequence[int]
    block_prefixes: int
    progress: Progress
    work_bytes: int | None = None
    """Memory for what is made on the way; None: any."""
    passes: int = field(default=0, init=False)
    """Over the table, so far."""
    norm: float = field(default=0.0, init=False)
    """Frobenius norm of the table, once a pass is over."""
    last: Tensor | None = field(default=None, init=False)
    """[prefix columns, known columns of M]: the last prefix, where the table ends within it."""

    @property
    def columns(self) -> int:
        """Of M: p_last q_last."""
        return self.p[-1] * self.q[-1]

    @property
    def prefix_columns(self) -> int:
        """Rows of M for each prefix of a row."""
        return math.prod(self.q[:-1])

    @property
    def prefixes(self) -> int:
        """Prefixes, used or not."""
        return math.prod(self.p[:-1])

    @property
    def used(self) -> int:
        """Prefixes of rows that exist."""
        return -(-self.source.num_embeddings // self.p[-1])

    def check_rank(self, rank: int, dtype: torch.dtype) -> None:
        """Raises when the projection on `rank` vectors does not leave half of the work to what follows."""
        size = self.prefixes * self.prefix_columns * rank * dtype.itemsize
        if self.work_bytes is not None and 2 * size > self.work_bytes:
            raise InputError(
                f"the tolerance needs a rank of {rank} or more, and that {2 * size:,} bytes of work; "
                f"work_bytes is {self.work_bytes:,}: raise it or the tolerance"
            )

    def blocks(
        self, dtype: torch.dtype, what: str, *, fill_last: bool = False
    ) -> Iterator[tuple[int, Tensor]]:
        """(first prefix, rows of M) from one pass; the first pass refuses values that are not finite.

        Where the table ends within a prefix, that is kept in `last`, so that rows beyond the table do not
        have to be anything; unless there are few prefixes, or `fill_last` asks for it with zeros.
        """
        n, q = self.p[-1], self.q[-1]
        self.progress.start(f"pass {self.passes + 1}: {what}", self.source.num_embeddings, "rows")
        squared = 0.0
        for start, block in self.source.blocks(self.block_prefixes * n):
            if self.passes == 0:
                squared += checked_square(block, start)
            work = block.to(dtype)
            if known := work.shape[0] % n:
                if fill_last or (self.used - 1) * self.prefix_columns < 4 * self.columns:
                    work = torch.cat([work, work.new_zeros(n - known, work.shape[1])])
                else:
                    rest = work[-known:].view(known, self.prefix_columns, q)
                    self.last = rest.transpose(0, 1).reshape(self.prefix_columns, known * q)
                    work = work[:-known]
            if work.shape[0]:
                yield start // n, work.view(-1, n, self.prefix_columns, q).transpose(1, 2).reshape(-1, n * q)
            self.progress.advance(block.shape[0])
        if self.passes == 0:
            self.norm = math.sqrt(squared)
        self.passes += 1
        self.progress.finish()

    def projected(self, right: Tensor) -> Tensor:
        """M right, [prefixes, prefix columns, r], from one pass; zeros for `last`."""
        rest = right.new_zeros(self.prefixes, self.prefix_columns, right.shape[1])
        flat = rest.view(-1, right.shape[1])
        for prefix, block in self.blocks(right.dtype, "projection"):
            at = prefix * self.prefix_columns
            torch.mm(block, right, out=flat[at : at + block.shape[0]])
        return rest

    def complete(self, rest: Tensor, right: Tensor) -> Tensor:
        """rest [prefixes, prefix columns, r] with the last prefix by least squares on right [r, columns].

        Only vectors that the table has are used: a larger rank than it has brings others.
        """
        if self.last is not None:
            there = present(rest.flatten(0, 1))
            rest[self.used - 1][:, there] = coefficients(self.last, right[there, : self.last.shape[1]])
        return rest


def checked_square(block: Tensor, start: int) -> float:
    """The squared norm of a block of rows; raises for a NaN or an infinity, naming row and column."""
    squared = float(torch.linalg.vector_norm(block, dtype=torch.float64)) ** 2
    if not math.isfinite(squared):
        bad = (~torch.isfinite(block)).nonzero()
        if not bad.numel():
            raise InputError("the table's norm is beyond float64; scale it down")
        row, column = bad[0].tolist()
        raise InputError(
            f"weight[{start + row}, {column}] = {float(block[row, column])}; every entry must be finite: set "
            "such rows to 0, or train the table again"
        )
    return squared


def by_gram(table: Unfolding, rule: RankRule, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two passes: M^T M summed in float64, whose eigenvectors are M's right singular vectors; then M V.

    Exact but for singular values below 1e-8 of the largest.
    """
    n = table.columns
    total = torch.zeros(n, n, dtype=torch.float64, device=table.source.device)
    for _, block in table.blocks(torch.float64, "Gram matrix"):
        total.addmm_(block.T, block)
    rule.set_norm(table.norm**2)
    energies, vectors = descending_eigh(total)
    del total
    most = min(n, table.prefixes * table.prefix_columns)
    rank = rule.take(len(table.p) - 2, energies[:most])
    table.check_rank(rank, dtype)
    right = vectors[:, :rank].to(dtype)
    return table.complete(table.projected(right), right.T), right.T


def by_subspace(
    table: Unfolding,
    rule: RankRule,
    dtype: torch.dtype,
    *,
    oversampling: int,
    power_iterations: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """`power_iterations` + 1 passes: Q <- orth(M^T M Q) from a random Q, then an exact split of M Q.

    The range finder of Halko, Martinsson and Tropp (2011, algorithm 4.4) on M^T, products in `dtype`, sums
    and orthogonalisation in float64. For a tolerance, Q doubles until what lies outside it is within it.
    """
    n, bond = table.columns, len(table.p) - 2
    most = min(n, table.prefixes * table.prefix_columns)
    width = min((rule.ranks[bond] if rule.ranks else 32) + oversampling, most)
    generator = torch.Generator(table.source.device).manual_seed(seed)
    basis = torch.empty(n, 0, dtype=torch.float64, device=table.source.device)
    while True:
        table.check_rank(width, dtype)
        drawn = torch.randn(n, width - basis.shape[1], generator=generator, device=table.source.device)
        basis = torch.cat([basis, drawn.double()], 1)
        for _ in range(power_iterations):
            total = torch.zeros_like(basis)
            narrow = basis.to(dtype)
            for _, block in table.blocks(dtype, "range finder"):
                total += block.T @ (block @ narrow)
            basis = torch.linalg.qr(total).Q
        rest = table.projected(basis.to(dtype))
        if rule.tolerance is None:
            outside = 0.0
            break
        rule.set_norm(table.norm**2)
        seen = table.norm**2 - (0.0 if table.last is None else float(table.last.double().square().sum()))
        outside = max(seen - float(torch.linalg.vector_norm(rest, dtype=torch.float64)) ** 2, 0.0)
        if outside <= 0.5 * rule.allowed() or width == most:
            break
        width = min(2 * width, most)
    rest, right = narrowed(rest, basis.to(dtype), rule, bond, outside)
    return table.complete(rest, right), right


def narrowed(
    rest: Tensor, basis: Tensor, rule: RankRule, bond: int, outside: float = 0.0
) -> tuple[Tensor, Tensor]:
    """(rest W, (basis W)^T) for the right singular vectors W of `rest` that the rule keeps."""
    flat = rest.view(-1, rest.shape[2])
    energies, vectors = descending_eigh(gram(flat))
    mixed = vectors[:, : rule.take(bond, energies, outside)].to(basis.dtype)
    return (flat @ mixed).view(*rest.shape[:2], -1), (basis @ mixed).T


@dataclass(frozen=True)
class Probes:
    """Random sums of the table's rows, kept to estimate an error without another pass."""

    sums: Tensor
    """[count, columns] Theta M"""
    seed: int
    block_prefixes: int

    def estimate(self, interface: Iterable[Tensor], last: Tensor) -> tuple[float, int]:
        """An unbiased estimate of || M - interface last ||^2, and its degrees of freedom.

        For a standard normal vector t independent of an error E, the expectation of || t^T E ||^2 is
        || E ||^2. The factors do not depend on Theta.
        """
        sums = self.sums.clone()
        generator = torch.Generator(sums.device).manual_seed(self.seed)
        for part in interface:
            theta = _normal(sums.shape[0], part.shape[0], generator, part.dtype)
            sums -= ((theta @ part) @ last).double()
        return float(sums.square().sum()) / sums.shape[0], sums.shape[0]


def single_pass_width(rank: int, oversampling: int, columns: int, height: int) -> int:
    """Columns of the sketch of M: several times the rank, as no second pass can mend it."""
    return min(4 * rank + oversampling, columns, height)


def by_single_pass(
    table: Unfolding, rule: RankRule, dtype: torch.dtype, *, oversampling: int, seed: int, probes: int
) -> tuple[Tensor, Tensor, Probes]:
    """One pass: sketches M Omega and Psi M, and M ~ Q (Psi Q)^+ (Psi M) with Q = orth(M Omega).

    Tropp, Yurtsever, Udell and Cevher (2017, algorithm 7). A larger error than with more passes; for tables
    that can be read only once.
    """
    if rule.ranks is None:
        raise InputError(
            "a tolerance needs more than one pass over the table, but weight is an iterator, which can be "
            "read once; give tt_ranks, a list or other iterable that can be read again, or a file"
        )
    n, bond, device = table.columns, len(table.p) - 2, table.source.device
    height = table.prefixes * table.prefix_columns
    width = single_pass_width(rule.ranks[bond], oversampling, n, height)
    tall = 2 * width + 1
    omega = _normal(n, width, torch.Generator(device).manual_seed(seed), dtype)
    psi_seed, theta_seed = seed + 1, seed + 2
    psis = torch.Generator(device).manual_seed(psi_seed)
    thetas = torch.Generator(device).manual_seed(theta_seed)
    sketch = torch.zeros(height, width, dtype=dtype, device=device)
    co_sketch = torch.zeros(tall, n, dtype=torch.float64, device=device)
    sums = torch.zeros(probes, n, dtype=torch.float64, device=device)
    sizes = []
    for prefix, block in table.blocks(dtype, "sketches", fill_last=True):
        at = prefix * table.prefix_columns
        sketch[at : at + block.shape[0]] = block @ omega
        co_sketch += _normal(tall, block.shape[0], psis, dtype) @ block
        sums += _normal(probes, block.shape[0], thetas, dtype) @ block
        sizes.append(block.shape[0])
    rule.set_norm(table.norm**2)
    basis = _orthonormal(sketch)
    psis.manual_seed(psi_seed)
    seen, at = torch.zeros(tall, basis.shape[1], dtype=torch.float64, device=device), 0
    for size in sizes:
        seen += _normal(tall, size, psis, dtype) @ basis[at : at + size]
        at += size
    coefficients = torch.linalg.lstsq(seen, co_sketch, driver="gelsd" if device.type == "cpu" else None)
    left, right = split(coefficients.solution, bond, rule)  # Q's rows are orthonormal: a split of M too
    rest = (basis @ left.to(dtype)).view(table.prefixes, table.prefix_columns, -1)
    return rest, right.to(dtype), Probes(sums, theta_seed, table.block_prefixes)


def _orthonormal(matrix: Tensor) -> Tensor:
    """An orthonormal basis of the columns' span, in place, by Gram matrices in float64, twice for precision.

    Directions below 1e-6 of the largest are dropped: they are rounding errors.
    """
    for _ in range(2):
        energies, vectors = descending_eigh(gram(matrix))
        kept = int((energies > 1e-12 * energies[0]).sum())
        scaled = vectors[:, :kept] / energies[:kept].sqrt()
        if not kept:
            return matrix[:, :1]
        for rows in matrix.split(1 << 14):
            rows[:, :kept] = rows @ scaled.to(matrix.dtype)
        matrix = matrix[:, :kept]
    return matrix


def _normal(rows: int, columns: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    return torch.randn(rows, columns, generator=generator, dtype=dtype, device=generator.device)
