import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from recsys_opt import DLRM, TableConfig, ops, reference
from recsys_opt.embeddings.collection import EmbeddingCollection
from recsys_opt.errors import InputError
from recsys_opt.training.optimizers import ModelOptimizer, OptimizerConfig, parameters_by_kind

pytestmark = pytest.mark.usefixtures("one_thread")

TABLES = [TableConfig("a", 40, 4, ("a0", "a1")), TableConfig("b", 3, 4), TableConfig("c", 500, 4)]


def small_model(seed: int = 0, dtype: torch.dtype = torch.float64) -> DLRM:
    torch.manual_seed(seed)
    return DLRM(TABLES, dense_features=5, bottom_mlp=(8, 4), top_mlp=(8, 1), dtype=dtype)


def batches(count: int, batch: int = 32, dtype: torch.dtype = torch.float64):
    g = torch.Generator().manual_seed(7)
    rows = [config.num_embeddings for config in TABLES for _ in config.feature_names]
    for _ in range(count):
        dense = torch.randn(batch, 5, generator=g, dtype=dtype)
        values = torch.cat([torch.randint(0, n, (batch,), generator=g) for n in rows])
        labels = torch.rand(batch, generator=g).round().to(dtype)
        yield dense, values, labels


def train(model: nn.Module, step, count: int = 100) -> None:
    for dense, values, labels in batches(count, dtype=next(model.parameters()).dtype):
        loss = nn.functional.binary_cross_entropy_with_logits(model(dense, values), labels)
        for p in model.parameters():
            p.grad = None
        loss.backward()
        step()


