"""TieredEmbeddingBag beside nn.EmbeddingBag and DenseEmbeddingBag: every split is the same table."""

import copy
import ctypes
import itertools
import resource
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from recsys_opt import FusedUpdate, TableConfig, TieredEmbeddingBag, ops
from recsys_opt.embeddings import tiered as tiered_module
from recsys_opt.embeddings.cold_tier import Waits
from recsys_opt.embeddings.collection import EmbeddingCollection
from recsys_opt.embeddings.dense import DenseEmbeddingBag
from recsys_opt.errors import InputError, RecsysOptError
from recsys_opt.training.optimizers import ModelOptimizer, OptimizerConfig

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = 60
RANKING = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))[:25]


def make(hot_rows: int = 20, ranking=RANKING, rows=ROWS, dtype=torch.float64, **options):
    torch.manual_seed(0)
    return TieredEmbeddingBag(rows, 8, hot_rows, ranking=ranking, dtype=dtype, **options)


def plain_copy(bag: TieredEmbeddingBag) -> nn.EmbeddingBag:
    rows, dim = bag.num_embeddings, bag.embedding_dim
    return nn.EmbeddingBag(rows, dim, mode=bag.mode, _weight=bag.materialize().clone())


def batch(k: int = 0, rows: int = ROWS) -> tuple[Tensor, Tensor]:
    """Every id, some several times, in bags of four, some bags empty."""
    generator = torch.Generator().manual_seed(k)
    more = torch.randint(0, rows, (20,), generator=generator)
    ids = torch.cat([torch.randperm(rows, generator=generator), more])
    return ids, torch.cat([torch.tensor([0, 0]), torch.arange(0, len(ids), 4)])


def step(bag: nn.Module, k: int, optimizer: torch.optim.Optimizer | None = None) -> None:
    if optimizer:
        optimizer.zero_grad()
    out = bag(*batch(k))
    (out - torch.linspace(-1, 1, out.shape[1], dtype=out.dtype)).square().mean().backward()
    if optimizer:
        optimizer.step()


@st.composite
def bags_of_ids(draw):
    """A table's shape, split and ranking, and bags with empty ones, repeats and extreme ids."""
    rows = draw(st.integers(1, 50))
    ids = draw(st.lists(st.lists(st.one_of(st.integers(0, rows - 1), st.sampled_from([0, rows - 1])))))
    ranked = draw(st.one_of(st.none(), st.lists(st.integers(0, rows - 1), unique=True)))
    return rows, draw(st.integers(0, rows)), ranked, ids


@settings(max_examples=60)
@given(bags_of_ids(), st.sampled_from(["sum", "mean"]), st.sampled_from([torch.int32, torch.int64]))
def test_a_lookup_is_nn_embedding_bags(shape, mode, dtype):
    rows, hot_rows, ranking, bags = shape
    ranking = None if ranking is None else torch.tensor(ranking, dtype=torch.int64)
    bag = make(hot_rows, ranking, rows, mode=mode)
    lengths = torch.tensor([0, *(len(ids) for ids in bags)])
    ids = torch.tensor(list(itertools.chain(*bags)), dtype=dtype)
    offsets = lengths.cumsum(0)[:-1].to(dtype)
    torch.testing.assert_close(bag(ids, offsets), plain_copy(bag)(ids, offsets))


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("hot_rows", [0, 20, 40, ROWS])
@pytest.mark.parametrize(
    ("algorithm", "optimizer", "options"),
    [
        ("sgd", torch.optim.SGD, {"weight_decay": 0.1}),
        ("adagrad", torch.optim.Adagrad, {"eps": 1e-6}),
        ("adam", torch.optim.Adam, {"betas": (0.8, 0.9), "eps": 1e-6}),
    ],
)
def test_weights_after_training_are_nn_embedding_bags(algorithm, optimizer, options, hot_rows, mode):
    fused = make(hot_rows, None if hot_rows == 40 else RANKING, mode=mode)
    plain = plain_copy(fused)
    fused.fuse_update(FusedUpdate(algorithm, 0.03, **options))
    torchs = optimizer(plain.parameters(), lr=0.03, **options)
    for k in range(30):
        step(fused, k)
        step(plain, k, torchs)
    torch.testing.assert_close(fused.materialize(), plain.weight.detach(), rtol=1e-10, atol=1e-10)
    assert fused.hot.grad is fused.cold.grad is None


