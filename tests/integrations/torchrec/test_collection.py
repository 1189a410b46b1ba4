import copy

import pytest
import torch

from recsys_opt.errors import InputError

pytest.importorskip("torchrec")

import torchrec.fx
from torchrec import EmbeddingBagCollection, KeyedJaggedTensor
from torchrec.models.dlrm import DLRM, DLRMTrain
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, PoolingType

from recsys_opt.integrations.torchrec import keyed_collection, table_config, with_tensor_trains

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
    with pytest.raises(InputError, match="has no weights; give it weights, or"):
        keyed_collection(configs(), is_weighted=True)(jagged())
    uneven = KeyedJaggedTensor(
        keys=NAMES,
        values=torch.zeros(6, dtype=torch.int64),
        lengths=torch.ones(6, dtype=torch.int64),
        stride_per_key_per_rank=[[2], [1], [1], [2]],
    )
    with pytest.raises(InputError, match="has a batch size for each key"):
        ours(uneven)
    with pytest.raises(InputError, match="names x, but the tables are u, v, w"):
        keyed_collection(configs(), representations={"x": ("tt", {})})
    with pytest.raises(InputError, match=r"table v: data_type is .*FP16"):
        table_config(EmbeddingBagConfig(5, 4, name="v", feature_names=["v"], data_type=DataType.FP16))
    with pytest.raises(InputError, match=r"table v: pooling is .*NONE"):
        table_config(EmbeddingBagConfig(5, 4, name="v", feature_names=["v"], pooling=PoolingType.NONE))


# --- inside torchrec's models ---

RANKS = {"w": {"tt_ranks": 40}, "u": {"tt_ranks": [8, 10]}}
"""Enough for these tables to be fitted exactly."""


def dlrm(tables=None) -> DLRM:
    """torchrec's DLRM over five features of three tables."""
    torch.manual_seed(0)
    if tables is None:
        tables = EmbeddingBagCollection(tables=equal_configs())
    return DLRM(tables, dense_in_features=5, dense_arch_layer_sizes=[8, 4], over_arch_layer_sizes=[6, 1])


def equal_configs() -> list[EmbeddingBagConfig]:
    return [
        EmbeddingBagConfig(30, 4, name="u", feature_names=["u0", "u1"]),
        EmbeddingBagConfig(5, 4, name="v", feature_names=["v"], pooling=PoolingType.MEAN),
        EmbeddingBagConfig(700, 4, name="w", feature_names=["w"]),
    ]


def compressed(model: DLRM, **options) -> DLRM:
    """A copy of the model with tensor trains."""
    model = copy.deepcopy(model)
    arch = model.sparse_arch
    arch.embedding_bag_collection = with_tensor_trains(arch.embedding_bag_collection, RANKS, **options)
    return model


DENSE_FEATURES = torch.randn(6, 5, generator=torch.Generator().manual_seed(2))


def test_a_dlrm_of_torchrec_takes_fitted_tensor_trains():
    theirs = dlrm()
    ours = compressed(theirs)
    for name in RANKS:
        assert ours.sparse_arch.embedding_bag_collection.collection.table(name).fit_error < 1e-6
    torch.testing.assert_close(ours(DENSE_FEATURES, jagged()), theirs(DENSE_FEATURES, jagged()))
    built = dlrm(keyed_collection(equal_configs(), representations={"w": ("tt", {"tt_ranks": 4})}))
    assert built(DENSE_FEATURES, jagged(order=(3, 1, 2, 0))).shape == (6, 1)


