import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from recsys_opt import TableConfig, ops, reference
from recsys_opt.embeddings.dense import DenseEmbeddingBag
from recsys_opt.errors import InputError


@st.composite
def batches(draw):
    """Weights, indices, offsets or None, per-sample weights or None, and the poolings of several tables."""
    tables = draw(st.integers(1, 5))
    batch = draw(st.integers(0, 9))
    g = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    sizes = [(draw(st.integers(1, 30)), draw(st.integers(1, 20))) for _ in range(tables)]
    weights = [torch.randn(n, d, generator=g, dtype=torch.float64) for n, d in sizes]
    fixed = draw(st.booleans())
    lengths = (
        torch.ones(tables * batch, dtype=torch.int64)
        if fixed
        else torch.randint(0, 5, (tables * batch,), generator=g)
    )
    ids = [torch.randint(0, sizes[k // batch][0], (int(n),), generator=g) for k, n in enumerate(lengths)]
    # The first and the last row are always looked up somewhere, as far as there is room.
    for k, bag in enumerate(ids):
        if len(bag):
            bag[0] = (0, sizes[k // batch][0] - 1)[k % 2]
    indices = torch.cat([*ids, torch.empty(0, dtype=torch.int64)]).to(
        draw(st.sampled_from([torch.int32, torch.int64]))
    )
    offsets = None if fixed else torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    factors = torch.randn(len(indices), generator=g, dtype=torch.float64) if draw(st.booleans()) else None
    mean = [factors is None and draw(st.booleans()) for _ in range(tables)]
    return weights, indices, offsets, factors, mean


def run(f, weights, indices, offsets, factors, mean) -> list[Tensor]:
    """Output and gradients."""
    leaves = [w.clone().requires_grad_() for w in weights]
    scale = None if factors is None else factors.clone().requires_grad_()
    out = f(leaves, indices, offsets, scale, mean)
    loss = (out * torch.linspace(-1, 2, out.shape[1], dtype=out.dtype)).sin().sum()
    loss.backward()
    leaves += [] if scale is None else [scale]
    return [out.detach(), *(torch.zeros_like(x) if x.grad is None else x.grad.to_dense() for x in leaves)]


@settings(max_examples=80)
@given(batches())
def test_values_and_gradients_match_the_reference(args):
    torch.testing.assert_close(run(ops.dense_bag, *args), run(reference.dense_bag, *args))


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_the_module_is_a_drop_in_for_embedding_bag(mode):
    torch.manual_seed(0)
    bag = DenseEmbeddingBag(20, 6, mode=mode, dtype=torch.float64)
    plain = nn.EmbeddingBag(20, 6, mode=mode, dtype=torch.float64, _weight=bag.weight.detach().clone())
    ids, offsets = torch.tensor([3, 3, 19, 0, 7]), torch.tensor([0, 2, 2, 4])
    for args in ((ids, offsets), (ids.view(1, 5),), (ids.view(5, 1),)):
        torch.testing.assert_close(bag(*args), plain(*args))
    bag(ids, offsets).sin().sum().backward()
    plain(ids, offsets).sin().sum().backward()
    assert bag.weight.grad is not None
    assert bag.weight.grad.is_sparse
    torch.testing.assert_close(bag.weight.grad.to_dense(), plain.weight.grad)


def test_gradients_of_two_passes_add_up():
    bag = DenseEmbeddingBag(9, 3, dtype=torch.float64)
    first, second = torch.tensor([1, 2, 2]), torch.tensor([2, 8, 0])
    for ids in (first, second):
        DenseEmbeddingBag.forward_group([bag], ids).square().sum().backward()
    want = torch.zeros(9, 3, dtype=torch.float64)
    want.index_add_(0, torch.cat([first, second]), 2 * bag.weight.detach()[torch.cat([first, second])])
    torch.testing.assert_close(bag.weight.grad.to_dense(), want)


def test_a_shared_table_gets_the_gradients_of_both_features():
    bag = DenseEmbeddingBag(9, 3, dtype=torch.float64)
    ids = torch.tensor([1, 2, 2, 5])
    out = DenseEmbeddingBag.forward_group([bag, bag], ids)  # two features, a batch of two
    torch.testing.assert_close(out, torch.cat([bag.weight[ids[:2]], bag.weight[ids[2:]]], dim=1))
    out.sum().backward()
    want = torch.zeros(9, 3, dtype=torch.float64).index_add_(0, ids, torch.ones(4, 3, dtype=torch.float64))
    torch.testing.assert_close(bag.weight.grad.to_dense(), want)


def example(requires_grad: bool = False):
    weights = [torch.randn(7, 3, dtype=torch.float64, requires_grad=requires_grad) for _ in range(2)]
    indices, offsets = torch.tensor([0, 6, 6, 1, 2]), torch.tensor([0, 2, 3, 3, 5])
    factors = torch.randn(5, dtype=torch.float64, requires_grad=requires_grad)
    return weights, indices, offsets, factors, [0, 0]


def test_opcheck():
    weights, indices, offsets, factors, mean = example()
    torch.library.opcheck(torch.ops.recsys_opt.dense_bag.default, (weights, indices, offsets, factors, mean))
    torch.library.opcheck(torch.ops.recsys_opt.dense_bag.default, example(requires_grad=True))
    grad = torch.randn(2, 6, dtype=torch.float64)
    torch.library.opcheck(
        torch.ops.recsys_opt.dense_bag_factor_gradients.default, (grad, weights, indices, offsets, factors)
    )


def test_compiles_with_its_sparse_gradients():
    args = example()
    compiled = torch.compile(ops.dense_bag, fullgraph=True)
    torch.testing.assert_close(run(compiled, *args), run(reference.dense_bag, *args))


def test_threads_do_not_change_the_result():
    g = torch.Generator().manual_seed(0)
    weights = [torch.randn(50, 8, generator=g) for _ in range(3)]
    indices = torch.randint(0, 50, (3 * 500,), generator=g)
    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(run(ops.dense_bag, weights, indices, None, None, [False] * 3))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"indices": torch.tensor([0, 6, 6, 1, 7])}, r"indices\[4\] = 7 is outside the 7 rows of table 1"),
        ({"indices": torch.tensor([0, -1, 6, 1, 9])}, r"indices\[1\] = -1 is outside the 7 rows of table 0"),
        ({"offsets": torch.tensor([0, 2, 1, 3, 5])}, r"offsets\[2\] = 1 is below offsets\[1\] = 2"),
        ({"offsets": torch.tensor([1, 2, 3, 3, 5])}, r"offsets\[0\] = 1; it must be 0"),
        ({"offsets": torch.tensor([0, 2, 3, 3, 6])}, r"offsets\[4\] = 6 is outside the 5 indices"),
        ({"offsets": torch.tensor([0, 2, 5, 5])}, r"offsets has 4 entries; 2 tables need 2 \* batch \+ 1"),
        ({"mean": [0, 1]}, r"per_sample_weights needs sum pooling, but table 1 averages"),
        ({"indices": torch.tensor([0.0] * 5)}, r"indices must be 1-D int32 or int64"),
    ],
)
def test_bad_arguments_are_named(change, message):
    names = ("weights", "indices", "offsets", "factors", "mean")
    args = dict(zip(names, example(), strict=True)) | change
    with pytest.raises(RuntimeError, match=message):
        ops.dense_bag(*(args[name] for name in names))


def test_initial_rows_are_uniform_in_the_dlrm_repositorys_bounds():
    torch.manual_seed(0)
    weight = DenseEmbeddingBag(400, 50).weight
    assert weight.abs().max() <= 1 / 20
    assert abs(weight.std().item() - 1 / 20 / 3**0.5) < 1e-3


def test_options_are_refused():
    with pytest.raises(InputError, match="a dense table has no options, but got tt_ranks"):
        DenseEmbeddingBag.from_config(TableConfig("t", 5, 2, options={"tt_ranks": 4}))


@pytest.mark.parametrize(
    ("arguments", "message"), [((5, 2, "max"), "mode = 'max'"), ((0, 2, "sum"), "num_embeddings = 0")]
)
def test_a_table_that_cannot_be_is_refused(arguments, message):
    rows, columns, mode = arguments
    with pytest.raises(InputError, match=message):
        DenseEmbeddingBag(rows, columns, mode=mode)


def test_bytes_and_table():
    bag = DenseEmbeddingBag.from_config(TableConfig("t", 5, 2, pooling="mean"))
    assert bag.storage_bytes() == 40
    assert bag.mode == "mean"
    assert torch.equal(bag.materialize(), bag.weight)
    assert bag.flops_per_lookup() == 2


def test_gradients_of_factors_check_ids_themselves():
    weights, offsets, factors = [torch.ones(4, 8)], torch.tensor([0, 1]), torch.ones(1)
    for bad in (4, -1, 2**40):
        with pytest.raises(RuntimeError, match=rf"indices\[0\] = {bad} is outside the 4 rows of table 0"):
            torch.ops.recsys_opt.dense_bag_factor_gradients(
                torch.ones(1, 8), weights, torch.tensor([bad]), offsets, factors
            )
