"""TTEmbeddingBag whose backward pass updates the cores, and with torch's own optimizers."""

import copy
import importlib.util
import math

import pytest
import torch
from torch import Tensor, nn

from recsys_opt import TableConfig, TTEmbeddingBag
from recsys_opt.embeddings.collection import EmbeddingCollection
from recsys_opt.embeddings.fused_update import FusedUpdate
from recsys_opt.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

ALGORITHMS = ["sgd", "adagrad", "rowwise_adagrad", "adam"]


def make_bag(dtype=torch.float64, **options) -> TTEmbeddingBag:
    torch.manual_seed(0)
    bag = TTEmbeddingBag(60, 8, 4, tt_p_shapes=(4, 3, 5), dtype=dtype, **options)
    bag.reset_parameters(1.0)
    return bag


def batch(k: int = 0) -> tuple[Tensor, Tensor]:
    """60 ids, all of them, so that every slice is used."""
    generator = torch.Generator().manual_seed(k)
    return torch.randperm(60, generator=generator), torch.arange(0, 60, 4)


def loss_of(bag: nn.Module, k: int = 0) -> Tensor:
    out = bag(*batch(k))
    return (out - torch.linspace(-1, 1, out.shape[1], dtype=out.dtype)).square().mean()


def train(bag: TTEmbeddingBag, steps, optimizer: torch.optim.Optimizer | None = None) -> None:
    for k in steps:
        if optimizer:
            optimizer.zero_grad()
        loss_of(bag, k).backward()
        if optimizer:
            optimizer.step()


def assert_same_cores(a: TTEmbeddingBag, b: TTEmbeddingBag, tolerance: float = 0.0) -> None:
    for mine, right in zip(a.cores, b.cores, strict=True):
        torch.testing.assert_close(
            mine.detach(), right.detach(), rtol=tolerance, atol=tolerance, check_dtype=False
        )


@pytest.mark.parametrize(
    ("algorithm", "optimizer", "options"),
    [
        ("sgd", torch.optim.SGD, {}),
        ("sgd", torch.optim.SGD, {"weight_decay": 0.1}),
        ("adagrad", torch.optim.Adagrad, {"eps": 1e-6}),
        ("adam", torch.optim.Adam, {"betas": (0.8, 0.9), "eps": 1e-6}),
    ],
)
def test_a_hundred_steps_equal_torchs_optimizer(algorithm, optimizer, options):
    fused, plain = make_bag(), make_bag()
    update = FusedUpdate(algorithm, 0.03, **options)
    fused.fuse_update(update)
    torchs = optimizer(plain.parameters(), lr=0.03, **options)
    train(fused, range(50))
    train(plain, range(50), torchs)
    update.set_learning_rate(0.01)
    torchs.param_groups[0]["lr"] = 0.01
    train(fused, range(50, 100))
    train(plain, range(50, 100), torchs)
    assert_same_cores(fused, plain, 1e-10)
    assert all(core.grad is None for core in fused.cores)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_going_on_from_a_checkpoint_gives_the_same_bits(algorithm):
    whole, resumed = make_bag(torch.float32), make_bag(torch.float32)
    whole.fuse_update(FusedUpdate(algorithm, 0.05))
    train(whole, range(5))
    model = copy.deepcopy(whole.state_dict())
    state = {name: tensor.clone() for name, tensor in whole.update_state().items()}
    assert set(model) == {"cores.0", "cores.1", "cores.2"}  # the update's state is the optimizer's to save
    train(whole, range(5, 10))
    resumed.fuse_update(FusedUpdate(algorithm, 0.05))
    resumed.load_state_dict(model)
    own = resumed.update_state()
    assert own.keys() == state.keys()
    for name, tensor in own.items():
        tensor.copy_(state[name])
    train(resumed, range(5, 10))
    assert_same_cores(whole, resumed)