def test_a_dlrm_of_torchrec_trains_tensor_trains():
    ours = DLRMTrain(compressed(dlrm(), fit=False))
    names = dict(ours.named_parameters())
    before = {name: p.detach().clone() for name, p in names.items()}
    optimizer = torch.optim.Adagrad(ours.parameters(), lr=0.05)
    batch = torchrec.datasets.utils.Batch(DENSE_FEATURES, jagged(), torch.tensor([1, 0, 1, 1, 0, 1]))
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss, _ = ours(batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(not torch.equal(p, before[name]) for name, p in names.items())


def test_the_other_tables_keep_their_parameters():
    model = dlrm()
    source = model.sparse_arch.embedding_bag_collection
    result = with_tensor_trains(source, RANKS)
    assert result.collection.table("v").weight is source.embedding_bags["v"].weight
    assert [n for n, _ in result.named_parameters()] == [
        *(f"embedding_bags.u.cores.{k}" for k in range(3)),
        "embedding_bags.v.weight",
        *(f"embedding_bags.w.cores.{k}" for k in range(3)),
    ]


def test_it_has_the_interface_of_torchrecs_collection():
    source = EmbeddingBagCollection(tables=configs(PoolingType.MEAN))
    ours = with_tensor_trains(source, RANKS, fit=False)
    described = [
        (c.name, c.num_embeddings, c.embedding_dim, c.feature_names, c.pooling)
        for c in ours.embedding_bag_configs()
    ]
    assert described == [
        (c.name, c.num_embeddings, c.embedding_dim, c.feature_names, c.pooling)
        for c in configs(PoolingType.MEAN)
    ]
    assert ours.device == source.device == torch.device("cpu")
    assert not ours.is_weighted()
    assert with_tensor_trains(EmbeddingBagCollection(tables=configs(), is_weighted=True), {}).is_weighted()


def test_states_make_the_round_trip_and_dense_ones_come_from_torchrec():
    ours, other = compressed(dlrm()), compressed(dlrm(), fit=False)
    assert not torch.equal(ours(DENSE_FEATURES, jagged()), other(DENSE_FEATURES, jagged()))
    other.load_state_dict(ours.state_dict())
    assert torch.equal(ours(DENSE_FEATURES, jagged()), other(DENSE_FEATURES, jagged()))
    theirs, dense = dlrm(), dlrm(keyed_collection(equal_configs()))
    dense.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(dense(DENSE_FEATURES, jagged()), theirs(DENSE_FEATURES, jagged()))
    theirs.load_state_dict(dense.state_dict())
    with pytest.raises(RuntimeError, match=r"embedding_bags\.w\.weight is a table of rows, \[700, 4\]"):
        ours.load_state_dict(theirs.state_dict())


def test_copies_stay_whole():
    ours = copy.deepcopy(compressed(dlrm())).sparse_arch.embedding_bag_collection
    assert ours.embedding_bags is ours.collection.tables
    ours.double()
    assert ours.collection.table("w").cores[0].dtype == torch.float64


def test_torchrec_traces_a_model_that_holds_one():
    ours = compressed(dlrm())
    traced = torchrec.fx.symbolic_trace(ours, leaf_modules=["KeyedEmbeddingCollection"])
    torch.testing.assert_close(traced(DENSE_FEATURES, jagged()), ours(DENSE_FEATURES, jagged()))


def test_on_the_meta_device():
    source = EmbeddingBagCollection(tables=configs(), device=torch.device("meta"))
    with pytest.raises(InputError, match=r"table u is on the meta device: .*fit=False"):
        with_tensor_trains(source, RANKS)
    ours = with_tensor_trains(source, RANKS, fit=False)
    assert ours.device.type == "meta"
    ours.to_empty(device="cpu")
    for table in ours.embedding_bags.children():
        table.reset_parameters()
    assert ours(jagged()).values().isfinite().all()


def test_unknown_tables_and_options_are_named():
    source = EmbeddingBagCollection(tables=configs())
    with pytest.raises(InputError, match="names x, but the tables are u, v, w"):
        with_tensor_trains(source, {"x": {"tt_ranks": 4}})
    with pytest.raises(InputError, match="table w: tt needs the option tt_ranks"):
        with_tensor_trains(source, {"w": {}})