def assert_same_parameters(a: nn.Module, b: nn.Module, **tolerance: float) -> None:
    for (name, x), y in zip(a.named_parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(x, y, msg=lambda m, n=name: f"{n}: {m}", **tolerance)


def test_sgd_equals_torchs_over_100_steps():
    ours, theirs = small_model(), small_model()
    train(ours, ModelOptimizer(ours, OptimizerConfig("sgd", 0.1, 0.3, 0.2)).step)
    kinds = parameters_by_kind(theirs)
    plain = torch.optim.SGD(
        [{"params": kinds["mlp"].values(), "lr": 0.1}, {"params": kinds["tables"].values(), "lr": 0.3}]
    )
    train(theirs, plain.step)
    assert_same_parameters(ours, theirs, rtol=1e-10, atol=1e-12)


def test_adagrad_of_the_mlps_equals_torchs_over_100_steps():
    ours, theirs = small_model(), small_model()
    train(ours, ModelOptimizer(ours, OptimizerConfig("adagrad", 0.05, table_lr=0.0, eps=1e-8)).step)
    plain = torch.optim.Adagrad(parameters_by_kind(theirs)["mlp"].values(), lr=0.05, eps=1e-8)
    train(theirs, plain.step)
    assert_same_parameters(ours, theirs, rtol=1e-10, atol=1e-12)


def test_rowwise_adagrad_equals_a_plain_one_over_100_steps():
    ours, theirs = small_model(), small_model()
    train(ours, ModelOptimizer(ours, OptimizerConfig("adagrad", mlp_lr=0.0, table_lr=0.05, eps=1e-6)).step)
    tables = parameters_by_kind(theirs)["tables"]
    state = {name: torch.zeros(p.shape[0], dtype=p.dtype) for name, p in tables.items()}

    @torch.no_grad()
    def step() -> None:
        for name, p in tables.items():
            gradient = p.grad.to_dense()
            for i in range(p.shape[0]):
                if gradient[i].any():
                    state[name][i] += (gradient[i] ** 2).mean()
                    p[i] -= 0.05 * gradient[i] / (state[name][i] ** 0.5 + 1e-6)

    train(theirs, step)
    assert_same_parameters(ours, theirs, rtol=1e-10, atol=1e-12)


@st.composite
def row_updates(draw):
    g = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    weights, states, ids, grads = [], [], [], []
    for _ in range(draw(st.integers(1, 4))):
        # Row counts around the digits of the radix sort, and beyond one and two of them.
        rows = draw(st.sampled_from([1, 2, 3, 17, 2047, 2048, 2049, 30_000]))
        dim, n = draw(st.sampled_from([1, 3, 8, 16, 33])), draw(st.integers(0, 400))
        few = draw(st.booleans())
        i = torch.randint(0, min(rows, 4) if few else rows, (n,), generator=g)
        if n > 1:
            i[0], i[1] = rows - 1, 0
        weights.append(torch.randn(rows, dim, generator=g, dtype=torch.float64))
        states.append(torch.rand(rows, generator=g, dtype=torch.float64))
        ids.append(i)
        wide = torch.randn(n, dim + 3, generator=g, dtype=torch.float64)
        grads.append(wide[:, 1 : dim + 1] if draw(st.booleans()) else wide[:, :dim].contiguous())
    return weights, states, ids, grads


@settings(max_examples=40)
@given(row_updates())
def test_row_updates_match_the_reference(case):
    weights, states, ids, grads = case
    got, want = copy.deepcopy((weights, states)), copy.deepcopy((weights, states))
    ops.rowwise_adagrad_rows_(*got, ids, grads, 0.3, 1e-3)
    reference.rowwise_adagrad_rows_(*want, ids, grads, 0.3, 1e-3)
    torch.testing.assert_close(got, want)
    got, want = copy.deepcopy(weights), copy.deepcopy(weights)
    ops.sgd_rows_(got, ids, grads, 0.3)
    reference.sgd_rows_(want, ids, grads, 0.3)
    torch.testing.assert_close(got, want)


def test_rows_of_a_table_that_needs_three_passes_of_the_sort():
    rows = 2**22 + 3
    ids = torch.randint(0, rows, (5000,), generator=torch.Generator().manual_seed(0))
    ids[::7] = rows - 1
    got, want = torch.zeros(rows, 1), torch.zeros(rows, 1)
    grads = torch.linspace(-1, 1, 5000)[:, None]
    ops.sgd_rows_([got], [ids], [grads], 1.0)
    reference.sgd_rows_([want], [ids], [grads], 1.0)
    torch.testing.assert_close(got, want)


@settings(max_examples=20)
@given(sizes=st.lists(st.integers(0, 40_000), min_size=1, max_size=4), seed=st.integers(0, 100))
def test_adagrad_matches_the_reference(sizes, seed):
    g = torch.Generator().manual_seed(seed)
    parameters = [torch.randn(n, generator=g, dtype=torch.float64) for n in sizes]
    states = [torch.rand(n, generator=g, dtype=torch.float64) for n in sizes]
    grads = [torch.randn(n, 2, generator=g, dtype=torch.float64)[:, 0] for n in sizes]
    got, want = copy.deepcopy((parameters, states)), copy.deepcopy((parameters, states))
    ops.adagrad_(*got, grads, 0.3, 1e-3)
    reference.adagrad_(*want, grads, 0.3, 1e-3)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (([torch.zeros(2)], [torch.zeros(2)], []), "1 parameters need as many states and grads"),
        (([torch.zeros(2)], [torch.zeros(3)], [torch.zeros(2)]), r"parameters\[0\] has 2 numbers"),
        (([torch.zeros(2)], [torch.zeros(2)], [torch.zeros(2).double()]), "differ in dtype"),
        (([torch.zeros(2, 2)[:, 0]], [torch.zeros(2)], [torch.zeros(2)]), "must be contiguous"),
    ],
)
def test_bad_adagrad_arguments_are_named(args, message):
    with pytest.raises(RuntimeError, match=message):
        ops.adagrad_(*args, 0.1, 1e-8)


def rows_example() -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    g = torch.Generator().manual_seed(0)
    weights = [torch.randn(n, 16, generator=g) for n in (3, 9000)]
    states = [torch.zeros(3), torch.zeros(9000)]
    ids = [torch.randint(0, n, (3000,), generator=g) for n in (3, 9000)]
    return weights, states, ids, [torch.randn(3000, 16, generator=g) for _ in ids]


