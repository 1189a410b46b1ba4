"""Random calls of the tensor-train ops, and what a float64 evaluation allows them to differ by.

Hypothesis draws the batch and how it is run, and one seed per table, which gives its shape: a failing case
shrinks to few tables and bags. Numbers come from a seed too: drawing each would take longer than the ops.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from torch import Tensor

from recsys_opt import ops, reference

OPTIONS = ("cores_per_table", "num_embeddings", "pooling_modes", "padding_idx")
WIDEST_ISA = ops.tt_limit_isa(2)


@dataclass
class Case:
    """Arguments of one call, and how to run it."""

    indices: Tensor
    offsets: Tensor
    cores: list[Tensor]
    options: dict[str, list[int]]
    weights: Tensor | None = None
    upstream: Tensor | None = None
    isa: int = 2
    threads: int = 1
    notes: str = ""

    def call(self, op: Callable[..., Tensor]) -> Tensor:
        return op(self.indices, self.offsets, self.cores, **self.options, per_sample_weights=self.weights)

    def leaves(self) -> list[Tensor]:
        """What gets a gradient."""
        return [*self.cores, *([] if self.weights is None else [self.weights])]

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Case:
        """The case with every floating-point tensor changed."""
        assert self.upstream is not None
        return replace(
            self,
            cores=[change(core.detach()).requires_grad_() for core in self.cores],
            weights=None if self.weights is None else change(self.weights.detach()).requires_grad_(),
            upstream=change(self.upstream),
        )

    def results(self, op: Callable[..., Tensor]) -> list[Tensor]:
        """The output and the gradient of every leaf."""
        output = self.call(op)
        return [output.detach(), *torch.autograd.grad(output, self.leaves(), self.upstream)]


def rounding_steps(case: Case) -> list[int]:
    """Most roundings between the inputs and an element of each of `case.results`, in any order of summation.

    An element of a result is a sum of products. A multiplication costs one rounding, a sum of n terms at most
    n - 1, so an element costs at most the number of its multiplications plus the lengths of the nested sums:
    the bonds, the columns that a gradient contracts, the lookups that share a slice.
    """
    per_table, first = [], 0
    features = len(case.options["cores_per_table"])
    batch = (len(case.offsets) - 1) // features
    forward, backward = [], []
    for t, d in enumerate(case.options["cores_per_table"]):
        cores = case.cores[first : first + d]
        first += d
        lookups = int(case.offsets[(t + 1) * batch] - case.offsets[t * batch])
        bonds = sum(core.shape[3] for core in cores)
        columns = math.prod(core.shape[1] for core in cores)
        forward.append(bonds + lookups + d + 2)
        backward.append(
            bonds + 2 * lookups * columns + sum(c.shape[1] * c.shape[3] for c in cores) + 2 * d + 3
        )
        per_table += [backward[-1]] * d
    weights = [] if case.weights is None else [max(backward)]
    return [max(forward), *per_table, *weights]


def check(case: Case) -> None:
    """Asserts that the op's values and gradients are the float64 reference's, but for rounding.

    The bound is Higham's (Accuracy and Stability of Numerical Algorithms, section 3.1) for sums of products:
    an element that at most n roundings reach errs by at most n u / (1 - n u) times the same sum over absolute
    values. The reference, in float64, may err by as much at its own u.
    """
    with running(case):
        got = case.results(ops.tt_embedding_bag)
    exact = case.mapped(Tensor.double).results(reference.tt_embedding_bag)
    sizes = case.mapped(lambda t: t.double().abs()).results(reference.tt_embedding_bag)
    kinds = ["values", *(f"gradient of core {k}" for k in range(len(case.cores))), "gradient of the weights"]
    for kind, mine, right, size, steps in zip(kinds, got, exact, sizes, rounding_steps(case), strict=False):
        assert mine.dtype == case.cores[0].dtype
        assert mine.shape == right.shape, kind
        unit = torch.finfo(mine.dtype).eps / 2 * steps + torch.finfo(torch.float64).eps / 2 * steps
        bound = unit / (1 - unit) * size + torch.finfo(mine.dtype).tiny
        wrong = (mine.double() - right).abs() > bound
        if wrong.any() or not mine.isfinite().all():
            where = tuple(wrong.nonzero()[0].tolist()) if wrong.any() else ()
            raise AssertionError(
                f"{kind}{list(where)}: {mine[where]} instead of {right[where]}, allowed {bound[where]}; "
                f"{case.notes}"
            )


@contextmanager
def running(case: Case) -> Iterator[None]:
    """Holds the kernels to the case's instruction set and threads; memory that they do not write is NaN."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    try:
        ops.tt_limit_isa(case.isa)
        torch.set_num_threads(case.threads)
        torch.use_deterministic_algorithms(True)  # with it, torch fills new tensors
        yield
    finally:
        ops.tt_limit_isa(2)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)


# --- drawing ---

PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67)
RANKS = (1, 8, 16, 32, 48, 64, 70)
ID_KINDS = ("uniform", "few", "ends", "one")
BAG_KINDS = ("jagged", "one", "long", "jagged", "at most one", "empty")


def strided(tensor: Tensor) -> Tensor:
    """The same numbers, every second one of a larger tensor."""
    return torch.stack([tensor, tensor], dim=-1)[..., 0]


