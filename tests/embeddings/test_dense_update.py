"""Dense tables whose backward pass updates their rows: the op beside its twin, the module beside torch."""

import copy
import importlib.util

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from recsys_opt import TableConfig, ops, reference
from recsys_opt.embeddings.collection import EmbeddingCollection
from recsys_opt.embeddings.dense import DenseEmbeddingBag
from recsys_opt.embeddings.frozen import FrozenEmbeddingBag
from recsys_opt.embeddings.fused_update import FusedUpdate
from recsys_opt.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

NATIVE = torch.ops.recsys_opt.dense_bag_backward_update
ALGORITHMS = ["sgd", "adagrad", "rowwise_adagrad", "adam"]


def numbers(lr=0.1, eps=1e-3, beta1=0.9, beta2=0.99, weight_decay=0.0, step=1) -> Tensor:
    return torch.tensor([lr, eps, beta1, beta2, weight_decay, step], dtype=torch.float64)


def make_states(algorithm: str, weights: list[Tensor], fill: float = 1.0) -> list[Tensor]:
    """States of the tables, shared where tables are."""
    count = {"sgd": 0, "adagrad": 1, "rowwise_adagrad": 1, "adam": 2}[algorithm]
    made: dict[int, list[Tensor]] = {}
    for weight in weights:
        shape = weight.shape[:1] if algorithm == "rowwise_adagrad" else weight.shape
        fresh = [torch.rand(shape, dtype=weight.dtype) * fill for _ in range(count)]
        made.setdefault(weight.data_ptr(), fresh)
    return [state for weight in weights for state in made[weight.data_ptr()]]