def test_threads_do_not_change_the_rows():
    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            weights, states, ids, grads = rows_example()
            ops.rowwise_adagrad_rows_(weights, states, ids, grads, 0.1, 1e-8)
            ops.sgd_rows_(weights, ids, grads, 0.1)
            results.append([*weights, *states])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


def test_opcheck():
    weights, states, ids, grads = rows_example()
    torch.library.opcheck(torch.ops.recsys_opt.sgd_rows_.default, (weights, ids, grads, 0.1))
    torch.library.opcheck(
        torch.ops.recsys_opt.adagrad_.default,
        ([g.clone() for g in grads], [g.square() for g in grads], grads, 0.1, 1e-8),
    )
    torch.library.opcheck(
        torch.ops.recsys_opt.rowwise_adagrad_rows_.default, (weights, states, ids, grads, 0.1, 1e-8)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"ids": [torch.tensor([3]), torch.tensor([0])]},
            r"ids\[0\]\[0\] = 3 is outside the 3 rows of table 0",
        ),
        ({"ids": [torch.tensor([0]), torch.tensor([-1])]}, r"ids\[1\]\[0\] = -1 is outside"),
        ({"grads": [torch.zeros(1, 2), torch.zeros(1, 3)]}, r"grads\[1\] must be \[1, 2\]"),
        ({"states": [torch.zeros(3), torch.zeros(3)]}, r"states\[1\] must be \[4\]"),
        ({"states": [torch.zeros(3)]}, r"2 weights need as many ids, grads and states"),
    ],
)
def test_bad_rows_are_named(change, message):
    args = {
        "weights": [torch.zeros(3, 2), torch.zeros(4, 2)],
        "states": [torch.zeros(3), torch.zeros(4)],
        "ids": [torch.tensor([0]), torch.tensor([0])],
        "grads": [torch.zeros(1, 2), torch.zeros(1, 2)],
    } | change
    with pytest.raises(RuntimeError, match=message):
        ops.rowwise_adagrad_rows_(*args.values(), 0.1, 1e-8)


