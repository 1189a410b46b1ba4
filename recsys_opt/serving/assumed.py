"""Service times of a GPU that is not here, from a model's work and the GPU's figures: assumed.

A query is a chain of stages, each of some kernels. A stage takes as long as its kernels take to be started,
or as its work takes, whichever is longer; its work is the sum of matrix products, hashes and memory traffic:

    t(B) = fixed + 3 copies + bytes(B) / link + sum over stages of max(kernels x launch, work(B))

with a product of f operations taking (f + half_flops) / flops_per_s. What a GPU's kernels really do is not
in it: the figures are for comparing policies, until a GPU is measured.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path as FilePath
from statistics import NormalDist
from typing import Any

import numpy as np
from torch import nn

from recsys_opt.documents import from_document
from recsys_opt.embeddings.base import EmbeddingRepresentation
from recsys_opt.embeddings.dense import DenseEmbeddingBag
from recsys_opt.embeddings.dhe import DHEEmbeddingBag
from recsys_opt.embeddings.hybrid import HybridEmbeddingBag
from recsys_opt.embeddings.tt_freeze import Level
from recsys_opt.errors import InputError
from recsys_opt.models.dlrm import DLRM
from recsys_opt.quantities import byte_size
from recsys_opt.serving.frozen_tables import frozen_table
from recsys_opt.serving.profile import QUANTILES, ServiceTime

FORMAT = "recsys_opt.gpu"
VERSION = 1
PRESET_FOLDER = FilePath(__file__).parent / "presets"
PRESETS = tuple(sorted(path.stem for path in PRESET_FOLDER.glob("*.toml")))
_COPIES = 3
_NUMBER_BYTES = 4


@dataclass(frozen=True)
class GpuFigures:
    """A GPU in so many numbers."""

    name: str
    what: str
    source: str
    """Where the numbers are from."""
    memory_bytes: int
    fixed_s: float
    """Of a query, besides copies and kernels."""
    launch_s: float
    """From one kernel of a chain to the next."""
    copy_s: float
    """A copy of any size between host and device."""
    link_bytes_per_s: float
    """Of large copies."""
    flops_per_s: float
    """Of matrix products that fill the device."""
    half_flops: float
    """Of a matrix product that fills it to half."""
    hashes_per_s: float
    stream_bytes_per_s: float
    """Of device memory, read or written in order."""
    gather_bytes_per_s: float
    """Of rows read at random."""
    spread: float
    """Standard deviation of a time's logarithm."""
    grouped: bool
    """Whether tables of one kind are looked up, hashed or decoded by one kernel; false: by one each."""

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, (int, float)) and not 0 <= value < float("inf"):
                raise InputError(f"{f.name} = {value}; it must not be negative")
            if f.name.endswith(("_per_s", "_bytes")) and not value > 0:
                raise InputError(f"{f.name} = {value}; it must be above 0")