@pytest.mark.parametrize("update", ["fused", "stored"])
@pytest.mark.parametrize("algorithm", ["sgd", "adagrad"])
@pytest.mark.parametrize("hot_rows", [0, 20, ROWS])
def test_a_dense_table_of_the_same_seed_stays_the_same(algorithm, update, hot_rows):
    """Bit for bit, from the first draw, where training takes the same way."""
    tiered = make(hot_rows, dtype=torch.float32)
    torch.manual_seed(0)
    dense = DenseEmbeddingBag(ROWS, 8)
    assert torch.equal(tiered.materialize(), dense.weight)
    config = OptimizerConfig(algorithm=algorithm, table_update=update)
    optimizers = [ModelOptimizer(model, config) for model in (tiered, dense)]
    for k in range(10):
        for bag, optimizer in zip((tiered, dense), optimizers, strict=True):
            optimizer.zero_grad()
            step(bag, k)
            optimizer.step()
    assert torch.equal(tiered.materialize(), dense.weight)
    states = [optimizer.state_dict() for optimizer in optimizers]
    if algorithm == "adagrad":
        dot = "." if update == "fused" else ""  # the model is the table: a module without a name
        ours = torch.cat([states[0][f"{dot}{tier}"] for tier in ("hot", "cold")])
        theirs = states[1][f"{dot}weight"]
        assert torch.equal(ours[tiered.remap.long()], theirs)


def test_gradients_go_to_torchs_optimizers():
    bag = make()
    plain = plain_copy(bag)
    ours, theirs = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (bag, plain))
    for k in range(3):
        step(bag, k, ours)
        step(plain, k, theirs)
    torch.testing.assert_close(bag.materialize(), plain.weight.detach())
    grads = []
    for module in (bag, plain):
        weights = torch.linspace(-1, 1, 80, dtype=torch.float64).requires_grad_()
        module(*batch(), weights).square().sum().backward()
        grads.append(weights.grad)
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("algorithm", ["sgd", "adagrad", "rowwise_adagrad", "adam"])
def test_moving_rows_loses_nothing(algorithm, tmp_path):
    """Training goes on with the bits of a table that was never moved."""
    still, moving = make(), make(cold_dir=tmp_path)
    for bag in (still, moving):
        bag.fuse_update(FusedUpdate(algorithm, 0.05))
    generator = torch.Generator().manual_seed(3)
    moves = [
        {"hot_rows": 0},
        {"ranking": torch.randperm(ROWS, generator=generator)},
        {"hot_rows": 50, "ranking": [59, 0, 3]},
        {"hot_rows": ROWS},
        {"hot_rows": 7},
    ]
    for k, move in enumerate(moves):
        for bag in (still, moving):
            step(bag, k)
        before = moving.materialize()
        moving.retier(**move)
        assert torch.equal(moving.materialize(), before)
        assert moving.hot_rows == move.get("hot_rows", moving.hot_rows)
    assert not moving.hot.requires_grad
    assert torch.equal(still.materialize(), moving.materialize())
    by_id = []
    for bag in (still, moving):
        states = [
            s for s in bag.update_state().values() if s.dim() and len(s) in (len(bag.hot), len(bag.cold))
        ]
        half = len(states) // 2
        pairs = zip(states[:half], states[half:], strict=True)
        by_id.append([torch.cat(pair)[bag.remap.long()] for pair in pairs])
    assert all(torch.equal(a, b) for a, b in zip(*by_id, strict=True))
    assert len(by_id[0]) == {"sgd": 0, "adagrad": 1, "rowwise_adagrad": 1, "adam": 2}[algorithm]


def test_ranks_are_positions():
    """The rule of recsys_opt.plan: the ranking in its order, then the others by their ids."""
    bag = make(2, [4, 1], rows=6)
    assert bag.remap.tolist() == [2, 1, 3, 4, 0, 5]
    table = bag.materialize()
    assert torch.equal(bag.hot, table[[4, 1]])
    assert torch.equal(bag.cold, table[[0, 2, 3, 5]])
    unranked = make(2, None, rows=6)
    assert torch.equal(unranked.materialize(), torch.cat([unranked.hot, unranked.cold]))
    assert unranked.remap.numel() == 0
    assert make(2, [0, 1, 2], rows=6).remap.numel() == 0  # what statistics say of ids in the order of rank


def test_states_go_between_splits_and_dense_tables(tmp_path):
    bag = make(dtype=torch.float32)
    table = bag.materialize()
    assert {name: tuple(t.shape) for name, t in bag.state_dict().items()} == {
        "hot": (20, 8),
        "cold": (40, 8),
        "remap": (60,),
    }
    for other in (
        make(3, None, dtype=torch.float32),
        make(ROWS, [5, 6], dtype=torch.float32, cold_dir=tmp_path),
        make(20, dtype=torch.float32),
    ):
        nn.init.zeros_(other.hot)
        other.load_state_dict(bag.state_dict())
        assert torch.equal(other.materialize(), table)
        assert torch.equal(other.remap, bag.remap)
    dense = DenseEmbeddingBag(ROWS, 8)
    dense.load_state_dict(bag.state_dict())
    assert torch.equal(dense.weight, table)
    other = make(7, [50, 3], dtype=torch.float32)
    kept = other.remap.clone()
    other.load_state_dict(dense.state_dict())
    assert torch.equal(other.materialize(), table)
    assert torch.equal(other.remap, kept)
    assert torch.equal(TieredEmbeddingBag.from_pretrained(table, 9, ranking=[8]).materialize(), table)
    for wrong in (make(20, None, rows=61).state_dict(), DenseEmbeddingBag(61, 8).state_dict()):
        with pytest.raises(InputError, match=r"the table is \[60, 8\]"):
            bag.load_state_dict(wrong)
    with pytest.raises(InputError, match=r"the table is \[61, 8\]"):
        DenseEmbeddingBag(61, 8).load_state_dict(bag.state_dict())


