import pytest
import torch

from recsys_opt.errors import InputError

pytest.importorskip("torchrec")

from torchrec import EmbeddingBagCollection, KeyedJaggedTensor
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, PoolingType

from recsys_opt.integrations.torchrec import keyed_collection, table_config

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ["u0", "u1", "v", "w"]
ROWS = [30, 30, 5, 700]


def configs(pooling: PoolingType = PoolingType.SUM) -> list[EmbeddingBagConfig]:
    return [
        EmbeddingBagConfig(30, 4, name="u", feature_names=["u0", "u1"], pooling=pooling),
        EmbeddingBagConfig(5, 8, name="v", feature_names=["v"], pooling=pooling),
        EmbeddingBagConfig(700, 4, name="w", feature_names=["w"], pooling=pooling),
    ]


def jagged(weighted: bool = False, order: tuple[int, ...] = (0, 1, 2, 3)) -> KeyedJaggedTensor:
    g = torch.Generator().manual_seed(0)
    lengths = torch.randint(0, 4, (4, 6), generator=g)
    ids = [torch.randint(0, n, (int(k.sum()),), generator=g) for n, k in zip(ROWS, lengths, strict=True)]
    weights = [torch.rand(len(i), generator=g) for i in ids]
    return KeyedJaggedTensor(
        keys=[NAMES[f] for f in order],
        values=torch.cat([ids[f] for f in order]),
        lengths=torch.cat([lengths[f] for f in order]),
        weights=torch.cat([weights[f] for f in order]) if weighted else None,
    )


def both(pooling: PoolingType = PoolingType.SUM, weighted: bool = False, representations=None):
    theirs = EmbeddingBagCollection(tables=configs(pooling), is_weighted=weighted)
    ours = keyed_collection(configs(pooling), is_weighted=weighted, representations=representations)
    with torch.no_grad():
        for name, bag in theirs.embedding_bags.items():
            table = ours.collection.table(name)
            if hasattr(table, "weight"):
                table.weight.copy_(bag.weight)
            else:
                bag.weight.copy_(table.materialize())
    return ours, theirs


@pytest.mark.parametrize("representations", [None, {"w": ("tt", {"tt_ranks": 4})}])
@pytest.mark.parametrize(
    ("pooling", "weighted"), [(PoolingType.SUM, False), (PoolingType.SUM, True), (PoolingType.MEAN, False)]
)
def test_equals_torchrecs_collection(pooling, weighted, representations):
    ours, theirs = both(pooling, weighted, representations)
    batch = jagged(weighted)
    got, want = ours(batch), theirs(batch)
    assert got.keys() == want.keys() == NAMES
    for name in NAMES:
        torch.testing.assert_close(got[name], want[name])
    got.values().sin().sum().backward()
    want.values().sin().sum().backward()
    for name, bag in theirs.embedding_bags.items():
        table = ours.collection.table(name)
        if hasattr(table, "weight"):
            torch.testing.assert_close(table.weight.grad.to_dense(), bag.weight.grad)


def test_keys_in_another_order_and_further_keys():
    ours, theirs = both()
    batch = jagged(order=(3, 1, 2, 0))
    got, want = ours(batch), theirs(batch)
    for name in NAMES:
        torch.testing.assert_close(got[name], want[name])


def test_values_go_in_without_a_copy(monkeypatch):
    ours, _ = both()
    batch, seen = jagged(), []
    forward = ours.collection.forward
    monkeypatch.setattr(ours.collection, "forward", lambda *args: seen.append(args) or forward(*args))
    ours(batch)
    assert seen[0][0].data_ptr() == batch.values().data_ptr()
    assert seen[0][1].data_ptr() == batch.offsets().data_ptr()


def test_bad_input_is_named():
    ours, _ = both()
    short = KeyedJaggedTensor(keys=["u0", "v"], values=torch.tensor([1, 2]), lengths=torch.tensor([1, 1]))
    with pytest.raises(InputError, match="lacks u1, w; its keys are u0, v"):
        ours(short)
    ours.is_weighted = True
    with pytest.raises(InputError, match="has no weights"):
        ours(jagged())
    with pytest.raises(InputError, match="names x, but the tables are u, v, w"):
        keyed_collection(configs(), representations={"x": ("tt", {})})
    with pytest.raises(InputError, match=r"table v: data_type is .*FP16"):
        table_config(EmbeddingBagConfig(5, 4, name="v", feature_names=["v"], data_type=DataType.FP16))
    with pytest.raises(InputError, match=r"table v: pooling is .*NONE"):
        table_config(EmbeddingBagConfig(5, 4, name="v", feature_names=["v"], pooling=PoolingType.NONE))
