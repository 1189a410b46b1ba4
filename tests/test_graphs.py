"""torch.compile, torch.export and AOTInductor of tensor-train bags, collections and a DLRM.

Slow but for one: each compiles something.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim

from recsys_opt import DLRM, TableConfig, TTEmbeddingBag, ops
from recsys_opt.embeddings.collection import EmbeddingCollection

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = (7, 30, 3, 500)
DENSE = [TableConfig(f"t{i}", n, 4) for i, n in enumerate(ROWS)]
TT = [TableConfig(f"t{i}", n, 4, representation="tt", options={"tt_ranks": 3}) for i, n in enumerate(ROWS)]
MIXED = [TT[0], DENSE[1], DENSE[2], TT[3]]
TABLES = pytest.mark.parametrize("tables", [TT, MIXED], ids=["tt", "mixed"])
JAGGED = pytest.mark.parametrize("jagged", [False, True], ids=["one id per bag", "jagged"])


def batch(size: int, jagged: bool) -> tuple[Tensor, ...]:
    """Dense features, values, and offsets where the batch is jagged."""
    g = torch.Generator().manual_seed(size)
    lengths = (
        torch.randint(0, 4, (4, size), generator=g) if jagged else torch.ones(4, size, dtype=torch.int64)
    )
    counts = lengths.sum(1).tolist()
    values = torch.cat([torch.randint(0, n, (k,), generator=g) for n, k in zip(ROWS, counts, strict=True)])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.view(-1).cumsum(0)])
    dense = torch.randn(size, 5, generator=g)
    return (dense, values, offsets) if jagged else (dense, values)


def model(tables) -> DLRM:
    torch.manual_seed(0)
    return DLRM(tables, dense_features=5, bottom_mlp=(8, 4), top_mlp=(6, 1))


def gradients(module: nn.Module, forward, args: tuple[Tensor, ...]) -> list[Tensor]:
    module.zero_grad()
    out = forward(*args)
    out.sin().sum().backward()
    return [out.detach(), *(p.grad.to_dense().clone() for p in module.parameters())]


def one_graph_for_all_sizes(module: nn.Module, batches: list[tuple[Tensor, ...]]) -> None:
    """Values and gradients, and not one more graph after the first batch."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, backend=counter, fullgraph=True, dynamic=True)
    for args in batches:
        torch.testing.assert_close(gradients(module, compiled, args), gradients(module, module, args))
    assert counter.frame_count == 1


def bag_calls(form: str) -> list[tuple[Tensor, ...]]:
    calls = []
    for size in (6, 9, 4, 50):
        ids = torch.randint(0, 60, (3 * size,), generator=torch.Generator().manual_seed(size))
        offsets = torch.arange(0, 3 * size, 3)
        weights = torch.linspace(-1, 1, 3 * size)
        calls.append(
            {
                "offsets": (ids, offsets),
                "int32": (ids.int(), offsets.int()),
                "weights": (ids, offsets, weights),
                "2-D": (ids.view(size, 3),),
            }[form]
        )
    return calls


def test_a_bag_compiles_to_one_graph_for_all_sizes():
    one_graph_for_all_sizes(TTEmbeddingBag(60, 8, 4), bag_calls("offsets"))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["int32", "weights", "2-D"])
def test_every_form_of_call_compiles_to_one_graph_for_all_sizes(form):
    one_graph_for_all_sizes(TTEmbeddingBag(60, 8, 4, padding_idx=3), bag_calls(form))


@pytest.mark.slow
def test_a_collection_compiles_to_one_graph_for_all_sizes():
    batches = [batch(size, True)[1:] for size in (6, 9, 50)]
    one_graph_for_all_sizes(EmbeddingCollection(MIXED), batches)


@pytest.mark.slow
@TABLES
@JAGGED
def test_a_dlrm_compiles_to_one_graph_for_all_sizes(tables, jagged):
    one_graph_for_all_sizes(model(tables), [batch(size, jagged) for size in (6, 9, 50)])


@pytest.mark.slow
@pytest.mark.parametrize("form", ["offsets", "weights", "2-D"])
@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
def test_a_bag_exports_for_all_sizes(form, strict):
    bag, calls = TTEmbeddingBag(60, 8, 4, mode="mean" if form == "offsets" else "sum"), bag_calls(form)
    shapes = [dict.fromkeys(range(arg.dim()), Dim.AUTO) for arg in calls[0]]
    exported = torch.export.export(bag, calls[0], dynamic_shapes=shapes, strict=strict)
    for args in calls:
        assert torch.equal(exported.module()(*args), bag(*args))


@pytest.mark.slow
@TABLES
@JAGGED
def test_a_dlrm_exports_with_a_named_batch_dimension(tables, jagged):
    ours, size = model(tables), Dim("size")
    shapes = ({0: size}, {0: Dim("ids")}, {0: 4 * size + 1}) if jagged else ({0: size}, {0: 4 * size})
    exported = torch.export.export(ours, batch(6, jagged), dynamic_shapes=shapes, strict=jagged)
    for n in (6, 9, 2, 50):
        torch.testing.assert_close(exported.module()(*batch(n, jagged)), ours(*batch(n, jagged)))


class Served(nn.Module):
    """A model, and a bag at every level of freezing, in one package."""

    def __init__(self) -> None:
        super().__init__()
        self.model = model(MIXED)
        bag = TTEmbeddingBag(6000, 8, [8, 4], mode="mean")
        self.levels = nn.ModuleList([bag.freeze("cores"), bag.freeze("prefix"), bag.freeze("dense")])

    def forward(self, dense: Tensor, values: Tensor, offsets: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        return self.model(dense, values, offsets), torch.cat([bag(ids) for bag in self.levels], dim=1)


# Needs torch and the library of ops, and none of the package's Python.
LOAD_AND_RUN = """
import sys, torch
library, package, inputs, outputs = sys.argv[1:]
torch.ops.load_library(library)
compiled = torch._inductor.aoti_load_package(package)
torch.save([compiled(*args) for args in torch.load(inputs)], outputs)
assert "recsys_opt" not in sys.modules
"""


@pytest.mark.slow
def test_an_aotinductor_package_runs_in_a_process_with_the_ops_alone(tmp_path: Path):
    served = Served().eval()
    calls = [(*batch(n, True), torch.randint(0, 6000, (n, 3))) for n in (6, 9, 2, 50)]
    size = Dim("size")
    shapes = ({0: size}, {0: Dim("ids")}, {0: 4 * size + 1}, {0: size})
    with torch.no_grad():
        exported = torch.export.export(served, calls[0], dynamic_shapes=shapes)
        package = torch._inductor.aoti_compile_and_package(
            exported,
            package_path=str(tmp_path / "served.pt2"),
            inductor_configs={
                "aot_inductor.compile_wrapper_opt_level": "O0",
                "cpp_cache_precompile_headers": False,
            },
        )
        want = [served(*args) for args in calls]
    torch.save(calls, tmp_path / "inputs.pt")
    subprocess.run(
        [
            sys.executable, "-c", LOAD_AND_RUN, ops.LIBRARY, package, tmp_path / "inputs.pt",
            tmp_path / "outputs.pt",
        ],
        check=True,
        cwd=tmp_path,
    )  # fmt: skip
    for got, right in zip(torch.load(tmp_path / "outputs.pt"), want, strict=True):
        torch.testing.assert_close(list(got), list(right))
