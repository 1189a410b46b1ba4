import pytest
import torch
from torch import Tensor, nn

from recsys_opt import TableConfig
from recsys_opt.embeddings import registry
from recsys_opt.embeddings.bag_arguments import to_bags
from recsys_opt.embeddings.base import EmbeddingRepresentation
from recsys_opt.embeddings.collection import EmbeddingCollection
from recsys_opt.embeddings.dense import DenseEmbeddingBag
from recsys_opt.errors import InputError


class ScaledEmbeddingBag(DenseEmbeddingBag):
    """A second representation, with the inherited default for groups: its rows are twice the stored ones."""

    forward_group = classmethod(EmbeddingRepresentation.forward_group.__func__)

    def forward(
        self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        return 2 * DenseEmbeddingBag.forward_group([self], *to_bags(input, offsets, per_sample_weights))

    def materialize(self) -> Tensor:
        return 2 * super().materialize()


@pytest.fixture(autouse=True)
def _scaled(monkeypatch):
    monkeypatch.setitem(registry.REPRESENTATIONS, "scaled", "unused:unused")
    original = registry.representation_class
    chosen = lambda name: ScaledEmbeddingBag if name == "scaled" else original(name)  # noqa: E731
    monkeypatch.setattr(registry, "representation_class", chosen)
    monkeypatch.setattr("recsys_opt.embeddings.collection.representation_class", chosen)


def mixed(pooling: str = "sum") -> EmbeddingCollection:
    torch.manual_seed(0)
    return EmbeddingCollection(
        [
            TableConfig("a", 11, 3, pooling=pooling),
            TableConfig("b", 7, 2, ("b0", "b1"), representation="scaled", pooling=pooling),
            TableConfig("c", 5, 4, pooling=pooling),
            TableConfig("d", 13, 3, representation="scaled", pooling=pooling),
        ],
        dtype=torch.float64,
    )


ROWS = {"a": 11, "b0": 7, "b1": 7, "c": 5, "d": 13}


def jagged(batch: int = 6) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    lengths = torch.randint(0, 4, (5 * batch,), generator=g)
    ids = [
        torch.randint(0, n, (int(lengths.view(5, -1)[f].sum()),), generator=g)
        for f, n in enumerate(ROWS.values())
    ]
    return torch.cat(ids), torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])


