import copy

import pytest
import torch
from torch import nn

from recsys_opt import DLRM, TableConfig
from recsys_opt.embeddings.collection import EmbeddingCollection
from recsys_opt.errors import InputError
from recsys_opt.training.optimizers import ModelOptimizer, OptimizerConfig

pytest.importorskip("fbgemm_gpu")

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = (("a", 40, ("a0", "a1")), ("b", 3, ()), ("c", 500, ()))


def tables(representation: str, pooling: str = "sum") -> list[TableConfig]:
    return [TableConfig(n, r, 4, f, pooling=pooling, representation=representation) for n, r, f in SIZES]


def jagged(batch: int = 8, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 4, (4 * batch,), generator=g)
    rows = [r for _, r, f in SIZES for _ in f or ("",)]
    ids = [
        torch.randint(0, n, (int(k.sum()),), generator=g)
        for n, k in zip(rows, lengths.view(4, -1), strict=True)
    ]
    return torch.cat(ids), torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])


def collection(representation: str, pooling: str = "sum") -> EmbeddingCollection:
    torch.manual_seed(0)
    return EmbeddingCollection(tables(representation, pooling))


@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_forward_equals_the_dense_tables(pooling):
    ours, dense = collection("fbgemm", pooling), collection("dense", pooling)
    values, offsets = jagged()
    torch.testing.assert_close(ours(values, offsets), dense(values, offsets))
    torch.testing.assert_close(ours(values.int(), offsets.int()), dense(values, offsets))
    fixed = torch.tensor([0, 39, 5, 39, 0, 2, 499, 1])
    torch.testing.assert_close(ours(fixed), dense(fixed))
    alone = torch.tensor([1, 2, 2])
    for name in "abc":
        bag, bounds = dense.table(name), torch.tensor([0, 1, 1])
        torch.testing.assert_close(ours.table(name)(alone, bounds), bag(alone, bounds))
    if pooling == "sum":
        weights = torch.rand(len(values))
        torch.testing.assert_close(ours(values, offsets, weights), dense(values, offsets, weights))


@pytest.mark.parametrize("algorithm", ["sgd", "adagrad"])
def test_100_steps_equal_the_dense_tables(algorithm):
    models = []
    for representation in ("fbgemm", "dense"):
        torch.manual_seed(0)
        model = DLRM(tables(representation), dense_features=3, bottom_mlp=(4,), top_mlp=(1,))
        optimizer = ModelOptimizer(model, OptimizerConfig(algorithm, 0.1, 0.05))
        for step in range(100):
            optimizer.scale_learning_rates(1.0 if step < 50 else 0.5)
            values, offsets = jagged(seed=step)
            dense = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
            loss = nn.functional.softplus(model(dense, values, offsets) * (step % 2 * 2 - 1)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        models.append((model.state_dict(), optimizer.state_dict()))
    for ours, dense in zip(*models, strict=True):
        assert set(ours) == set(dense)
        for name, tensor in ours.items():
            torch.testing.assert_close(
                tensor, dense[name], rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_a_saved_state_goes_on_the_same():
    def run(model: EmbeddingCollection, steps: range) -> None:
        for step in steps:
            model(*jagged(seed=step)).square().sum().backward()

    config = OptimizerConfig("adagrad", table_lr=0.1)
    whole = collection("fbgemm")
    optimizer = ModelOptimizer(whole, config)
    run(whole, range(3))
    resumed = EmbeddingCollection(tables("fbgemm"))
    again = ModelOptimizer(resumed, config)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    again.load_state_dict({k: v.clone() for k, v in optimizer.state_dict().items()})
    run(whole, range(3, 6))
    run(resumed, range(3, 6))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_a_table_first_looked_up_in_an_evaluation_still_trains():
    ours, expected = collection("fbgemm"), collection("fbgemm")
    with torch.inference_mode():
        values, offsets = jagged()
        looked_up = ours(values, offsets, torch.ones(len(values)))
    assert not looked_up.requires_grad
    torch.testing.assert_close(looked_up, collection("dense")(*jagged()))
    for model in (ours, expected):
        ModelOptimizer(model, OptimizerConfig("sgd", table_lr=0.1)).scale_learning_rates(1.0)
        model(*jagged()).square().sum().backward()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensor, ours.state_dict()[name]), name


def test_an_id_out_of_range_names_its_table():
    with pytest.raises(InputError, match=r"values\[5\] = 3 is outside the 3 rows of table b"):
        collection("fbgemm")(torch.tensor([0, 0, 0, 0, 0, 3, 0, 0]))


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (TableConfig("t", 5, 6, representation="fbgemm"), {}, "embedding_dim that 4 divides, not 6"),
        (
            TableConfig("t", 5, 4, representation="fbgemm"),
            {"dtype": torch.float64},
            "fp32 on the CPU, not torch.float64",
        ),
        (TableConfig("t", 5, 4, representation="fbgemm", options={"x": 1}), {}, "no options, but got x"),
    ],
)
def test_what_it_cannot_do_is_named(config, options, message):
    with pytest.raises(InputError, match=message):
        EmbeddingCollection([config], **options)


def test_the_rule_is_chosen_before_the_first_lookup():
    ours = collection("fbgemm")
    ours(*jagged())
    with pytest.raises(InputError, match="chosen before its first lookup"):
        ModelOptimizer(ours, OptimizerConfig("adagrad"))