@pytest.mark.skipif(importlib.util.find_spec("fbgemm_gpu") is None, reason="fbgemm-gpu-cpu is not installed")
def test_the_rowwise_rule_is_fbgemms():
    """A core's slices are the rows of an FBGEMM table, whose rows get the slices' gradients."""
    fbgemm = importlib.import_module("recsys_opt.integrations.fbgemm")
    bag = make_bag(torch.float32)
    start = copy.deepcopy(bag)
    bag.fuse_update(FusedUpdate("rowwise_adagrad", 0.05, eps=1e-6))
    tables = []
    for core in start.cores:
        tables.append(fbgemm.FBGEMMEmbeddingBag(core.shape[0], core[0].numel()))
        tables[-1].weight.copy_(core.detach().flatten(1))
        tables[-1].fuse_update(FusedUpdate("rowwise_adagrad", 0.05, eps=1e-6))
    for k in range(100):
        ids = torch.randint(0, 60, (5,), generator=torch.Generator().manual_seed(k))  # some slices
        bag(ids, torch.arange(5)).square().mean().backward()
        for core, table in zip(start.cores, tables, strict=True):
            with torch.no_grad():
                core.copy_(table.weight.view_as(core))
            core.grad = None
        start(ids, torch.arange(5)).square().mean().backward()
        digits = torch.stack([ids // 15, ids // 5 % 3, ids % 5])
        for core, table, digit in zip(start.cores, tables, digits, strict=True):
            used = digit.unique()
            table(used, torch.arange(len(used))).backward(core.grad[used].flatten(1))
    for core, table, state in zip(bag.cores, tables, bag.update_state().values(), strict=True):
        assert state.min() > 0
        torch.testing.assert_close(core.detach().flatten(1), table.weight, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(state, table.update_state()["weight"], rtol=1e-4, atol=1e-5)


def test_the_state_is_named_and_sized():
    bag = make_bag(torch.bfloat16)

    def shapes(algorithm):
        bag.fuse_update(FusedUpdate(algorithm, 0.1))
        state = bag.update_state()
        assert all(t.dtype == (torch.float64 if n == "step" else torch.float32) for n, t in state.items())
        return {name: tuple(tensor.shape) for name, tensor in state.items()}

    cores = {f"cores.{k}": tuple(core.shape) for k, core in enumerate(bag.cores)}
    assert shapes("sgd") == {}
    assert shapes("adagrad") == cores
    assert shapes("rowwise_adagrad") == {
        "cores.0.rowwise": (4,),
        "cores.1.rowwise": (3,),
        "cores.2.rowwise": (5,),
    }
    moments = {f"{name}.{m}": shape for name, shape in cores.items() for m in ("exp_avg", "exp_avg_sq")}
    assert shapes("adam") == {**moments, "step": (1,)}
    assert not [name for name, _ in bag.named_buffers() if "state_2" in name]


def test_fusing_stops_and_starts_gradients():
    bag = make_bag()
    loss_of(bag).backward()
    bag.fuse_update(FusedUpdate("adagrad", 0.1))
    assert bag.learns
    assert not any(core.requires_grad or core.grad is not None for core in bag.cores)
    before = copy.deepcopy(bag.state_dict())
    loss_of(bag).backward()
    assert not any(torch.equal(before[name], core) for name, core in bag.state_dict().items())
    bag.fuse_update(None)
    assert list(bag.buffers()) == []
    after = copy.deepcopy(bag.state_dict())
    loss_of(bag).backward()
    assert all(core.grad is not None for core in bag.cores)
    assert all(torch.equal(after[name], core) for name, core in bag.state_dict().items())


def test_evaluation_updates_nothing():
    bag = make_bag()
    bag.fuse_update(FusedUpdate("sgd", 0.1))
    with torch.no_grad():
        assert not bag(*batch()).requires_grad
    with torch.inference_mode():
        bag(*batch())
    frozen = bag.freeze("cores")
    assert not frozen(*batch()).requires_grad
    assert frozen.update is None


def test_gradients_of_weights_come_with_the_update():
    fused, plain = make_bag(), make_bag()
    fused.fuse_update(FusedUpdate("sgd", 0.0))
    grads = []
    for bag in (fused, plain):
        weights = torch.linspace(-1, 1, 60, dtype=torch.float64).requires_grad_()
        bag(*batch(), weights).square().sum().backward()
        grads.append(weights.grad)
    torch.testing.assert_close(*grads)


TABLES = [
    TableConfig("a", 60, 8, ("a0", "a1"), representation="tt", options={"tt_ranks": 4}),
    TableConfig("b", 300, 8, representation="tt", options={"tt_ranks": 4}),
    TableConfig("c", 5, 8),
]


def make_collection() -> EmbeddingCollection:
    torch.manual_seed(0)
    return EmbeddingCollection(TABLES, dtype=torch.float64)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("algorithm", "optimizer"), [("adagrad", torch.optim.Adagrad), ("adam", torch.optim.Adam)]
)
def test_a_collection_with_a_table_of_two_features(compiled, algorithm, optimizer):
    """Adam's lazy rule is torch's where every slice is used."""
    ids = torch.cat(
        [torch.randperm(60), torch.randperm(60), torch.randperm(300)[:60], torch.randint(0, 5, (60,))]
    )
    collections = make_collection(), make_collection()
    update = FusedUpdate(algorithm, 0.01)
    for name in "ab":
        collections[0].table(name).fuse_update(update)
    plain = optimizer(
        [*collections[1].table("a").parameters(), *collections[1].table("b").parameters()], lr=0.01, eps=1e-8
    )
    for tables, step in ((collections[0], lambda: None), (collections[1], plain.step)):
        forward = torch.compile(tables, fullgraph=True) if compiled and tables is collections[0] else tables
        for _ in range(4):
            plain.zero_grad()
            (forward(ids) - 1).square().sum().backward()
            step()
    got, want = (tables.state_dict() for tables in collections)
    for name, tensor in want.items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-9, atol=1e-9, msg=name)


def test_tables_looked_up_together_need_one_rule():
    tables = make_collection()
    tables.table("a").fuse_update(FusedUpdate("sgd", 0.1))
    with pytest.raises(InputError, match="the same object, or None"):
        tables(torch.zeros(8, dtype=torch.long))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("adamw", 0.1), {}, "algorithm = 'adamw'; choose one of sgd, adagrad"),
        (("sgd", -0.1), {}, "learning_rate = -0.1; it must be a finite"),
        (("sgd", math.nan), {}, "learning_rate = nan"),
        (("adam", 0.1), {"eps": 0.0}, "eps = 0.0; adam needs it larger than 0"),
        (("adam", 0.1), {"betas": (0.9, 1.0)}, "below 1"),
    ],
)
def test_bad_rules_are_named(arguments, options, message):
    with pytest.raises(InputError, match=message):
        FusedUpdate(*arguments, **options)