def expected(
    collection: EmbeddingCollection, values: Tensor, offsets: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Feature by feature with nn.functional.embedding_bag on the materialized tables."""
    owners = [(c.name, c.pooling) for c in collection.configs for _ in c.feature_names]
    batch, outputs = (len(offsets) - 1) // 5, []
    for f, (table, pooling) in enumerate(owners):
        bounds = offsets[f * batch : (f + 1) * batch + 1]
        part = slice(int(bounds[0]), int(bounds[-1]))
        outputs.append(
            nn.functional.embedding_bag(
                values[part], collection.table(table).materialize(), bounds[:-1] - bounds[0], mode=pooling,
                per_sample_weights=None if weights is None else weights[part],
            )
        )  # fmt: skip
    return torch.cat(outputs, dim=1)


@pytest.mark.parametrize("pooling", ["sum", "mean"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_mixed_representations_come_in_the_order_of_the_features(pooling, dtype):
    collection = mixed(pooling)
    values, offsets = jagged()
    assert collection.feature_names == ("a", "b0", "b1", "c", "d")
    assert collection.feature_dims == (3, 2, 2, 4, 3)
    got = collection(values.to(dtype), offsets.to(dtype))
    assert got.shape == (6, collection.output_dim)
    torch.testing.assert_close(got, expected(collection, values, offsets))


def test_without_offsets_every_feature_has_one_id():
    collection = mixed()
    g = torch.Generator().manual_seed(1)
    values = torch.cat([torch.randint(0, n, (4,), generator=g) for n in ROWS.values()])
    want = expected(collection, values, torch.arange(21))
    torch.testing.assert_close(collection(values), want)
    torch.testing.assert_close(collection(values.int(), torch.arange(21, dtype=torch.int32)), want)


def test_per_sample_weights():
    collection = mixed()
    values, offsets = jagged()
    weights = torch.randn(len(values), dtype=torch.float64)
    torch.testing.assert_close(
        collection(values, offsets, weights), expected(collection, values, offsets, weights)
    )
    fixed = torch.cat([torch.zeros(2, dtype=torch.int64) + n - 1 for n in ROWS.values()])
    factors = torch.randn(10, dtype=torch.float64)
    torch.testing.assert_close(
        collection(fixed, None, factors), expected(collection, fixed, torch.arange(11), factors)
    )


def test_gradients_reach_every_table(monkeypatch):
    collection = mixed()
    values, offsets = jagged()
    collection(values, offsets).sin().sum().backward()
    got = [p.grad.to_dense() for p in collection.parameters()]
    collection.zero_grad()
    monkeypatch.setattr(DenseEmbeddingBag, "materialize", lambda bag: bag.weight)  # not detached
    expected(collection, values, offsets).sin().sum().backward()
    torch.testing.assert_close(got, [p.grad for p in collection.parameters()])


@pytest.mark.parametrize("batch", [0, 1])
def test_smallest_batches(batch):
    collection = mixed()
    assert collection(torch.zeros(5 * batch, dtype=torch.int64)).shape == (batch, 14)
    empty_bags = torch.zeros(5 * batch + 1, dtype=torch.int64)
    got = collection(torch.zeros(0, dtype=torch.int64), empty_bags)
    assert torch.equal(got, torch.zeros(batch, 14, dtype=torch.float64))


def test_compiles():
    collection = mixed()
    values = torch.cat([torch.randint(0, n, (4,)) for n in ROWS.values()])
    torch.testing.assert_close(torch.compile(collection, fullgraph=True)(values), collection(values))


def test_bytes():
    collection = EmbeddingCollection([TableConfig("a", 10, 3), TableConfig("b", 4, 2)])
    assert collection.storage_bytes() == {"a": 120, "b": 32} == collection.dense_bytes()


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ([], "at least one table"),
        ([TableConfig("a", 2, 2), TableConfig("a", 3, 2)], "two tables are called 'a'"),
        ([TableConfig("a.b", 2, 2)], r"'a\.b' contains '\.'"),
        (
            [TableConfig("a", 2, 2, ("f",)), TableConfig("b", 3, 2, ("f",))],
            "'f' is listed by the tables a and b",
        ),
        ([TableConfig("a", 2, 2, representation="none")], "no representation 'none'"),
    ],
)
def test_bad_tables_are_named(tables, message):
    with pytest.raises(InputError, match=message):
        EmbeddingCollection(tables)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((torch.zeros(6, dtype=torch.int64),), "values has 6 ids, which is no multiple of the 5 features"),
        ((torch.zeros(5),), r"values must be 1-D int32 or int64 ids, but is torch\.float32 \[5\]"),
        ((torch.zeros(5, 1, dtype=torch.int64),), r"\[5, 1\]"),
        (
            (torch.zeros(5, dtype=torch.int64), torch.zeros(5, dtype=torch.int64)),
            r"offsets has 5 entries; 5 features need",
        ),
        ((torch.zeros(5, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)), r"offsets has 0 entries"),
        ((torch.zeros(5, dtype=torch.int64), torch.zeros(6)), r"offsets must be 1-D int32 or int64"),
        ((torch.zeros(5, dtype=torch.int64), torch.tensor([1, 1, 2, 3, 4, 5])), "offsets run from 1 to 5"),
        ((torch.zeros(5, dtype=torch.int64), torch.tensor([0, 1, 2, 3, 4, 4])), "number of values, 5"),
        ((torch.zeros(5, dtype=torch.int64), None, torch.zeros(4)), r"per_sample_weights has shape \[4\]"),
    ],
)
def test_bad_batches_are_named(args, message):
    with pytest.raises(InputError, match=message):
        mixed()(*args)


def test_weights_with_averaging_are_refused():
    collection = mixed("mean")
    with pytest.raises(InputError, match="table a averages"):
        collection(torch.zeros(5, dtype=torch.int64), None, torch.zeros(5, dtype=torch.float64))


def test_an_id_out_of_range_names_its_table():
    collection = EmbeddingCollection([TableConfig("users", 4, 2), TableConfig("items", 3, 2)])
    with pytest.raises(InputError, match=r"values\[3\] = 3 is outside the 3 rows of table items"):
        collection(torch.tensor([0, 3, 2, 3]))
    with pytest.raises(InputError, match=r"values\[2\] = -1 is outside the 3 rows of table items"):
        collection(torch.tensor([0, 3, -1, 3]), torch.tensor([0, 1, 2, 3, 4]))


def test_an_unknown_table_is_named():
    with pytest.raises(InputError, match="no table 'x'; the tables are a, b, c, d"):
        mixed().table("x")