@st.composite
def updates(draw):
    """Arguments of one update: grad, weights, states, batch, mean, factors_grad, algorithm, numbers."""
    torch.manual_seed(draw(st.integers(0, 10_000)))
    tables, batch = draw(st.integers(1, 4)), draw(st.sampled_from([0, 1, 2, 12]))
    # Few rows are numbered directly, many are hashed; the last ids are far from the first.
    rows = [draw(st.sampled_from([1, 2, 17, 500, 20_011])) for _ in range(tables)]
    dims = [draw(st.sampled_from([1, 3, 16, 33, 64])) for _ in range(tables)]
    weights = [torch.randn(n, d, dtype=torch.float64) for n, d in zip(rows, dims, strict=True)]
    if tables > 1 and draw(st.booleans()):
        weights[-1], rows[-1], dims[-1] = weights[0], rows[0], dims[0]
    fixed, few = draw(st.booleans()), draw(st.booleans())
    lengths = (
        torch.ones(tables * batch, dtype=torch.long) if fixed else torch.randint(0, 4, (tables * batch,))
    )
    ids = []
    for k, length in enumerate(lengths.tolist()):
        n = rows[k // batch]
        bag = torch.randint(0, min(n, 3) if few else n, (length,))
        bag[:1] = (0, n - 1, n // 2)[k % 3]
        ids.append(bag)
    indices = torch.cat([*ids, torch.empty(0, dtype=torch.long)]).to(
        draw(st.sampled_from([torch.int32, torch.int64]))
    )
    offsets = None if fixed else torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    factors = torch.randn(len(indices), dtype=torch.float64) if draw(st.booleans()) else None
    mean = [int(factors is None and draw(st.booleans())) for _ in range(tables)]
    algorithm = draw(st.sampled_from(ALGORITHMS))
    hyperparameters = numbers(weight_decay=draw(st.sampled_from([0.0, 0.1])), step=draw(st.integers(1, 9)))
    wide = torch.randn(batch, sum(dims) + 2, dtype=torch.float64)
    grad = wide[:, 1:-1] if draw(st.booleans()) else wide[:, 2:].contiguous()
    return (
        grad,
        weights,
        make_states(algorithm, weights),
        indices,
        offsets,
        factors,
        mean,
        factors is not None and draw(st.booleans()),
        ops.TT_ALGORITHMS[algorithm],
        hyperparameters,
    )


def used_rows(weights: list[Tensor], indices: Tensor, offsets: Tensor | None) -> list[Tensor]:
    """Which rows of each table a batch looks up."""
    bounds = torch.arange(len(indices) + 1) if offsets is None else offsets
    batch = (len(bounds) - 1) // len(weights)
    used: dict[int, Tensor] = {}
    for t, weight in enumerate(weights):
        mine = used.setdefault(weight.data_ptr(), torch.zeros(len(weight), dtype=torch.bool))
        mine[indices[bounds[t * batch] : bounds[(t + 1) * batch]].long()] = True
    return [used[weight.data_ptr()] for weight in weights]


@settings(max_examples=80)
@given(updates())
def test_the_update_matches_the_reference(args):
    grad, weights, states, *rest = args
    got, want = copy.deepcopy((weights, states)), copy.deepcopy((weights, states))
    torch.testing.assert_close(
        (NATIVE(grad, *got, *rest), *got), (reference.dense_bag_backward_update(grad, *want, *rest), *want)
    )
    for before, after, used in zip(weights, got[0], used_rows(weights, rest[0], rest[1]), strict=True):
        assert torch.equal(before[~used], after[~used])


@pytest.mark.parametrize("rows", [50, 40_000])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_touched_row_moves_and_no_other(algorithm, rows):
    torch.manual_seed(0)
    weights = [torch.randn(rows, 16), torch.randn(rows, 5)]
    states = make_states(algorithm, weights, 0.0)
    before = copy.deepcopy((weights, states))
    indices = torch.randint(0, rows, (2 * 700,))
    indices = indices - indices % 3
    NATIVE(torch.randn(700, 21), weights, states, indices, None, None, [0, 0], False,
           ops.TT_ALGORITHMS[algorithm], numbers())  # fmt: skip
    used = used_rows(weights, indices, None)
    assert all(u.any() and not u.all() for u in used)
    for t, (old, new) in enumerate(zip(before[0], weights, strict=True)):
        assert torch.equal((old != new).all(1), used[t])
        assert torch.equal((old != new).any(1), used[t])
    per_table = len(states) // 2
    for k, (old, new) in enumerate(zip(before[1], states, strict=True)):
        moved = (old != new).view(rows, -1)
        assert torch.equal(moved.all(1), used[k // per_table])
        assert torch.equal(moved.any(1), used[k // per_table])


def test_the_gradients_of_an_id_are_summed_before_its_row_changes():
    """One by one they would vanish beside the row, as they do in torch's SGD."""
    weight = torch.ones(1, 16)
    grad = torch.full((4096, 16), 2.0**-26)
    NATIVE(
        grad, [weight], [], torch.zeros(4096, dtype=torch.long), None, None, [0], False, 0, numbers(lr=1.0)
    )
    assert torch.equal(weight, torch.full((1, 16), 1 - 2.0**-14))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_threads_do_not_change_the_result(algorithm):
    results, threads = [], torch.get_num_threads()
    try:
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            torch.manual_seed(0)
            large, small = torch.randn(300_000, 16), torch.randn(60, 16)
            weights = [large, large, small]  # the two features' ids are shared out among the threads
            states = make_states(algorithm, weights)
            ids = torch.randint(0, 300_000, (20_000,))
            indices = torch.cat([ids[:10_000], ids[10_000:] // 1000, torch.randint(0, 60, (10_000,))])
            NATIVE(torch.randn(10_000, 48), weights, states, indices, None, None, [0, 1, 0], False,
                   ops.TT_ALGORITHMS[algorithm], numbers())  # fmt: skip
            results.append([*weights, *states])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def make_bag(rows: int = 60, dtype=torch.float64, mode="sum") -> DenseEmbeddingBag:
    torch.manual_seed(0)
    return DenseEmbeddingBag(rows, 8, mode=mode, dtype=dtype)


def batch(k: int = 0, rows: int = 60) -> tuple[Tensor, Tensor]:
    """Every id, some several times, in bags of four."""
    generator = torch.Generator().manual_seed(k)
    more = torch.randint(0, rows, (20,), generator=generator)
    ids = torch.cat([torch.randperm(rows, generator=generator), more])
    return ids, torch.arange(0, len(ids), 4)


def loss_of(bag: nn.Module, k: int = 0) -> Tensor:
    out = bag(*batch(k))
    return (out - torch.linspace(-1, 1, out.shape[1], dtype=out.dtype)).square().mean()


def train(bag: nn.Module, steps, optimizer: torch.optim.Optimizer | None = None) -> None:
    for k in steps:
        if optimizer:
            optimizer.zero_grad()
        loss_of(bag, k).backward()
        if optimizer:
            optimizer.step()


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize(
    ("algorithm", "optimizer", "options"),
    [
        ("sgd", torch.optim.SGD, {}),
        ("sgd", torch.optim.SGD, {"weight_decay": 0.1}),
        ("adagrad", torch.optim.Adagrad, {"eps": 1e-6}),
        ("adam", torch.optim.Adam, {"betas": (0.8, 0.9), "eps": 1e-6}),
    ],
)
def test_a_hundred_steps_equal_torchs_optimizer(algorithm, optimizer, options, mode):
    fused = make_bag(mode=mode)
    plain = nn.EmbeddingBag(60, 8, mode=mode, _weight=fused.weight.detach().clone())
    update = FusedUpdate(algorithm, 0.03, **options)
    fused.fuse_update(update)
    torchs = optimizer(plain.parameters(), lr=0.03, **options)
    train(fused, range(50))
    train(plain, range(50), torchs)
    update.set_learning_rate(0.01)
    torchs.param_groups[0]["lr"] = 0.01
    train(fused, range(50, 100))
    train(plain, range(50, 100), torchs)
    torch.testing.assert_close(fused.weight.detach(), plain.weight.detach(), rtol=1e-10, atol=1e-10)
    assert fused.weight.grad is None


def test_a_hundred_steps_equal_the_exact_rowwise_adagrad_of_stored_gradients():
    fused, stored = make_bag(), make_bag()
    fused.fuse_update(FusedUpdate("rowwise_adagrad", 0.05, eps=1e-6))
    state = torch.zeros(60, dtype=torch.float64)
    for k in range(100):
        loss_of(fused, k).backward()
        stored.weight.grad = None
        loss_of(stored, k).backward()
        grad = stored.weight.grad
        with torch.no_grad():
            ops.rowwise_adagrad_rows_(
                [stored.weight], [state], [grad._indices()[0]], [grad._values()], 0.05, 1e-6
            )
    torch.testing.assert_close(fused.weight.detach(), stored.weight.detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(fused.update_state(), {"weight": state}, rtol=1e-10, atol=1e-10)


@pytest.mark.skipif(importlib.util.find_spec("fbgemm_gpu") is None, reason="fbgemm-gpu-cpu is not installed")
@pytest.mark.parametrize("algorithm", ["sgd", "rowwise_adagrad"])
def test_the_rules_are_fbgemms(algorithm):
    fbgemm = importlib.import_module("recsys_opt.integrations.fbgemm")
    ours, theirs = make_bag(dtype=torch.float32), fbgemm.FBGEMMEmbeddingBag(60, 8)
    theirs.weight.copy_(ours.weight.detach())
    for bag in (ours, theirs):
        bag.fuse_update(FusedUpdate(algorithm, 0.05, eps=1e-6))
        train(bag, range(100))
    torch.testing.assert_close(ours.weight.detach(), theirs.weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.update_state(), theirs.update_state(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_going_on_from_a_checkpoint_gives_the_same_bits(algorithm):
    whole, resumed = make_bag(dtype=torch.float32), make_bag(dtype=torch.float32)
    whole.fuse_update(FusedUpdate(algorithm, 0.05))
    train(whole, range(5))
    model = copy.deepcopy(whole.state_dict())
    state = {name: tensor.clone() for name, tensor in whole.update_state().items()}
    assert set(model) == {"weight"}  # the update's state is the optimizer's to save
    train(whole, range(5, 10))
    resumed.fuse_update(FusedUpdate(algorithm, 0.05))
    resumed.load_state_dict(model)
    own = resumed.update_state()
    assert own.keys() == state.keys()
    for name, tensor in own.items():
        tensor.copy_(state[name])
    train(resumed, range(5, 10))
    assert torch.equal(whole.weight, resumed.weight)


def test_the_state_is_named_and_sized():
    bag = make_bag()

    def shapes(algorithm):
        bag.fuse_update(FusedUpdate(algorithm, 0.1))
        return {name: tuple(tensor.shape) for name, tensor in bag.update_state().items()}

    assert shapes("sgd") == {}
    assert shapes("adagrad") == {"weight.sum": (60, 8)}
    assert shapes("rowwise_adagrad") == {"weight": (60,)}
    assert shapes("adam") == {"weight.exp_avg": (60, 8), "weight.exp_avg_sq": (60, 8), "step": (1,)}
    assert len(list(bag.buffers())) == 2


def test_fusing_stops_and_starts_gradients():
    bag = make_bag()
    loss_of(bag).backward()
    bag.fuse_update(FusedUpdate("adagrad", 0.1))
    assert bag.learns
    assert not bag.weight.requires_grad
    assert bag.weight.grad is None
    before = bag.weight.detach().clone()
    loss_of(bag).backward()
    assert (bag.weight != before).any(1).all()
    bag.fuse_update(None)
    assert list(bag.buffers()) == []
    after = bag.weight.detach().clone()
    loss_of(bag).backward()
    assert bag.weight.grad is not None
    assert torch.equal(bag.weight, after)


def test_evaluation_updates_nothing():
    bag = make_bag()
    bag.fuse_update(FusedUpdate("sgd", 0.1))
    with torch.no_grad():
        assert not bag(*batch()).requires_grad
    with torch.inference_mode():
        bag(*batch())
    frozen = FrozenEmbeddingBag(60, 8)
    assert not frozen.learns
    with pytest.raises(InputError, match="a frozen table is not trained"):
        frozen.fuse_update(FusedUpdate("sgd", 0.1))


def test_gradients_of_weights_come_with_the_update():
    """They are about the rows as they were in the forward pass."""
    fused, plain = make_bag(), make_bag()
    fused.fuse_update(FusedUpdate("sgd", 0.5))
    grads = []
    for bag in (fused, plain):
        weights = torch.linspace(-1, 1, 80, dtype=torch.float64).requires_grad_()
        bag(*batch(), weights).square().sum().backward()
        grads.append(weights.grad)
    torch.testing.assert_close(*grads)


def test_two_lookups_of_one_backward_pass_update_one_after_the_other():
    fused, plain = make_bag(), make_bag()
    fused.fuse_update(FusedUpdate("sgd", 0.1))
    (loss_of(fused, 0) + loss_of(fused, 1)).backward()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    (loss_of(plain, 0) + loss_of(plain, 1)).backward()
    optimizer.step()
    torch.testing.assert_close(fused.weight.detach(), plain.weight.detach())


def test_a_backward_pass_through_changed_rows_is_refused():
    """What another layer saved of the table before the update is of no use after it."""
    bag = make_bag()
    bag.fuse_update(FusedUpdate("sgd", 0.1))
    x = torch.ones(8, dtype=torch.float64, requires_grad=True)
    product = bag.weight @ x
    loss_of(bag).backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


TABLES = [TableConfig("a", 60, 8, ("a0", "a1")), TableConfig("b", 3000, 8), TableConfig("c", 5, 8)]


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("algorithm", ["sgd", "adagrad"])
def test_a_collection_with_a_table_of_two_features(compiled, algorithm):
    ids = torch.cat([torch.randint(0, n, (60,)) for n in (60, 60, 3000, 5)])
    collections = []
    for _ in range(2):
        torch.manual_seed(0)
        collections.append(EmbeddingCollection(TABLES, dtype=torch.float64))
    fused, plain = collections
    update = FusedUpdate(algorithm, 0.01)
    for name in "abc":
        fused.table(name).fuse_update(update)
    kind = torch.optim.SGD if algorithm == "sgd" else torch.optim.Adagrad
    optimizer = kind(plain.parameters(), lr=0.01, **({} if algorithm == "sgd" else {"eps": 1e-8}))
    forward = torch.compile(fused, fullgraph=True) if compiled else fused
    for _ in range(4):
        (forward(ids) - 1).square().sum().backward()
        optimizer.zero_grad()
        (plain(ids) - 1).square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(dict(fused.state_dict()), dict(plain.state_dict()), rtol=1e-9, atol=1e-9)


def test_tables_looked_up_together_need_one_rule():
    tables = EmbeddingCollection(TABLES)
    tables.table("a").fuse_update(FusedUpdate("sgd", 0.1))
    with pytest.raises(InputError, match="the same object, or None"):
        tables(torch.zeros(8, dtype=torch.long))


def example() -> dict[str, object]:
    torch.manual_seed(0)
    weights = [torch.randn(7, 3, dtype=torch.float64), torch.randn(9, 3, dtype=torch.float64)]
    return {
        "grad": torch.randn(2, 6, dtype=torch.float64),
        "weights": weights,
        "states": make_states("rowwise_adagrad", weights),
        "indices": torch.tensor([0, 6, 6, 1, 8]),
        "offsets": torch.tensor([0, 2, 3, 3, 5]),
        "factors": torch.randn(5, dtype=torch.float64),
        "mean": [0, 0],
        "factors_grad": True,
        "algorithm": 2,
        "numbers": numbers(),
    }


def test_opcheck():
    torch.library.opcheck(NATIVE.default, tuple(example().values()))
    sgd = example() | {"states": [], "algorithm": 0, "offsets": None, "factors": None, "factors_grad": False}
    torch.library.opcheck(NATIVE.default, tuple((sgd | {"indices": torch.tensor([0, 6, 6, 1])}).values()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"indices": torch.tensor([0, 6, 7, 1, 8])}, r"indices\[2\] = 7 is outside the 7 rows of table 0"),
        ({"indices": torch.tensor([0, 6, 6, -1, 8])}, r"indices\[3\] = -1 is outside the 9 rows of table 1"),
        ({"grad": torch.zeros(2, 5, dtype=torch.float64)}, r"grad must be \[2, 6\]"),
        ({"grad": torch.zeros(2, 6)}, "with the weights' dtype"),
        ({"states": []}, "2 tables need 2 states, got 0"),
        ({"states": [torch.zeros(7), torch.zeros(9)]}, "state 0 of table 0 must be 7 contiguous numbers"),
        ({"algorithm": 1}, "state 0 of table 0 must be 21 contiguous numbers"),
        ({"algorithm": 4}, r"algorithm 4 is not 0 \(SGD\)"),
        ({"numbers": torch.zeros(5, dtype=torch.float64)}, "hyperparameters must be 6 float64 numbers"),
        ({"offsets": torch.tensor([0, 2, 1, 3, 5])}, r"offsets\[2\] = 1 is below"),
        ({"factors": None}, "no per_sample_weights to have a gradient"),
    ],
)
@pytest.mark.parametrize("factors_grad", [False, True])
def test_bad_arguments_are_named_and_change_nothing(change, message, factors_grad):
    args = example() | {"factors_grad": factors_grad or "factors" in change}
    weights = args["weights"]
    before = copy.deepcopy(weights)
    with pytest.raises(RuntimeError, match=message):
        NATIVE(*(args | change).values())
    assert all(torch.equal(a, b) for a, b in zip(before, weights, strict=True))


def test_features_of_a_table_must_share_its_states():
    args = example()
    args["weights"] = [args["weights"][0]] * 2
    args["indices"] = args["indices"] % 7
    args["states"] = [torch.zeros(7, dtype=torch.float64) for _ in range(2)]
    with pytest.raises(RuntimeError, match="are one table, but have not the same states"):
        NATIVE(*args.values())
    args["weights"] = [args["weights"][0], args["weights"][0][:5]]
    with pytest.raises(RuntimeError, match="but are not the same table"):
        NATIVE(*args.values())