# --- ordinary optimizers ---


@pytest.mark.parametrize(
    ("make", "clip"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True), None),
        (lambda p: torch.optim.SGD(p, lr=0.05), 1.0),
        (lambda p: torch.optim.Adam(p, lr=0.01), None),
        (lambda p: torch.optim.AdamW(p, lr=0.01, fused=True), 0.5),
        (lambda p: torch.optim.Adagrad(p, lr=0.05), None),
    ],
)
def test_torchs_optimizers_train_the_cores(make, clip):
    """The same steps as on cores whose rows plain torch multiplies."""
    ours, theirs = make_bag(), make_bag()
    for bag, rows in ((ours, None), (theirs, theirs.materialize)):
        optimizer = make(bag.parameters())
        before = loss_of(bag).item()
        for k in range(30):
            optimizer.zero_grad()
            if rows is None:
                loss = loss_of(bag, k)
            else:
                ids, offsets = batch(k)
                out = nn.functional.embedding_bag(ids, rows(), offsets, mode="sum")
                loss = (out - torch.linspace(-1, 1, 8, dtype=out.dtype)).square().mean()
            loss.backward()
            if clip:
                norm = nn.utils.clip_grad_norm_(bag.parameters(), clip)
                assert norm > clip or k > 0
            optimizer.step()
        assert loss_of(bag).item() < before
    assert_same_cores(ours, theirs, 1e-9)


def test_a_grad_scaler_skips_steps_that_overflow():
    bag = make_bag(torch.float32)
    optimizer = torch.optim.SGD(bag.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for k in range(4):
        optimizer.zero_grad()
        loss = loss_of(bag, k) * (math.inf if k == 2 else 1.0)
        before = copy.deepcopy(bag.state_dict())
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        same = all(torch.equal(before[name], core) for name, core in bag.state_dict().items())
        assert same == (k == 2)
    assert scaler.get_scale() == 2.0**9
