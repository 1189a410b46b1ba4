import math

import pytest
import torch
from torch import Tensor, nn

from recsys_opt import DLRM, TableConfig
from recsys_opt.errors import InputError
from recsys_opt.models.recipes import criteo_kaggle

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = (7, 30, 3, 500)
TABLES = [TableConfig(f"t{i}", n, 4) for i, n in enumerate(ROWS)]


class PlainDLRM(nn.Module):
    """An independent DLRM: nn.EmbeddingBag, bmm and a loop over the pairs."""

    def __init__(self, model: DLRM) -> None:
        super().__init__()
        self.bottom = nn.ModuleList([nn.Linear(5, 8), nn.Linear(8, 4)]).double()
        self.top = nn.ModuleList([nn.Linear(4 + 10, 6), nn.Linear(6, 1)]).double()
        self.bags = nn.ModuleList([nn.EmbeddingBag(n, 4, mode="sum") for n in ROWS]).double()
        with torch.no_grad():
            for mine, its in zip(
                self.parameters(),
                (*model.bottom.parameters(), *model.top.parameters(), *model.embeddings.parameters()),
                strict=True,
            ):
                mine.copy_(its)

    def forward(self, dense: Tensor, ids: list[Tensor], offsets: list[Tensor]) -> Tensor:
        x = self.bottom[1](self.bottom[0](dense).relu()).relu()
        vectors = [x, *(bag(i, o) for bag, i, o in zip(self.bags, ids, offsets, strict=True))]
        stacked = torch.stack(vectors, dim=1)
        products = torch.bmm(stacked, stacked.transpose(1, 2))
        pairs = [products[:, i, j] for i in range(5) for j in range(i)]
        crossed = torch.cat([x, torch.stack(pairs, dim=1)], dim=1)
        return self.top[1](self.top[0](crossed).relu())[:, 0]


def model(tables=TABLES, dtype: torch.dtype = torch.float64) -> DLRM:
    torch.manual_seed(0)
    return DLRM(tables, dense_features=5, bottom_mlp=(8, 4), top_mlp=(6, 1), dtype=dtype)


def batch(size: int = 6, fixed: bool = False) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    g = torch.Generator().manual_seed(1)
    lengths = torch.ones(4, size, dtype=torch.int64) if fixed else torch.randint(0, 4, (4, size), generator=g)
    ids = [torch.randint(0, n, (int(k.sum()),), generator=g) for n, k in zip(ROWS, lengths, strict=True)]
    offsets = [torch.cat([torch.zeros(1, dtype=torch.int64), k.cumsum(0)]) for k in lengths]
    return torch.randn(size, 5, generator=g, dtype=torch.float64), ids, offsets


def join(ids: list[Tensor], offsets: list[Tensor]) -> tuple[Tensor, Tensor]:
    lengths = torch.cat([o.diff() for o in offsets])
    return torch.cat(ids), torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])


@pytest.mark.parametrize("fixed", [False, True])
def test_equals_a_plain_dlrm_in_values_and_gradients(fixed):
    ours, plain = model(), None
    plain = PlainDLRM(ours)
    dense, ids, offsets = batch(fixed=fixed)
    values, bounds = join(ids, offsets)
    got, want = ours(dense, values, None if fixed else bounds), plain(dense, ids, [o[:-1] for o in offsets])
    torch.testing.assert_close(got, want)
    got.sin().sum().backward()
    want.sin().sum().backward()
    mine = [
        p.grad.to_dense()
        for p in (*ours.bottom.parameters(), *ours.top.parameters(), *ours.embeddings.parameters())
    ]
    torch.testing.assert_close(mine, [p.grad for p in plain.parameters()])


def gradients(forward, parameters: list[Tensor]) -> list[Tensor]:
    for p in parameters:
        p.grad = None
    out = forward()
    out.sin().sum().backward()
    return [out.detach(), *(p.grad.to_dense().clone() for p in parameters)]


MIXED = [
    TableConfig(f"t{i}", n, 4, representation="tt", options={"tt_ranks": 3}) if i in (1, 3) else table
    for i, (n, table) in enumerate(zip(ROWS, TABLES, strict=True))
]


@pytest.mark.parametrize("fixed", [False, True])
def test_tensor_trains_give_what_their_tables_written_out_give(fixed):
    mixed, dense_tables = model(MIXED), model()
    with torch.no_grad():
        for config in TABLES:
            dense_tables.embeddings.table(config.name).weight.copy_(
                mixed.embeddings.table(config.name).materialize()
            )
    dense, ids, offsets = batch(fixed=fixed)
    values, bounds = join(ids, offsets)
    args = (dense, values) if fixed else (dense, values, bounds)
    got, want = mixed(*args), dense_tables(*args)
    torch.testing.assert_close(got, want)
    got.sin().sum().backward()
    want.sin().sum().backward()
    for name, p in mixed.named_parameters():
        if name.startswith(("bottom", "top")):
            torch.testing.assert_close(p.grad, dense_tables.get_parameter(name).grad)
    for config in MIXED:
        table = mixed.embeddings.table(config.name)
        gradient = dense_tables.embeddings.table(config.name).weight.grad.to_dense()
        if config.representation == "tt":
            # The chain rule through the written-out table.
            cores = [p for p in table.parameters() if p.requires_grad]
            by_table = torch.autograd.grad(_written_out(table), cores, gradient)
            torch.testing.assert_close([p.grad for p in cores], list(by_table))
        else:
            torch.testing.assert_close(table.weight.grad.to_dense(), gradient)


