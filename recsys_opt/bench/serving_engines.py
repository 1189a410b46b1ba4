"""A DLRM without its tables, by torch's compilers and by `recsys_opt.serving.dense_net`: which is to serve.

Every engine takes any batch; tables are outside of all of them, so that no package holds gigabytes of rows.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recsys_opt import ops
from recsys_opt.bench.measure import Task, take_turns
from recsys_opt.models.dlrm import DLRM
from recsys_opt.models.recipes import DLRMConfig
from recsys_opt.progress import Progress, SilentProgress
from recsys_opt.serving.dense_net import PackedNet, PlainNet
from recsys_opt.tables import TableConfig

FEATURES = 26
LARGEST = 4096
Net = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Engine:
    """A way to run the network."""

    name: str
    start: Callable[[DLRM], Net]


class Module(nn.Module):
    """The network as a module of two inputs, for torch's compilers."""

    def __init__(self, model: DLRM) -> None:
        super().__init__()
        self.bottom, self.top, self.order = model.bottom, model.top, list(model.vector_order)

    def forward(self, dense: Tensor, rows: Tensor) -> Tensor:
        """Probabilities [B] of numbers [B, N] and rows [B, F * D]."""
        crossed = ops.dot_interaction(self.bottom(dense), [rows], self.order)
        probabilities: Tensor = self.top(crossed).squeeze(1).sigmoid()
        return probabilities


def _modules(model: DLRM) -> Net:
    return Module(model)


def _plain(model: DLRM) -> Net:
    net = PlainNet(model, model.vector_order)
    return lambda dense, rows: net(dense, [rows])


def _packed(dtype: torch.dtype) -> Callable[[DLRM], Net]:
    def start(model: DLRM) -> Net:
        net = PackedNet(model, model.vector_order, dtype)
        return lambda dense, rows: net(dense, [rows])

    return start


def _compiled(model: DLRM) -> Net:
    import torch._inductor.config as inductor

    net: Net = torch.compile(Module(model), dynamic=True)
    before = inductor.freezing
    inductor.freezing = True
    try:
        for size in (7, LARGEST):  # the first call compiles, the second is of another size
            net(*_inputs(model, size))
    finally:
        inductor.freezing = before
    return net


def _packaged(freezing: bool) -> Callable[[DLRM], Net]:
    def start(model: DLRM) -> Net:
        batch = torch.export.Dim("batch", min=1, max=LARGEST)
        program = torch.export.export(
            Module(model), _inputs(model, 7), dynamic_shapes=({0: batch}, {0: batch})
        )
        with tempfile.TemporaryDirectory() as folder:
            path = torch._inductor.aoti_compile_and_package(
                program,
                package_path=str(Path(folder) / "net.pt2"),
                inductor_configs={"freezing": freezing},
            )
            net: Net = torch._inductor.aoti_load_package(path)
        return net

    return start


ENGINES = (
    Engine("modules", _modules),
    Engine("plain", _plain),
    Engine("packed fp32", _packed(torch.float32)),
    Engine("packed bf16", _packed(torch.bfloat16)),
    Engine("torch.compile, freezing", _compiled),
    Engine("AOTInductor", _packaged(False)),
    Engine("AOTInductor, freezing", _packaged(True)),
)


def run(
    config: DLRMConfig, sizes: Sequence[int], rounds: int, *, progress: Progress | None = None
) -> list[dict[str, Any]]:
    """A row for each engine and size: median seconds on one thread, over those of the modules; the largest
    difference from their probabilities; and the seconds to make the engine."""
    progress = progress or SilentProgress()
    tables = [TableConfig(f"C{k}", 10, config.embedding_dim) for k in range(FEATURES)]
    torch.manual_seed(0)
    model = config.build(tables).eval().requires_grad_(False)
    rows = []
    progress.start("engines", len(ENGINES) + len(sizes), "steps")
    with one_thread(), torch.no_grad():  # torch.compile would compile again for inference mode
        nets, started = {}, {}
        for engine in ENGINES:
            began = time.perf_counter()
            nets[engine.name] = engine.start(model)
            started[engine.name] = time.perf_counter() - began
            progress.advance(1, engine=engine.name)
        for size in sizes:
            inputs = _inputs(model, size)
            expected = nets["modules"](*inputs)
            turns = take_turns(
                {name: Task(lambda net=net, inputs=inputs: net(*inputs)) for name, net in nets.items()},  # type: ignore[misc]
                rounds=rounds,
            )
            for name, net in nets.items():
                ratios = sorted(turns[name].ratios(turns["modules"]))
                rows.append(
                    {
                        "engine": name,
                        "size": size,
                        "median_ms": round(turns[name].timing().median_s * 1e3, 4),
                        "over_modules": round(ratios[len(ratios) // 2], 3),
                        "largest_difference": float((net(*inputs) - expected).abs().max()),
                        "start_s": round(started[name], 3),
                    }
                )
            progress.advance(1, size=str(size))
    progress.finish()
    return rows


def text(rows: Sequence[dict[str, Any]]) -> str:
    """Milliseconds by size, an engine a line."""
    sizes = sorted({r["size"] for r in rows})
    lines = [f"{'engine':26}" + "".join(f"{s:>9}" for s in sizes) + f"{'start s':>9}{'difference':>12}"]
    for name in dict.fromkeys(r["engine"] for r in rows):
        own = {r["size"]: r for r in rows if r["engine"] == name}
        cells = "".join(f"{own[s]['median_ms']:>9.3f}" for s in sizes)
        worst = max(r["largest_difference"] for r in own.values())
        lines.append(f"{name:26}{cells}{own[sizes[0]]['start_s']:>9.2f}{worst:>12.1e}")
    return "\n".join(lines)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread, as a server's worker has it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _inputs(model: DLRM, size: int) -> tuple[Tensor, Tensor]:
    return torch.rand(size, model.dense_features), torch.rand(size, FEATURES * model.dim) - 0.5
