"""The candidates of `bench tt`: how each is built, and what one timed call of it does."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from recsys_opt import ops, reference
from recsys_opt.bench.measure import Task
from recsys_opt.bench.tt_cases import GRAPHS, Case, Shape
from recsys_opt.embeddings.fused_update import FusedUpdate, FusesUpdate
from recsys_opt.embeddings.registry import build_embedding
from recsys_opt.embeddings.tt import TTEmbeddingBag
from recsys_opt.embeddings.tt_freeze import Level
from recsys_opt.tables import TableConfig

LEARNING_RATE = 0.01
FROZEN: dict[str, tuple[Level, torch.dtype | None]] = {
    "tt-cores": ("cores", None),
    "tt-prefix": ("prefix", None),
    "tt-prefix-bf16": ("prefix", torch.bfloat16),
    "tt-dense": ("dense", None),
}
MOST_GATHERED_BYTES = 6 << 30
"""Memory that the tensor train in torch may take for its gathers; where it needs more it is left out."""


class GatheredTT(nn.Module):
    """The tensor train without a kernel: each lookup gathers its slices of the cores and multiplies them."""

    def __init__(self, bag: TTEmbeddingBag) -> None:
        super().__init__()
        self.embedding_dim = bag.embedding_dim
        self.cores = nn.ParameterList(nn.Parameter(core.detach().clone()) for core in bag.cores)

    def forward(self, ids: Tensor, offsets: Tensor) -> Tensor:
        """Bags of equal size."""
        rows = reference.tt_rows(ids, list(self.cores))
        return rows.view(offsets.numel(), -1, self.embedding_dim).sum(1)


class Tables:
    """The candidates' modules, built when first asked for; of one table at a time, since tables are large."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._table: tuple[int, int] | None = None
        self._train: tuple[Shape, int] | None = None
        self._tables: dict[str, nn.Module] = {}
        self._trains: dict[str, nn.Module] = {}

    def of(self, case: Case, names: Sequence[str]) -> dict[str, nn.Module]:
        """The modules for a case, by candidate."""
        table = (case.shape.num_embeddings, case.shape.embedding_dim)
        if table != self._table:
            self._table, self._tables = table, {}
        if (case.shape, case.rank) != self._train:
            self._train, self._trains = (case.shape, case.rank), {}
        for name in names:
            if name in ("dense", "fbgemm"):
                if name not in self._tables:
                    self._tables[name] = _dense_table(name, *table, self._device)
            elif (own := GRAPHS.get(name, name)) not in self._trains:
                self._trains[own] = _train(own, case, self._device)
        return {name: (self._tables | self._trains)[GRAPHS.get(name, name)] for name in names}


def _dense_table(name: str, rows: int, columns: int, device: str) -> nn.Module:
    if name == "dense":
        return nn.EmbeddingBag(
            rows, columns, mode="sum", sparse=True, _weight=torch.full((rows, columns), 0.01, device=device)
        )
    bag = build_embedding(TableConfig("t", rows, columns, representation="fbgemm"))
    assert isinstance(bag, FusesUpdate)
    bag.fuse_update(FusedUpdate("sgd", LEARNING_RATE))
    return bag


def _train(name: str, case: Case, device: str) -> nn.Module:
    shape = case.shape
    torch.manual_seed(0)
    bag = TTEmbeddingBag(
        shape.num_embeddings,
        shape.embedding_dim,
        case.rank,
        tt_p_shapes=shape.p,
        tt_q_shapes=shape.q,
        device=device,
    )
    if name == "torch":
        return GatheredTT(bag)
    if name == "tt-dense":  # its speed does not depend on the values
        return _dense_table("dense", shape.num_embeddings, shape.embedding_dim, device)
    if name.startswith("tt-fused"):
        bag.fuse_update(FusedUpdate("sgd", LEARNING_RATE))
        return bag
    if name not in FROZEN:
        return bag
    level, dtype = FROZEN[name]
    return bag.freeze(level, dtype=dtype)


def works_of(name: str, works: Sequence[str]) -> tuple[str, ...]:
    """Those of `works` that a candidate can do."""
    if name in GRAPHS:
        return tuple(w for w in works_of(GRAPHS[name], works) if w != "backward")
    if name.startswith("tt-fused"):  # their lookups are those of "tt" and "tt-bf16"
        return tuple(w for w in works if w != "forward")
    return tuple(w for w in works if w == "forward" or name not in FROZEN)


def gathered_bytes(case: Case, work: str) -> int:
    """What the tensor train in torch holds of gathered slices: read forward, and as gradients backward."""
    ranks = (1, *(case.rank for _ in case.shape.p[1:]), 1)
    floats = sum(q * r * s for q, r, s in zip(case.shape.q, ranks, ranks[1:], strict=False))
    return 4 * case.lookups * floats * (1 if work == "forward" else 2)


def storage_bytes(module: nn.Module) -> int:
    """Bytes of parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))


def make_task(
    work: str,
    module: nn.Module,
    case: Case,
    batches: Sequence[Tensor],
    upstream: Tensor,
    *,
    bf16: bool = False,
    evict: Tensor | None = None,
) -> Task:
    """One call is `work` on the next batch.

    bf16   with `ops.tt_allow_bf16`
    evict  written to before each call, so that the caches hold nothing of the call before
    """
    task = _make_task(work, module, case, batches, upstream)

    def prepare() -> None:
        ops.tt_allow_bf16(bf16)
        if evict is not None:
            evict.add_(1.0)
        if task.prepare:
            task.prepare()

    return Task(task.run, prepare)


def _make_task(work: str, module: nn.Module, case: Case, batches: Sequence[Tensor], upstream: Tensor) -> Task:
    offsets = torch.arange(case.batch_size, device=upstream.device) * case.bag_size
    turn = 0

    def following() -> Tensor:
        nonlocal turn
        turn += 1
        return batches[turn % len(batches)]

    if work == "forward":

        def forward() -> None:
            with torch.no_grad():
                module(following(), offsets)

        return Task(forward)
    update = _update(module)
    if work == "step":

        def step() -> None:
            update(lambda: module(following(), offsets).backward(upstream))

        return Task(step)
    pooled: list[Tensor] = []

    def prepare() -> None:
        for parameter in module.parameters():
            parameter.grad = None
        pooled[:] = [module(following(), offsets)]

    return Task(lambda: pooled.pop().backward(upstream), prepare)


def _update(module: nn.Module) -> Callable[[Callable[[], object]], None]:
    """Runs a pass between zero_grad and step."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    if not parameters:  # the backward pass updates

        def fused(run: Callable[[], object]) -> None:
            run()

        return fused
    sparse = isinstance(module, nn.EmbeddingBag)
    optimizer = torch.optim.SGD(parameters, lr=LEARNING_RATE, fused=not sparse)

    def plain(run: Callable[[], object]) -> None:
        optimizer.zero_grad()
        run()
        optimizer.step()

    return plain
