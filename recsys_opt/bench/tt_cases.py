"""What `bench tt` measures: tables, batches, ids, and the presets that combine them."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from recsys_opt.embeddings.tt_shapes import column_factors, row_factors
from recsys_opt.errors import InputError

IDS = ("uniform", "zipf")
WORKS = ("forward", "backward", "step")
"""forward without gradients; the backward pass alone; forward + backward + SGD update."""
CANDIDATES = {
    "dense": "nn.EmbeddingBag, sparse gradients, torch's SGD",
    "fbgemm": "FBGEMM's fused table, its SGD in the backward pass",
    "torch": "a tensor train by gathers and batched products in torch, torch's SGD",
    "tt": "TTEmbeddingBag, torch's SGD",
    "tt-fused": "TTEmbeddingBag, its SGD in the backward pass",
    "tt-graph": "tt as a CUDA graph; not the backward pass alone",
    "tt-fused-graph": "tt-fused as a CUDA graph; step only",
    "tt-bf16": "TTEmbeddingBag with bf16 products (ops.tt_allow_bf16), torch's SGD",
    "tt-fused-bf16": "TTEmbeddingBag with bf16 products, its SGD in the backward pass",
    "tt-cores": "TTEmbeddingBag frozen to its cores; forward only",
    "tt-prefix": "TTEmbeddingBag frozen to prefixes; forward only",
    "tt-prefix-bf16": "the same in bf16, half the bytes; forward only",
    "tt-dense": "TTEmbeddingBag frozen to the dense table; forward only",
}
GRAPHS = {"tt-graph": "tt", "tt-fused-graph": "tt-fused"}
"""Candidates that replay another's calls as a CUDA graph."""
BF16 = ("tt-bf16", "tt-fused-bf16")
EVICTED_BYTES = 64 << 20
"""What passes through the caches before each call of a cold case: twice a 32 MiB cache."""
POOL_LOOKUPS = 1 << 21
"""Lookups in the batches that a candidate cycles through: at 64 bytes a row, four times a 32 MiB cache."""
FEWEST_BATCHES, MOST_BATCHES = 4, 4096
# Those published for Criteo Kaggle's largest table, by rows and columns.
PUBLISHED_FACTORS = {(10_131_227, 16): ((200, 220, 250), (2, 2, 4))}


@dataclass(frozen=True)
class Shape:
    """A table and its tensor train."""

    num_embeddings: int
    embedding_dim: int
    p: tuple[int, ...]
    q: tuple[int, ...]

    @property
    def text(self) -> str:
        """For tables and records: "200,220,250 x 2,2,4"."""
        return f"{','.join(map(str, self.p))} x {','.join(map(str, self.q))}"


@dataclass(frozen=True)
class Case:
    """One combination to measure every candidate on."""

    shape: Shape
    rank: int
    ids: str
    bag_size: int
    batch_size: int
    threads: int

    @property
    def lookups(self) -> int:
        """Ids in a batch."""
        return self.batch_size * self.bag_size


@dataclass(frozen=True)
class Settings:
    """What is measured: every combination of these."""

    num_embeddings: int = 10_131_227
    embedding_dims: tuple[int, ...] = (16,)
    ranks: tuple[int, ...] = (32,)
    tt_p_shapes: tuple[int, ...] | None = None
    """None: the published factors of Kaggle's largest table, near-balanced ones of any other."""
    tt_q_shapes: tuple[tuple[int, ...], ...] = ()
    """Empty: the published ones of that table, the library's default for any other."""
    bag_sizes: tuple[int, ...] = (1,)
    batch_sizes: tuple[int, ...] = (2048, 65536)
    ids: tuple[str, ...] = ("zipf", "uniform")
    zipf_exponent: float = 1.05
    threads: tuple[int, ...] = (1,)
    works: tuple[str, ...] = WORKS
    rounds: int = 10
    block_ms: float = 30.0
    cold: bool = False
    """The caches hold other things when a call begins, as after a model's other layers."""
    device: str = "cpu"
    candidates: tuple[str, ...] = tuple(
        c for c in CANDIDATES if c not in GRAPHS and (c != "fbgemm" or importlib.util.find_spec("fbgemm_gpu"))
    )

    def __post_init__(self) -> None:
        counts = (self.num_embeddings, *self.embedding_dims, *self.bag_sizes, self.rounds)
        if min(*counts, *self.ranks, *self.batch_sizes, *self.threads) < 1:
            raise InputError(
                "rows, columns, ranks, bag sizes, batch sizes, threads and rounds must all be at least 1"
            )
        if not self.zipf_exponent > 0:
            raise InputError(f"zipf_exponent = {self.zipf_exponent}; it must be above 0")
        if not self.block_ms > 0:
            raise InputError(f"block_ms = {self.block_ms}; it must be above 0")
        for what, values, known in (
            ("candidate", self.candidates, CANDIDATES),
            ("work", self.works, WORKS),
            ("distribution of ids", self.ids, IDS),
        ):
            for name in values:
                if name not in known:
                    raise InputError(f"there is no {what} {name!r}; choose from {', '.join(known)}")
        for name in self.candidates:
            if name in GRAPHS and not self.device.startswith("cuda"):
                raise InputError(f"candidate {name!r} is a CUDA graph; device = {self.device!r} must be cuda")

    def shapes(self) -> Iterator[Shape]:
        """The tables."""
        for dim in self.embedding_dims:
            p, published = self.tt_p_shapes, None
            if p is None:
                p, published = PUBLISHED_FACTORS.get((self.num_embeddings, dim), (None, None))
            for q in self.tt_q_shapes or (published or column_factors(dim, len(p or (0, 0, 0))),):
                if math.prod(q) != dim:
                    raise InputError(f"tt_q_shapes {list(q)} make {math.prod(q)} columns, not {dim}")
                yield Shape(self.num_embeddings, dim, p or row_factors(self.num_embeddings, len(q)), q)

    def cases(self) -> Iterator[Case]:
        """Every combination; those of one table and rank follow each other."""
        for shape in self.shapes():
            for rank in self.ranks:
                for threads in self.threads:
                    for bag_size in self.bag_sizes:
                        for ids in self.ids:
                            for batch_size in self.batch_sizes:
                                yield Case(shape, rank, ids, bag_size, batch_size, threads)


