"""tt_embedding_bag in chosen situations; tests/test_ops_tt_random.py has the random ones."""

import pytest
import torch
from torch import Tensor

from recsys_opt import ops, reference
from recsys_opt.errors import InputError
from tests.tt_cases import OPTIONS, Case


def make_cores(p, q, ranks, dtype=torch.float64, seed=0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    bonds = [1, *ranks, 1]
    return [
        torch.randn(p[k], q[k], bonds[k], bonds[k + 1], generator=generator, dtype=dtype).requires_grad_()
        for k in range(len(p))
    ]


def one_table(n=23, dtype=torch.float64, p=(4, 3, 5), q=(2, 3, 2), ranks=(3, 2), weighted=False) -> Case:
    generator = torch.Generator().manual_seed(1)
    indices = torch.randint(0, 60, (n,), generator=generator)
    offsets = torch.tensor([0, 0, n // 3, n // 3, n])
    weights = torch.randn(n, generator=generator, dtype=dtype).requires_grad_() if weighted else None
    options = dict(zip(OPTIONS, ([len(p)], [60], [0], [-1]), strict=True))
    return Case(indices, offsets, make_cores(p, q, ranks, dtype), options, weights)


@pytest.mark.parametrize("ranks", [(32, 32), (16, 16), (8, 24), (7, 5)])
@pytest.mark.parametrize("q", [(2, 2, 4), (4, 4, 4), (2, 2, 3)])
def test_single_precision_with_many_chunks(q, ranks):
    """Enough rows for several chunks and several blocks in a group."""
    p, generator = (40, 9, 30), torch.Generator().manual_seed(0)
    indices = torch.randint(0, 10800, (6000,), generator=generator)
    indices[::3] = 17
    offsets = torch.arange(6001)
    options = dict(zip(OPTIONS, ([3, 3], [10800] * 2, [0, 0], [-1, 3]), strict=True))
    cores = make_cores(p, q, ranks, torch.float32) + make_cores(p, q, ranks, torch.float32, seed=1)
    case = Case(indices, offsets, cores, options)
    exact = Case(indices, offsets, [c.detach().double().requires_grad_() for c in cores], options)
    got, want = case.call(ops.tt_embedding_bag), exact.call(reference.tt_embedding_bag)
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4 * want.detach().abs().max().item())
    upstream = torch.randn(got.shape, generator=generator)
    grads = torch.autograd.grad(got, cores, upstream)
    for mine, right in zip(grads, torch.autograd.grad(want, exact.cores, upstream.double()), strict=True):
        torch.testing.assert_close(mine.double(), right, rtol=1e-3, atol=1e-5 * right.abs().max().item())


@pytest.mark.parametrize("isa", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_instruction_set(isa, dtype):
    if ops.tt_limit_isa(isa) != isa:
        ops.tt_limit_isa(2)
        pytest.skip("this machine lacks it")
    try:
        for q in ((2, 2, 4), (2, 3, 2), (1, 2, 16)):
            for ranks in ((32, 32), (16, 48), (8, 8), (12, 4), (2, 6), (3, 5)):
                case = one_table(n=200, dtype=dtype, q=q, ranks=ranks, weighted=True)
                got, want = case.call(ops.tt_embedding_bag), case.call(reference.tt_embedding_bag)
                tolerance = {torch.float32: 2e-5, torch.float64: 1e-12}[dtype]
                pairs = [
                    (got, want),
                    *zip(
                        torch.autograd.grad(got.square().sum(), case.leaves()),
                        torch.autograd.grad(want.square().sum(), case.leaves()),
                        strict=True,
                    ),
                ]
                for mine, right in pairs:
                    scale = right.detach().abs().max().item()
                    torch.testing.assert_close(mine, right, rtol=0, atol=tolerance * scale)
    finally:
        ops.tt_limit_isa(2)


def test_results_do_not_depend_on_the_number_of_threads():
    generator = torch.Generator().manual_seed(0)
    indices = torch.randint(0, 10800, (8000,), generator=generator)
    options = dict(zip(OPTIONS, ([3], [10800], [0], [-1]), strict=True))
    cores = make_cores((40, 9, 30), (2, 2, 4), (32, 32), torch.float32)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for offsets in (torch.arange(8001), torch.arange(0, 8001, 5)):
                out = Case(indices, offsets, cores, options).call(ops.tt_embedding_bag)
                results.append([out, *torch.autograd.grad(out.square().sum(), cores)])
    finally:
        torch.set_num_threads(threads)
    for k, result in enumerate(results[2:]):
        assert all(torch.equal(a, b) for a, b in zip(result, results[k % 2], strict=True))


def test_shared_cores_add_their_gradients():
    case = one_table()
    offsets = torch.cat([case.offsets, case.offsets[1:] + 23])
    options = {name: values * 2 for name, values in case.options.items()}
    both = Case(torch.cat([case.indices, case.indices]), offsets, case.cores * 2, options)
    single = torch.autograd.grad(case.call(ops.tt_embedding_bag).sum(), case.cores)
    double = torch.autograd.grad(both.call(ops.tt_embedding_bag).sum(), case.cores)
    torch.testing.assert_close(double, tuple(2 * g for g in single))


@pytest.mark.slow
@pytest.mark.parametrize("cores_learn", [False, True])
def test_compiled_gradients_of_the_weights(cores_learn):
    case = one_table(weighted=True)

    def run(weights, cores):
        return Case(case.indices, case.offsets, cores, case.options, weights).call(ops.tt_embedding_bag)

    found = []
    for function in (run, torch.compile(run, fullgraph=True)):
        weights = case.weights.detach().clone().requires_grad_()
        cores = [core.detach().clone().requires_grad_(cores_learn) for core in case.cores]
        function(weights, cores).square().sum().backward()
        found.append((weights.grad, [core.grad for core in cores]))
    torch.testing.assert_close(found[0][0], found[1][0])
    for mine, right in zip(found[0][1], found[1][1], strict=True):
        assert mine is right is None if not cores_learn else torch.allclose(mine, right)


def test_gradcheck():
    case = one_table(n=7, p=(2, 3, 10), weighted=True)

    def run(weights, *cores):
        return Case(case.indices, case.offsets, list(cores), case.options, weights).call(ops.tt_embedding_bag)

    assert torch.autograd.gradcheck(run, (case.weights, *case.cores))


@pytest.mark.parametrize("weighted", [False, True])
def test_opcheck(weighted):
    case = one_table(weighted=weighted)
    rest = [case.options[name] for name in OPTIONS]
    op = torch.ops.recsys_opt.tt_embedding_bag.default
    torch.library.opcheck(op, (case.indices, case.offsets, case.cores, *rest, case.weights))
    plain = [core.detach() for core in case.cores]
    weights = None if case.weights is None else case.weights.detach()
    torch.library.opcheck(op, (case.indices, case.offsets, plain, *rest, weights))
    torch.library.opcheck(
        torch.ops.recsys_opt.tt_embedding_bag_backward.default,
        (torch.randn(4, 12).double(), case.indices, case.offsets, plain, *rest, weights, weighted),
    )


@pytest.mark.parametrize(
    ("indices", "offsets", "message"),
    [
        ([0, 60], [0, 1, 2], r"indices\[1\] = 60 is outside the table's 60 rows \(table 0\)"),
        ([-1, 3], [0, 1, 2], r"indices\[0\] = -1 is outside the table's 60 rows"),
        ([1, 2], [0, 2, 1], r"offsets\[2\] = 1 is less than offsets\[1\] = 2"),
        ([1, 2], [0, 1, 3], r"offsets\[2\] = 3 is outside the 2 indices"),
        ([1, 2], [-1, 1, 2], r"offsets\[0\] = -1 is outside the 2 indices"),
        ([1, 2], [1, 1, 2], r"offsets\[0\] = 1; the first bag must start at 0"),
    ],
)
def test_bad_values_are_named(indices, offsets, message):
    case = one_table()
    case.indices, case.offsets = torch.tensor(indices), torch.tensor(offsets)
    with pytest.raises(RuntimeError, match=message):
        case.call(ops.tt_embedding_bag)


def test_bad_arguments_are_named():
    def refused(message, **changes):
        case = one_table()
        for name, value in changes.items():
            if name in OPTIONS:
                case.options[name] = value
            else:
                setattr(case, name, value)
        with pytest.raises(RuntimeError, match=message):
            case.call(ops.tt_embedding_bag)

    cores = one_table().cores
    refused(
        "cores 0 and 1 of table 0 disagree on rank: 3 vs 2", cores=[cores[0], cores[1][:, :, :2], cores[2]]
    )
    refused("table 0 has 1 cores; it must have 2 to 4", cores_per_table=[1])
    refused(
        "3 cores given, cores_per_table adds up to 2",
        cores_per_table=[2],
        cores=make_cores((6, 10), (2, 2), (3,)) + cores[:1],
    )
    refused("num_embeddings = 61, its cores make 60 rows", num_embeddings=[61])
    refused("pooling mode 2", pooling_modes=[2])
    refused("padding_idx = 60", padding_idx=[60])
    refused("indices must be 1-D int32 or int64", indices=torch.zeros(3))
    twice = {name: values * 2 for name, values in one_table().options.items()}
    refused("offsets has 4 elements", offsets=torch.zeros(4, dtype=torch.long), **twice)
    case = one_table()
    rest = [[3, 3], *(case.options[name] for name in OPTIONS[1:])]
    with pytest.raises(RuntimeError, match="2 tables, but 1 num_embeddings"):
        torch.ops.recsys_opt.tt_embedding_bag(case.indices, case.offsets, case.cores, *rest, None)
    case.options["cores_per_table"] = [3, 3]
    with pytest.raises(InputError, match="2 tables, but 1 num_embeddings"):
        case.call(ops.tt_embedding_bag)
    with pytest.raises(RuntimeError, match="5 numbers of tables; each table has 4"):
        torch.ops.recsys_opt.tt_lookup(case.indices, None, True, cores, [3, 60, 0, -1, 0], None, False)
    refused("per_sample_weights has 2 elements, indices has 23", weights=torch.zeros(2).double())
    refused("per_sample_weights and the cores differ in dtype", weights=torch.zeros(23))
    refused("table 0 pools by mean", weights=torch.zeros(23).double(), pooling_modes=[1])


def test_empty_batches():
    case = one_table()
    case.indices, case.offsets = torch.empty(0, dtype=torch.long), torch.zeros(1, dtype=torch.long)
    out = case.call(ops.tt_embedding_bag)
    assert out.shape == (0, 12)
    assert all(not g.any() for g in torch.autograd.grad(out.sum(), case.cores))


def test_extreme_ids_of_a_table_beyond_32_bits():
    p = (70000, 300, 70000)
    cores = make_cores(p, (1, 2, 2), (2, 2))
    last = p[0] * p[1] * p[2] - 1
    options = dict(zip(OPTIONS, ([3], [last + 1], [0], [-1]), strict=True))
    case = Case(torch.tensor([0, last, 2**31, 2**32, last]), torch.arange(6), cores, options)
    got, want = case.call(ops.tt_embedding_bag), case.call(reference.tt_embedding_bag)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got.sum(), cores), torch.autograd.grad(want.sum(), cores))


def test_gradients_of_the_bare_op_cannot_be_differentiated_again():
    case = one_table()
    rest = [case.options[name] for name in OPTIONS]
    out = torch.ops.recsys_opt.tt_embedding_bag(case.indices, case.offsets, case.cores, *rest, None)
    (grad,) = torch.autograd.grad(out.square().sum(), case.cores[0], create_graph=True)
    with pytest.raises(RuntimeError, match=r"cannot be differentiated twice; .*reference\.tt_embedding_bag"):
        grad.sum().backward()


def test_a_copy_of_what_the_forward_pass_kept_is_refused():
    case = one_table()
    tables = [number for name in OPTIONS for number in case.options[name]]
    cores = [core.detach() for core in case.cores]
    kernels = torch.ops.recsys_opt
    out, kept = kernels.tt_lookup(case.indices, case.offsets, True, cores, tables, None, True)
    kernels.tt_lookup_backward(kept, out, False)
    with pytest.raises(RuntimeError, match="grad must be"):
        kernels.tt_lookup_backward(kept, out[:-1], False)
    numbers = torch.zeros(6, dtype=torch.float64)
    for other in (kept.clone(), kept[:8], torch.zeros(0, dtype=torch.uint8)):
        with pytest.raises(RuntimeError, match="`kept` is not what a forward pass kept"):
            kernels.tt_lookup_backward(other, out, False)
        with pytest.raises(RuntimeError, match="`kept` is not what a forward pass kept"):
            kernels.tt_lookup_update(other, out, False, False, [], 0, numbers)