@pytest.mark.parametrize("algorithm", ["sgd", "adagrad"])
def test_going_on_from_a_saved_state_gives_the_same_weights(algorithm):
    config = OptimizerConfig(algorithm, 0.1, 0.1)
    whole = small_model(dtype=torch.float32)
    optimizer = ModelOptimizer(whole, config)
    steps = list(batches(6, dtype=torch.float32))

    def run(model: DLRM, optimizer: ModelOptimizer, part: list) -> None:
        for dense, values, labels in part:
            loss = nn.functional.binary_cross_entropy_with_logits(model(dense, values), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    run(whole, optimizer, steps[:3])
    resumed = small_model(seed=1, dtype=torch.float32)
    again = ModelOptimizer(resumed, config)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    again.load_state_dict({name: t.clone() for name, t in optimizer.state_dict().items()})
    run(whole, optimizer, steps[3:])
    run(resumed, again, steps[3:])
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


CACHED = TableConfig(
    "t", 60, 4, representation="tt_cached", options={"tt_ranks": 4, "cache_rows": 2, "refresh_every": None}
)


def test_held_rows_learn_at_the_tables_rate_and_cores_at_theirs():
    torch.manual_seed(0)
    model = DLRM([CACHED], dense_features=5, bottom_mlp=(8, 4), top_mlp=(8, 1))
    kinds = parameters_by_kind(model)
    assert list(kinds["tables"]) == ["embeddings.tables.t.hot.weight"]
    assert list(kinds["cores"]) == [f"embeddings.tables.t.tt.cores.{k}" for k in range(3)]


def test_a_row_that_comes_in_does_not_inherit_the_state_of_the_one_that_left():
    torch.manual_seed(0)
    bag = EmbeddingCollection([CACHED])
    table, rate = bag.table("t"), 0.5
    optimizer = ModelOptimizer(bag, OptimizerConfig("adagrad", table_lr=rate, eps=1e-8))
    name = "tables.t.hot.weight"

    def step(ids: list[int], upstream: float) -> None:
        optimizer.zero_grad()
        (bag(torch.tensor(ids)) * upstream).sum().backward()
        optimizer.step()

    step([5, 5, 6, 6], 1.0)
    table.refresh()
    step([5, 5, 6, 6] + [7] * 20, 1.0)
    assert optimizer.state_dict()[name].tolist() == [4.0, 4.0]  # (1 + 1)^2
    table.refresh()  # 7 takes the slot of 5
    assert table.hot.keys.tolist() == [7, 6]
    before = table.materialize().detach()
    # Saved and loaded between the refresh and the update: it is forgotten all the same.
    saved = {key: value.clone() for key, value in optimizer.state_dict().items()}
    optimizer = ModelOptimizer(bag, OptimizerConfig("adagrad", table_lr=rate, eps=1e-8))
    optimizer.load_state_dict(saved)
    step([6, 7], 3.0)
    assert optimizer.state_dict()[name].tolist() == [9.0, 13.0]
    moved = (before - table.materialize().detach())[[7, 6], 0]
    torch.testing.assert_close(moved, rate * 3.0 / torch.tensor([9.0, 13.0]).sqrt())


def tt_model(seed: int = 0) -> DLRM:
    torch.manual_seed(seed)
    tables = [
        TableConfig("a", 40, 4, ("a0", "a1"), representation="tt", options={"tt_ranks": 3}),
        TableConfig("b", 3, 4),
        TableConfig("c", 500, 4, representation="tt", options={"tt_ranks": 4}),
    ]
    return DLRM(tables, dense_features=5, bottom_mlp=(8, 4), top_mlp=(8, 1), dtype=torch.float64)


def run_optimizer(model: DLRM, optimizer: ModelOptimizer, part: list) -> None:
    for k, (dense, values, labels) in enumerate(part):
        optimizer.scale_learning_rates(1.0 if k < 5 else 0.3)
        loss = nn.functional.binary_cross_entropy_with_logits(model(dense, values), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("algorithm", ["sgd", "adagrad"])
def test_tables_updated_in_the_backward_pass_end_the_same(algorithm):
    results = []
    for table_update in ("fused", "stored"):
        model = tt_model()
        optimizer = ModelOptimizer(
            model, OptimizerConfig(algorithm, 0.1, 0.05, 0.2, table_update=table_update)
        )
        run_optimizer(model, optimizer, list(batches(100)))
        assert all(
            (p.grad is None) == (table_update == "fused")
            for n, p in model.named_parameters()
            if "embeddings" in n
        )
        results.append((model.state_dict(), optimizer.state_dict()))
    for fused, stored in zip(*results, strict=True):
        assert fused.keys() == stored.keys()
        for name, tensor in fused.items():
            torch.testing.assert_close(tensor, stored[name], rtol=1e-9, atol=1e-12, msg=name)


def test_a_state_of_stored_gradients_goes_on_fused():
    """Runs from before updates were fused can be resumed."""
    whole, resumed = tt_model(), tt_model(seed=1)
    steps = list(batches(6))
    stored = ModelOptimizer(whole, OptimizerConfig("adagrad", table_update="stored"))
    run_optimizer(whole, stored, steps[:3])
    fused = ModelOptimizer(resumed, OptimizerConfig("adagrad"))
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    fused.load_state_dict({name: t.clone() for name, t in stored.state_dict().items()})
    run_optimizer(whole, stored, steps[3:])
    run_optimizer(resumed, fused, steps[3:])
    assert_same_parameters(whole, resumed, rtol=1e-9, atol=1e-12)


def test_frozen_cores_stay_and_a_second_optimizer_starts_anew():
    model = tt_model()
    frozen = model.embeddings.table("a")
    frozen.requires_grad_(False)
    before = copy.deepcopy(frozen.state_dict())
    ModelOptimizer(model, OptimizerConfig("adagrad", table_update="stored"))
    model.embeddings.table("c").requires_grad_(False)
    run_optimizer(model, ModelOptimizer(model, OptimizerConfig("adagrad")), list(batches(2)))
    assert all(torch.equal(before[name], core) for name, core in frozen.state_dict().items())
    model.requires_grad_(True)
    first = ModelOptimizer(model, OptimizerConfig("adagrad"))
    run_optimizer(model, first, list(batches(2)))
    second = ModelOptimizer(model, OptimizerConfig("adagrad"))
    assert not any(state.any() for state in second.state_dict().values())


def test_beside_a_frozen_table_the_others_still_learn():
    model = small_model()
    model.embeddings.table("a").requires_grad_(False)
    before = copy.deepcopy(model.embeddings.state_dict())
    optimizer = ModelOptimizer(model, OptimizerConfig("adagrad"))
    run_optimizer(model, optimizer, list(batches(2)))
    after = model.embeddings.state_dict()
    assert torch.equal(after["tables.a.weight"], before["tables.a.weight"])
    assert not torch.equal(after["tables.b.weight"], before["tables.b.weight"])
    assert "embeddings.tables.a.weight" not in optimizer.state_dict()


def test_the_state_names_its_parameters():
    model = small_model()
    state = ModelOptimizer(model, OptimizerConfig("adagrad")).state_dict()
    assert set(state) == {name for name, _ in model.named_parameters()}
    assert state["embeddings.tables.c.weight"].shape == (500,)
    assert ModelOptimizer(model, OptimizerConfig("sgd")).state_dict() == {}


def test_a_foreign_state_is_refused():
    optimizer = ModelOptimizer(small_model(), OptimizerConfig("adagrad"))
    state = optimizer.state_dict()
    with pytest.raises(InputError, match=r"lacks embeddings\.tables\.a\.weight"):
        optimizer.load_state_dict({k: v for k, v in state.items() if k != "embeddings.tables.a.weight"})
    with pytest.raises(InputError, match="has other, unknown here"):
        optimizer.load_state_dict({**state, "other": torch.zeros(1)})
    with pytest.raises(InputError, match=r"top\.2\.bias has shape \[2\]; here it is \[1\]"):
        optimizer.load_state_dict({**state, "top.2.bias": torch.zeros(2)})


def test_parameters_without_a_gradient_stay():
    model = small_model()
    before = copy.deepcopy(model.state_dict())
    optimizer = ModelOptimizer(model, OptimizerConfig("adagrad"))
    optimizer.step()
    model.bottom.requires_grad_(False)
    model(*next(batches(1))[:2]).sum().backward()
    optimizer.step()
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith("bottom"))
    assert not any(torch.equal(after[name], before[name]) for name in before if name.startswith("emb"))


def test_a_scaled_learning_rate_scales_the_step():
    models = [small_model(), small_model()]
    whole = ModelOptimizer(models[0], OptimizerConfig("sgd", 0.05, 0.05))
    scaled = ModelOptimizer(models[1], OptimizerConfig("sgd", 0.1, 0.1))
    scaled.scale_learning_rates(0.5)
    train(models[0], whole.step, 3)
    train(models[1], scaled.step, 3)
    assert_same_parameters(*models)


def test_gradients_of_two_batches_add_up():
    one, two = small_model(), small_model()
    (d0, v0, _), (d1, v1, _) = batches(2)
    together = torch.cat([v0.view(4, -1), v1.view(4, -1)], dim=1).view(-1)
    one(torch.cat([d0, d1]), together).sum().backward()
    two(d0, v0).sum().backward()
    two(d1, v1).sum().backward()
    for model in (one, two):
        ModelOptimizer(model, OptimizerConfig("adagrad", 0.1, 0.1, table_update="stored")).step()
    assert_same_parameters(one, two, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "values", [{"algorithm": "adam"}, {"mlp_lr": -1.0}, {"eps": float("nan")}, {"eps": 0.0}]
)
def test_bad_settings_are_named(values):
    name, value = next(iter(values.items()))
    with pytest.raises(InputError, match=f"{name} = {value!r}"):
        OptimizerConfig(**values)