def gpu_figures(which: str) -> GpuFigures:
    """A preset by name, or a TOML file of the same form."""
    path = PRESET_FOLDER / f"{which}.toml" if which in PRESETS else FilePath(which)
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(
            f"there is no GPU {which!r}: name a preset ({', '.join(PRESETS)}) or a .toml file like theirs"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not whole, readable TOML ({error}); see {PRESET_FOLDER}") from None
    if (document.pop("format", None), document.pop("version", None)) != (FORMAT, VERSION):
        raise InputError(f'{path} must begin with format = "{FORMAT}" and version = {VERSION}')
    memory = document.get("memory_bytes")
    if isinstance(memory, str):
        document["memory_bytes"] = byte_size(memory)
    return from_document(GpuFigures, document, f"{path}: gpu")


@dataclass(frozen=True)
class Stage:
    """Some kernels of a query and their work, for each sample unless said otherwise."""

    name: str
    kernels: int
    products: tuple[int, ...] = ()
    """Operations of each matrix product."""
    hashes: int = 0
    gather_bytes: int = 0
    stream_bytes: int = 0
    weight_bytes: int = 0
    """Read once, whatever the batch."""

    def seconds(self, gpu: GpuFigures, batch: int) -> float:
        """Of a batch."""
        work = sum((f * batch + gpu.half_flops) / gpu.flops_per_s for f in self.products)
        work += batch * self.hashes / gpu.hashes_per_s
        work += batch * self.gather_bytes / gpu.gather_bytes_per_s
        work += (batch * self.stream_bytes + self.weight_bytes) / gpu.stream_bytes_per_s
        return max(self.kernels * gpu.launch_s, work)


def model_stages(model: DLRM, level: Level = "prefix", *, grouped: bool = True) -> list[Stage]:
    """The stages of a model whose tables are frozen as for serving; grouped: see `GpuFigures`."""
    bags = {c.name: frozen_table(model.embeddings.table(c.name), level) for c in model.embeddings.configs}
    owners = [bags[c.name] for c in model.embeddings.configs for _ in c.feature_names]
    vectors, dim = 1 + len(model.vector_order), model.dim
    pairs = vectors * (vectors - 1) // 2
    read = _NUMBER_BYTES * (vectors * dim + dim + pairs)
    interaction = Stage("interaction", 3, (2 * vectors * vectors * dim,), stream_bytes=2 * read)
    return [
        *_mlp_stages("bottom", model.bottom),
        *_table_stages(owners, grouped),
        interaction,
        *_mlp_stages("top", model.top),
        Stage("sigmoid", 1),
    ]


def assumed_times(
    stages: Sequence[Stage],
    gpu: GpuFigures,
    sizes: Sequence[int],
    *,
    sample_bytes: int,
    quantiles: int = QUANTILES,
) -> tuple[ServiceTime, ...]:
    """Times of a model on a GPU; `sample_bytes` go over the link."""
    normal = NormalDist()
    factors = np.exp([gpu.spread * normal.inv_cdf((k + 0.5) / quantiles) for k in range(quantiles)])
    factors /= factors.mean()
    times = []
    for size in sizes:
        seconds = gpu.fixed_s + _COPIES * gpu.copy_s + size * sample_bytes / gpu.link_bytes_per_s
        seconds += sum(stage.seconds(gpu, size) for stage in stages)
        times.append(ServiceTime(size, tuple(float(f"{seconds * f:.5g}") for f in factors), 0))
    return tuple(times)


def sample_bytes(model: DLRM) -> int:
    """Of a sample's numbers, ids and probability."""
    return _NUMBER_BYTES * (model.dense_features + len(model.embeddings.feature_names) + 1)


def _mlp_stages(name: str, mlp: nn.Sequential) -> Iterator[Stage]:
    """A product with bias and activation is one kernel."""
    for at, layer in enumerate(m for m in mlp if isinstance(m, nn.Linear)):
        n, m = layer.in_features, layer.out_features
        yield Stage(
            f"{name} {at}",
            1,
            (2 * n * m,),
            stream_bytes=_NUMBER_BYTES * (n + m),
            weight_bytes=_NUMBER_BYTES * n * m,
        )


def _table_stages(bags: Sequence[EmbeddingRepresentation], grouped: bool) -> Iterator[Stage]:
    """All features' tables; those that are made alike are made by the same kernels where they are grouped."""

    def kernels(each: int, tables: int) -> int:
        return each if grouped else each * tables

    parts = [part for bag in bags for part in _parts(bag)]
    stored = [p for p in parts if isinstance(p, DenseEmbeddingBag)]
    hashed = [p for p in parts if isinstance(p, DHEEmbeddingBag)]
    others = [p for p in parts if not isinstance(p, (DenseEmbeddingBag, DHEEmbeddingBag))]
    if stored:
        row = sum(p.embedding_dim * p.weight.element_size() for p in stored)
        yield Stage("stored rows", kernels(2, len(stored)), gather_bytes=row, stream_bytes=row)
    if hashed:
        made = sum(p.hashes.shape[1] for p in hashed)
        yield Stage("hashes", kernels(1, len(hashed)), hashes=made, stream_bytes=_NUMBER_BYTES * made)
        for at in range(max(len(p.weights) for p in hashed)):
            layers = [p.weights[at] for p in hashed if at < len(p.weights)]
            yield Stage(
                f"decoder {at}",
                kernels(1, len(layers)),  # in a group a batched product over the tables
                (sum(2 * w.numel() for w in layers),),
                stream_bytes=_NUMBER_BYTES * sum(sum(w.shape) for w in layers),
                weight_bytes=_NUMBER_BYTES * sum(w.numel() for w in layers),
            )
    if others:
        flops = sum(p.flops_per_lookup() for p in others)
        # A dot product's two operations read two numbers, one of which stays near from row to row.
        yield Stage("made rows", kernels(2, len(others)), (flops,), gather_bytes=_NUMBER_BYTES * flops // 4)


def _parts(bag: EmbeddingRepresentation) -> list[EmbeddingRepresentation]:
    return [bag.table, bag.dhe] if isinstance(bag, HybridEmbeddingBag) else [bag]


def figures_json(gpu: GpuFigures) -> dict[str, Any]:
    """JSON values only."""
    return {f.name: getattr(gpu, f.name) for f in fields(gpu)}
