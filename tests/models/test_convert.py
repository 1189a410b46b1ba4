import pytest
import torch

from recsys_opt import DLRM, TableConfig
from recsys_opt.embeddings.tt import TTEmbeddingBag
from recsys_opt.errors import InputError
from recsys_opt.models.convert import convert_model

DENSE = [TableConfig("small", 20, 8), TableConfig("large", 900, 8)]


def tables(**options) -> list[TableConfig]:
    return [DENSE[0], TableConfig("large", 900, 8, representation="tt", options=options)]


def model() -> DLRM:
    torch.manual_seed(0)
    return DLRM(DENSE, dense_features=3, bottom_mlp=[16, 8], top_mlp=[16, 1])


def batch():
    ids = torch.cat([torch.randint(0, 20, (32,)), torch.randint(0, 900, (32,))])
    return torch.randn(32, 3), ids


def test_full_rank_computes_the_same_and_keeps_the_rest():
    old = model().eval()
    converted, (fit,) = convert_model(old, tables(tt_ranks=[10, 80], tt_p_shapes=[10, 9, 10]))
    dense, ids = batch()
    torch.testing.assert_close(converted(dense, ids), old(dense, ids), rtol=1e-4, atol=1e-5)
    assert converted.top is old.top
    assert converted.embeddings.table("small") is old.embeddings.table("small")
    assert not converted.training
    assert (fit.name, fit.bytes_before) == ("large", 900 * 8 * 4)
    assert fit.fit_error < 1e-5
    bag = converted.embeddings.table("large")
    assert isinstance(bag, TTEmbeddingBag)
    assert bag.storage_bytes() == fit.bytes_after
    assert all(p.requires_grad and not p.is_meta for p in converted.parameters())


def test_a_cached_table_starts_as_the_tensor_train_without_held_rows():
    cached = TableConfig(
        "large", 900, 8, representation="tt_cached", options={"tt_ranks": 8, "cache_rows": 9}
    )
    converted, (fit,) = convert_model(model(), [DENSE[0], cached])
    plain, (plain_fit,) = convert_model(model(), tables(tt_ranks=8))
    assert fit.fit_error == plain_fit.fit_error
    assert fit.tt_ranks == plain_fit.tt_ranks
    dense, ids = batch()
    torch.testing.assert_close(converted(dense, ids), plain(dense, ids))


def test_the_error_told_is_the_tables():
    old = model()
    table = old.embeddings.table("large").materialize().clone()
    converted, (fit,) = convert_model(old, tables(tt_ranks=8))
    got = converted.embeddings.table("large").materialize().detach()
    assert fit.fit_error == pytest.approx(float((got - table).norm() / table.norm()), rel=0.02)
    assert 0.1 < fit.fit_error < 1


def test_back_to_dense_is_exact():
    compressed, _ = convert_model(model(), tables(tt_ranks=8))
    dense, (fit,) = convert_model(compressed, DENSE)
    torch.testing.assert_close(
        dense.embeddings.table("large").materialize(),
        compressed.embeddings.table("large").materialize().detach(),
    )
    assert (fit.fit_error, fit.bytes_after) == (0.0, 900 * 8 * 4)


@pytest.mark.parametrize("tolerance", [None, 0.8])
def test_tensor_trains_are_rounded(tolerance):
    trained, _ = convert_model(model(), tables(tt_ranks=16))
    before = trained.embeddings.table("large").materialize().detach()
    small, (fit,) = convert_model(trained, tables(tt_ranks=6), tolerance=tolerance)
    bag = small.embeddings.table("large")
    error = float((bag.materialize().detach() - before).norm() / before.norm())
    assert fit.fit_error == pytest.approx(error, rel=1e-3, abs=1e-6)
    if tolerance is None:
        assert fit.tt_ranks == (6, 6)
        assert 0.1 < error < 0.9
        grown, (again,) = convert_model(small, tables(tt_ranks=[6, 9]))
        assert (again.tt_ranks, again.fit_error < 1e-6) == ((6, 9), True)
        torch.testing.assert_close(
            grown.embeddings.table("large").materialize(), bag.materialize(), rtol=1e-4, atol=1e-5
        )
    else:
        assert error <= tolerance
        assert small.embeddings.configs[1].options["tt_ranks"] == list(fit.tt_ranks)


def test_nothing_to_do():
    old = model()
    same, fits = convert_model(old, DENSE)
    assert fits == []
    dense, ids = batch()
    assert torch.equal(same(dense, ids), old(dense, ids))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (DENSE[::-1], "the order differs"),
        (DENSE[:1], "large: .* -> none"),
        ([DENSE[0], TableConfig("large", 901, 8)], "num_embeddings=901"),
        ([DENSE[0], TableConfig("large", 900, 8, representation="fbgemm")], "cannot become 'fbgemm'"),
    ],
)
def test_other_tables_are_refused(asked, message):
    with pytest.raises(InputError, match=message):
        convert_model(model(), asked)


def test_how_rows_are_held_changes_without_a_fit():
    def cached(**more):
        options = {"tt_ranks": 8, "cache_rows": 9, **more}
        return [DENSE[0], TableConfig("large", 900, 8, representation="tt_cached", options=options)]

    old, _ = convert_model(model(), cached(refresh_every=2))
    dense, ids = batch()
    old.train()
    for _ in range(5):  # rows are held by then
        old(dense, ids).sum().backward()
    table = old.embeddings.table("large")
    assert int((table.hot.keys >= 0).sum()) > 0
    new, fits = convert_model(old, cached(refresh_every=50, decay=0.5))
    assert fits == []
    assert new.embeddings.table("large") is table
    assert (table.refresh_every, table.decay) == (50, 0.5)
    assert new.embeddings.configs[1].options["refresh_every"] == 50