TABLES = [("a", 60, ("a0", "a1"), 10, True), ("b", 3000, ("b",), 0, False), ("c", 5, ("c",), 5, True)]


@pytest.mark.parametrize(
    ("stored", "compiled"), [(False, False), (True, False), pytest.param(False, True, marks=pytest.mark.slow)]
)
def test_a_collection_is_that_of_dense_tables(stored, compiled):
    ids = torch.cat([torch.randint(0, n, (60,)) for n in (60, 60, 3000, 5)])
    collections = []
    for tiered in (True, False):
        torch.manual_seed(0)
        configs = [
            TableConfig(name, rows, 8, features, representation="tiered",
                        options={"hot_rows": hot, "ranked": ranked})
            if tiered else TableConfig(name, rows, 8, features)
            for name, rows, features, hot, ranked in TABLES
        ]  # fmt: skip
        collections.append(EmbeddingCollection(configs, dtype=torch.float64))
    for name in "ac":
        rows = collections[0].table(name).num_embeddings
        collections[0].table(name).retier(ranking=torch.randperm(rows))
    update = "stored" if stored else "fused"
    config = OptimizerConfig(algorithm="adagrad", table_update=update, table_lr=0.01)
    optimizers = [ModelOptimizer(c, config) for c in collections]
    forwards = [torch.compile(c, fullgraph=True) if compiled else c for c in collections]
    for _ in range(4):
        outputs = [forward(ids) for forward in forwards]
        torch.testing.assert_close(*outputs)
        for output, optimizer in zip(outputs, optimizers, strict=True):
            optimizer.zero_grad()
            (output - 1).square().sum().backward()
            optimizer.step()
    for name in "abc":
        table, dense = (c.table(name).materialize() for c in collections)
        torch.testing.assert_close(table, dense, rtol=1e-9, atol=1e-9)


def test_the_module_moves_and_converts_both_tiers(tmp_path):
    for options in ({}, {"cold_dir": tmp_path}):
        bag = make(**options)
        bag.fuse_update(FusedUpdate("adagrad", 0.1))
        table = bag.materialize()
        before = bag.cold
        assert bag.to("cpu").cold is before
        twin = copy.deepcopy(bag)
        step(twin, 0)
        assert torch.equal(bag.materialize(), table)
        bag.float()
        assert {t.dtype for t in (bag.hot, bag.cold, *bag.update_state().values())} == {torch.float32}
        assert torch.equal(bag.materialize(), table.float())
        step(bag, 0)
        torch.testing.assert_close(bag.materialize(), twin.materialize().float())
    assert list(tmp_path.iterdir()) == []  # files without names
    meta = make(device="meta")
    assert {t.device.type for t in (*meta.parameters(), *meta.buffers())} == {"meta"}