def random_numbers(shape: Sequence[int], dtype: torch.dtype, g: torch.Generator) -> Tensor:
    return torch.randn(tuple(shape), generator=g, dtype=torch.float64).to(dtype)


def table_shape(seed: int, most_rank: int = 70) -> tuple[list[int], list[int], list[int], int]:
    """Row factors, column factors, ranks and rows of one table."""
    rng = random.Random(seed)
    d = rng.randint(2, 4)
    if rng.random() < 0.1:  # beyond 32 bits, in three or four cores so that they stay small
        d = max(d, 3)
        p = [math.ceil(2 ** (33 / d))] * d
        ranks = [rng.randint(1, 3) for _ in range(d - 1)]
        return p, [rng.randint(1, 2) for _ in range(d)], ranks, math.prod(p) - rng.randint(0, 3)
    p = [rng.choice(PRIMES) if rng.random() < 0.5 else rng.randint(1, 6) for _ in range(d)]
    q = [rng.randint(1, 5 if d < 4 else 3) for _ in range(d)]
    most = min(6, most_rank) if rng.random() < 0.4 else most_rank
    choices = (lambda: rng.choice(RANKS), lambda: rng.choice(PRIMES), lambda: rng.randint(1, 70))
    ranks = [min(most, rng.choice(choices)()) for _ in range(d - 1)]
    # The cores may make more rows than the table has.
    return p, q, ranks, max(1, math.prod(p) - rng.randint(0, math.prod(p[1:])))


def draw_ids(kind: str, rows: int, count: int, g: torch.Generator) -> Tensor:
    if kind == "ends":
        return torch.randint(0, 2, (count,), generator=g) * (rows - 1)
    if kind == "one":
        return torch.randint(0, rows, (1,), generator=g).expand(count)
    few = torch.randint(0, rows, (3,), generator=g)
    if kind == "few":
        return few[torch.randint(0, 3, (count,), generator=g)]
    return torch.randint(0, rows, (count,), generator=g)


def draw_lengths(kind: str, batch: int, g: torch.Generator) -> Tensor:
    most = {"one": 1, "jagged": 4, "long": 12, "empty": 0, "at most one": 1}[kind]
    if kind == "one":
        return torch.ones(batch, dtype=torch.int64)
    return torch.randint(0, most + 1, (batch,), generator=g)


@st.composite
def cases(
    draw: st.DrawFn, tables: int = 4, batches: Sequence[int] = (*range(1, 10), 0), most_rank: int = 70
) -> Case:
    """A call over up to `tables` tables, now and then over 20 small ones."""
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    seeds = draw(st.lists(st.integers(0, 2**16), min_size=1, max_size=tables))
    if tables > 1 and seeds[0] % 16 == 0:
        seeds, most_rank = list(range(seeds[0], seeds[0] + 20)), 6
    size = draw(st.sampled_from(batches))
    weighted = draw(st.booleans())
    dtype = draw(st.sampled_from((torch.float32, torch.float64)))
    bags, id_kind = draw(st.sampled_from(BAG_KINDS)), draw(st.sampled_from(ID_KINDS))
    shapes = [table_shape(seed, most_rank) for seed in seeds]
    cores, ids, lengths = [], [], []
    options: dict[str, list[int]] = {name: [] for name in OPTIONS}
    for p, q, ranks, rows in shapes:
        bonds = [1, *ranks, 1]
        cores += [random_numbers((p[k], q[k], bonds[k], bonds[k + 1]), dtype, g) for k in range(len(p))]
        lengths.append(draw_lengths(bags, size, g))
        ids.append(draw_ids(id_kind, rows, int(lengths[-1].sum()), g))
        options["cores_per_table"].append(len(p))
        options["num_embeddings"].append(rows)
        options["pooling_modes"].append(0 if weighted else int(torch.randint(0, 2, (1,), generator=g)))
        padding = (-1, 0, rows - 1, int(ids[-1][0]) if len(ids[-1]) else -1)
        options["padding_idx"].append(padding[int(torch.randint(0, 4, (1,), generator=g))])
    narrow = draw(st.booleans()) and max(options["num_embeddings"]) < 2**31
    after = torch.full((draw(st.integers(0, 2)),), -5)  # behind the last bag: of no bag
    indices = torch.cat([*ids, after]).to(torch.int32 if narrow else torch.int64)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), torch.cat(lengths).cumsum(0)])
    offsets = offsets.to(draw(st.sampled_from((torch.int32, torch.int64))))
    weights = random_numbers(indices.shape, dtype, g) if weighted else None
    upstream = random_numbers((size, sum(math.prod(q) for _, q, _, _ in shapes)), dtype, g)
    laid_out = draw(st.sampled_from((Tensor.contiguous, Tensor.contiguous, strided)))
    return Case(
        laid_out(indices),
        laid_out(offsets),
        [laid_out(core).requires_grad_() for core in cores],
        options,
        None if weights is None else laid_out(weights).requires_grad_(),
        laid_out(upstream),
        isa=min(draw(st.integers(0, 2)), WIDEST_ISA),
        threads=draw(st.sampled_from((1, 1, 1, 1, 2, 3))),
        notes=f"bags {bags}, ids {id_kind}, {dtype}, shapes {shapes}",
    )