def floors(base: Settings) -> list[Settings]:
    """What the README quotes: Kaggle's largest table, and a look in every other direction."""
    main = replace(base, ranks=(32,), batch_sizes=(2048, 16384, 65536), works=("forward", "step"))
    kinds = ("dense", "torch", "tt", "tt-fused", *BF16, *GRAPHS)
    less = tuple(c for c in base.candidates if c in kinds)
    two = (2048, 65536)
    zipf = replace(main, ids=("zipf",), batch_sizes=two, candidates=less, rounds=max(3, base.rounds // 2))
    cold = tuple(c for c in base.candidates if c not in ("torch", "tt-cores", "tt-dense"))
    # The library's own column factors beside the published ones.
    prefixes = tuple(c for c in base.candidates if c.startswith("tt-prefix"))
    own = replace(zipf, tt_q_shapes=(column_factors(16, 3),), candidates=less + prefixes)
    default = [own] if base.embedding_dims == (16,) and not base.tt_q_shapes else []
    return [
        main,
        *([replace(main, batch_sizes=two, candidates=cold, cold=True)] if base.device == "cpu" else []),
        replace(zipf, threads=(2,), candidates=less + ("fbgemm",) * ("fbgemm" in base.candidates)),
        *default,
        replace(zipf, ranks=(16, 64)),
        replace(zipf, bag_sizes=(20,)),
        replace(zipf, embedding_dims=(64, 128)),
    ]


def full(base: Settings) -> list[Settings]:
    """Everything: ranks, dimensions, bags, threads, batch sizes, distributions."""
    sizes = (512, 2048, 16384, 65536)
    less = tuple(c for c in base.candidates if c != "fbgemm")
    return [
        replace(base, ranks=(16, 32, 64), batch_sizes=sizes, threads=(1, 2)),
        replace(base, bag_sizes=(20,), batch_sizes=sizes, threads=(1, 2)),
        # Two copies of such tables, FBGEMM's beside torch's, would take 5 to 10 GB.
        replace(base, embedding_dims=(64, 128), batch_sizes=sizes, threads=(1, 2), candidates=less),
    ]


PRESETS = {"floors": floors, "full": full}


def draw_ids(kind: str, count: int, settings: Settings, seed: int) -> Tensor:
    """[count] int64 ids: uniform, or a power law over the rows (by inversion of its continuous form)."""
    rows, generator = settings.num_embeddings, torch.Generator().manual_seed(seed)
    if kind == "uniform":
        return torch.randint(0, rows, (count,), generator=generator)
    u = torch.rand(count, generator=generator, dtype=torch.float64)
    power = 1.0 - settings.zipf_exponent
    if abs(power) < 1e-9:
        rank = torch.exp(u * math.log(rows + 1))
    else:
        rank = (1.0 + u * ((rows + 1) ** power - 1.0)) ** (1.0 / power)
    # Hot rows are not neighbours: the multiplier is prime and larger than any table.
    return (rank.long().clamp(1, rows) - 1) * 2_654_435_761 % rows


def draw_batches(case: Case, settings: Settings) -> list[Tensor]:
    """Batches of ids [lookups], so many that their rows have left the caches when one comes round again."""
    count = max(FEWEST_BATCHES, min(-(-POOL_LOOKUPS // case.lookups), MOST_BATCHES))
    ids = draw_ids(case.ids, count * case.lookups, settings, 0).to(settings.device)
    return list(ids.split(case.lookups))