def test_it_says_where_its_bytes_are():
    bag = make(dtype=torch.float32)
    assert bag.tier_bytes() == {"hot": 20 * 32, "cold": 40 * 32, "remap": 240}
    bag.fuse_update(FusedUpdate("rowwise_adagrad", 0.1))
    assert bag.tier_bytes() == {"hot": 20 * 36, "cold": 40 * 36, "remap": 240}
    assert bag.storage_bytes() == 60 * 32 + 240
    assert bag.settled_options() == {"hot_rows": 20, "ranked": True}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hot_rows": -1}, "hot_rows = -1; it must be 0 to the table's 60 rows"),
        ({"hot_rows": 61}, "hot_rows = 61; it must be 0 to the table's 60 rows"),
        ({"ranking": [0, 60]}, "the ranking names row 60; the table has 60 rows"),
        ({"ranking": [3, 1, 3]}, "the ranking names row 3 twice"),
        ({"ranking": [0.5]}, "it must be rows of the table, hottest first"),
        ({"mode": "max"}, "mode = 'max' is not supported"),
        ({"rows": 0, "hot_rows": 0, "ranking": None}, "num_embeddings = 0"),
        ({"cold_dir": "/nowhere"}, "cannot make a file for cold rows in /nowhere: No such file"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        make(**arguments)


def test_a_full_disk_is_named(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(RecsysOptError, match="cannot reserve 2,560 bytes for cold rows in"):
            make(cold_dir=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


LIBC = ctypes.CDLL(None)
PAGE = resource.getpagesize()
MADV_PAGEOUT, MS_SYNC = 21, 4


def page_out(tensor: Tensor) -> None:
    address, size = (
        ctypes.c_void_p(tensor.data_ptr()),
        ctypes.c_size_t(tensor.numel() * tensor.element_size()),
    )
    assert LIBC.msync(address, size, MS_SYNC) == 0
    LIBC.madvise(address, size, MADV_PAGEOUT)


def pages_in_memory(tensor: Tensor) -> set[int]:
    size = tensor.numel() * tensor.element_size()
    found = (ctypes.c_ubyte * (-(-size // PAGE)))()
    assert LIBC.mincore(ctypes.c_void_p(tensor.data_ptr()), ctypes.c_size_t(size), found) == 0
    return {page for page, state in enumerate(found) if state & 1}


def test_pages_of_cold_rows_are_asked_for_ahead(tmp_path, monkeypatch):
    """Those that the batch looks up and no others, of rows and of states, once lookups wait for the disk."""
    rows = 40 * PAGE
    bag = TieredEmbeddingBag(rows, 16, PAGE, ranking=torch.arange(rows - 1, -1, -1), cold_dir=tmp_path)
    bag.fuse_update(FusedUpdate("adagrad", 0.1))
    cold = [bag.cold, bag.update_state()["cold.sum"]]
    for tensor in cold:
        page_out(tensor)
    if any(len(pages_in_memory(tensor)) > 100 for tensor in cold):
        pytest.skip("this system keeps pages of files in memory, whatever it is told")
    monkeypatch.setattr(tiered_module, "_WAITS", Waits(few=0, calls=10))
    ids = torch.randint(0, rows, (300,), generator=torch.Generator().manual_seed(0))
    positions = bag.remap[ids].long()
    wanted = {int(p - PAGE) * 64 // PAGE for p in positions if p >= PAGE}
    assert 250 < len(wanted) < 300
    looked_up = []
    monkeypatch.setattr(ops, "tiered_bag_updating", lambda *arguments: looked_up.append(arguments))
    bag(ids, torch.arange(300))
    assert len(looked_up) == 1
    deadline = time.monotonic() + 20
    while any(not wanted <= pages_in_memory(tensor) for tensor in cold):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert all(len(pages_in_memory(tensor)) < len(wanted) + 100 for tensor in cold)


def test_pages_are_asked_for_while_lookups_wait(monkeypatch):
    waited = iter([0, 3, 20, 20, 20, 20, 29])
    monkeypatch.setattr(Waits, "_now", staticmethod(lambda: next(waited)))
    waits = Waits(few=8, calls=3)
    assert [waits.lately() for _ in range(6)] == [False, True, True, False, False, True]


@pytest.mark.slow
def test_a_table_larger_than_the_memory_allowed_trains(tmp_path):
    """Private memory is limited to less than half of the table and its state; in memory it does not fit."""
    program = """
        import resource, sys, torch
        from recsys_opt import FusedUpdate, TieredEmbeddingBag
        torch.set_num_threads(1)
        rows, dim = 1_000_000, 64  # 256 MB, with Adagrad's sums 512 MB
        ids = (torch.rand(5, 4096) ** 3 * rows).long()
        used = int(next(l for l in open("/proc/self/status") if l.startswith("VmData")).split()[1]) << 10
        resource.setrlimit(resource.RLIMIT_DATA, (used + (230 << 20),) * 2)
        ranking = torch.arange(rows - 1, 0, -2)[:100_000]
        try:
            TieredEmbeddingBag(rows, dim, 50_000, ranking=ranking)
        except RuntimeError as error:
            assert "can't allocate memory" in str(error), error
        else:
            raise AssertionError("the limit is no limit")
        bag = TieredEmbeddingBag(rows, dim, 50_000, ranking=ranking, cold_dir=sys.argv[1])
        before = bag.cold[:, 0].double().sum()
        bag.fuse_update(FusedUpdate("adagrad", 0.1))
        for own in ids:
            bag(own, torch.arange(len(own))).square().sum().backward()
        state = bag.update_state()
        positions = bag.remap[ids.flatten()].unique().long()
        moved = [(state[f"{t}.sum"][:, 0] > 0).nonzero()[:, 0] for t in ("hot", "cold")]
        moved = torch.cat([moved[0], moved[1] + 50_000])
        assert torch.equal(positions, moved) and (positions < 50_000).any() and (positions > 50_000).any()
        assert bag.cold[:, 0].double().sum() != before
        bag.set_hot_rows(60_000)
        assert bag.hot.shape == bag.update_state()["hot.sum"].shape == (60_000, dim)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