def _written_out(table: nn.Module) -> Tensor:
    ids = torch.arange(table.num_embeddings)
    return table(ids, ids)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tables", "jagged"), [(TABLES, False), (MIXED, True)], ids=["dense", "mixed jagged"]
)
def test_compiles(jagged, tables):
    ours = model(tables)
    dense, ids, offsets = batch(fixed=not jagged)
    values, bounds = join(ids, offsets)
    args = (dense, values, bounds) if jagged else (dense, values)
    compiled = torch.compile(ours, fullgraph=True)
    parameters = list(ours.parameters())
    torch.testing.assert_close(
        gradients(lambda: compiled(*args), parameters), gradients(lambda: ours(*args), parameters)
    )


def test_bf16_autocast_is_near_fp32():
    ours = model(dtype=torch.float32)
    dense, ids, offsets = batch(size=64)
    values, bounds = join(ids, offsets)
    want = ours(dense.float(), values, bounds)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = ours(dense.float(), values, bounds)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), want, rtol=0.05, atol=0.05)
    got.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in ours.parameters())


def test_initial_weights_are_the_dlrm_repositorys():
    torch.manual_seed(0)
    ours = criteo_kaggle().build([TableConfig("t", 100, 16)])
    layers = [m for m in (*ours.bottom, *ours.top) if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in layers] == [
        (13, 512), (512, 256), (256, 64), (64, 16), (17, 512), (512, 256), (256, 1)
    ]  # fmt: skip
    for m in layers:
        n, o = m.in_features, m.out_features
        error = 5 / math.sqrt(2 * n * o)  # five standard errors of a standard deviation
        assert m.weight.std().item() == pytest.approx(math.sqrt(2 / (n + o)), rel=error)
    assert layers[0].bias.std().item() == pytest.approx(math.sqrt(1 / 512), rel=0.16)


def test_the_mlps_do_not_depend_on_the_tables():
    torch.manual_seed(0)
    other = DLRM(
        [TableConfig(f"u{i}", 9, 4) for i in range(4)], dense_features=5, bottom_mlp=(8, 4), top_mlp=(6, 1)
    )
    for a, b in zip(model(dtype=torch.float32).top.parameters(), other.top.parameters(), strict=True):
        assert torch.equal(a, b)


def test_same_seed_same_weights():
    for a, b in zip(model().parameters(), model().parameters(), strict=True):
        assert torch.equal(a, b)


def test_an_empty_batch():
    got = model()(torch.zeros(0, 5, dtype=torch.float64), torch.zeros(0, dtype=torch.int64))
    assert got.shape == (0,)


def test_bad_arguments_are_named():
    ours = model()
    dense, values = torch.zeros(3, 5, dtype=torch.float64), torch.zeros(12, dtype=torch.int64)
    with pytest.raises(InputError, match=r"dense has shape \[3, 4\]; it must be \[batch, 5\]"):
        ours(dense[:, :4], values)
    with pytest.raises(InputError, match="dense has 3 samples, but values and offsets describe 2"):
        ours(dense, values[:8])
    with pytest.raises(InputError, match=r"values\[11\] = 500 is outside the 500 rows of table t3"):
        ours(dense, values + torch.tensor([0] * 11 + [500]))
    with pytest.raises(InputError, match="table t0 has embedding_dim 4, but the bottom MLP ends in 3"):
        DLRM(TABLES, bottom_mlp=(8, 3))
    with pytest.raises(InputError, match=r"top_mlp = \[4, 2\]; it must end in 1"):
        DLRM(TABLES, bottom_mlp=(4,), top_mlp=(4, 2))


def test_tables_of_two_vectors_are_crossed_as_two_features():
    deep = {"hashes": 8, "widths": [4], "dhe_dim": 4}
    tables = [
        TableConfig("a", 7, 8, representation="hybrid", options=deep),
        TableConfig("b", 30, 4),
        TableConfig("c", 9, 8, representation="hybrid", options=deep),
    ]
    torch.manual_seed(0)
    model = DLRM(tables, dense_features=5, bottom_mlp=(8, 4), top_mlp=(6, 1), dtype=torch.float64)
    dense, ids = torch.randn(10, 5).double(), torch.cat([torch.randint(0, n, (10,)) for n in (7, 30, 9)])
    rows = model.embeddings(ids).split(4, dim=1)  # in the order of the features, whatever groups there are
    x = model.bottom(dense)
    vectors = [x, *rows]
    pairs = [(vectors[i] * vectors[j]).sum(1) for i in range(6) for j in range(i)]
    want = model.top(torch.cat([x, torch.stack(pairs, dim=1)], dim=1))[:, 0]
    torch.testing.assert_close(model(dense, ids), want)
    with pytest.raises(InputError, match=r"b has embedding_dim 6.*several such vectors"):
        DLRM([TableConfig("b", 30, 6)], dense_features=5, bottom_mlp=(8, 4), top_mlp=(6, 1))
