"""The native hot-row ops against their twins in plain torch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_opt import reference_hot_rows as reference
from recsys_opt.ops import hot_rows as ops

BIG = 10**12


class Case:
    """Two tables, the second possibly of 10^12 rows, with some of their ids hot."""

    def __init__(self, lengths: list[int], seed: int, one_per_bag: bool = False, dtype=torch.int64):
        g = torch.Generator().manual_seed(seed)
        self.batch = len(lengths) // 2
        self.rows = [9, 500 if dtype == torch.int32 else BIG]
        if one_per_bag:
            lengths = [1] * (2 * self.batch)
        self.offsets = None if one_per_bag else torch.tensor([0, *lengths]).cumsum(0)
        half = sum(lengths[: self.batch])
        small = torch.randint(0, 9, (half,), generator=g)
        pool = torch.tensor([0, 1, 77, 499, self.rows[1] - 1])
        large = pool[torch.randint(0, 5, (sum(lengths) - half,), generator=g)]
        beyond = torch.full((0 if one_per_bag else seed % 3,), 5)  # of no bag
        self.indices = torch.cat([small, large, beyond]).to(dtype)
        self.keys = [torch.tensor([3, -1, 8, 0]), torch.tensor([self.rows[1] - 1, 77])]
        self.directories = [torch.empty(8, dtype=torch.int32), torch.empty(4, dtype=torch.int32)]
        for directory, keys in zip(self.directories, self.keys, strict=True):
            ops.hot_rows_directory_(directory, keys)
        self.weights = [torch.randn(4, 3, generator=g).double(), torch.randn(2, 8, generator=g).double()]
        self.base = torch.randn(self.batch, 11, generator=g).double()
        self.padding = [8, -1]

    def split(self):
        return ops.hot_rows_split(
            self.indices, self.offsets, self.keys, self.directories, self.rows, self.padding
        )


shapes = st.integers(0, 5).flatmap(lambda b: st.lists(st.integers(0, 4), min_size=2 * b, max_size=2 * b))


@settings(max_examples=150)
@given(lengths=shapes, seed=st.integers(0, 9), single=st.booleans(), narrow=st.booleans())
def test_split(lengths, seed, single, narrow):
    case = Case(lengths, seed, single, torch.int32 if narrow else torch.int64)
    want = reference.split(case.indices, case.offsets, case.keys, case.rows, case.padding)
    torch.testing.assert_close(case.split(), want, rtol=0, atol=0)


@settings(max_examples=150)
@given(
    lengths=shapes,
    seed=st.integers(0, 9),
    single=st.booleans(),
    weighted=st.booleans(),
    mean=st.tuples(st.booleans(), st.booleans()),
)
def test_bag_and_its_gradients(lengths, seed, single, weighted, mean):
    case = Case(lengths, seed, single)
    slots = case.split()[0]
    factors = None
    if weighted:
        mean = (False, False)
        factors = torch.linspace(-1, 2, slots.numel(), dtype=torch.float64).requires_grad_()
    leaves = [case.base, *case.weights]
    for leaf in leaves:
        leaf.requires_grad_()
    leaves += [factors] if weighted else []
    args = (case.base, case.weights, slots, case.offsets, factors, mean)
    got, want = ops.hot_rows_bag(*args), reference.bag(*args)
    torch.testing.assert_close(got, want)
    upstream = torch.randn_like(want)
    found = [g.to_dense() for g in torch.autograd.grad(got, leaves, upstream)]
    wanted = torch.autograd.grad(want, leaves, upstream, materialize_grads=True)
    torch.testing.assert_close(found, list(wanted))


def counters(case: Case, exact: bool) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    """Exact counts for the first table where asked for; else sketches so small that ids collide."""
    hot = [torch.zeros(len(k), dtype=torch.int32) for k in case.keys]
    counts = [torch.zeros(2, 4, dtype=torch.int32) for _ in case.keys]
    candidates = [torch.zeros(4, dtype=torch.int64) for _ in case.keys]
    if exact:
        counts[0], candidates[0] = torch.zeros(1, 9, dtype=torch.int32), candidates[0][:0].clone()
    return hot, counts, candidates


@settings(max_examples=100)
@given(
    lengths=shapes,
    seed=st.integers(0, 9),
    single=st.booleans(),
    exact=st.booleans(),
    stride=st.integers(1, 3),
)
def test_count(lengths, seed, single, exact, stride):
    case = Case(lengths, seed, single)
    slots = case.split()[0]
    got, want = counters(case, exact), counters(case, exact)
    for turn in range(2):
        phase = turn % stride
        ops.hot_rows_count_(*got, case.indices, slots, case.offsets, case.rows, stride, phase)
        reference.count_(*want, case.indices, slots, case.offsets, stride, phase)
    torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_counts_do_not_depend_on_the_order_of_lookups_or_threads():
    ids = torch.randint(0, 40, (999,), generator=torch.Generator().manual_seed(0))
    slots, results = torch.full((999,), ops.COLD, dtype=torch.int32), []
    before = torch.get_num_threads()
    for threads, order in ((1, torch.arange(999)), (2, torch.randperm(999))):
        torch.set_num_threads(threads)
        counts, candidates = torch.zeros(2, 8, dtype=torch.int32), torch.zeros(16, dtype=torch.int64)
        ops.hot_rows_count_(
            [torch.zeros(1, dtype=torch.int32)], [counts], [candidates], ids[order], slots, None, [40]
        )
        results.append((counts, candidates))
    torch.set_num_threads(before)
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


def test_sketch_never_counts_too_low_and_finds_the_frequent():
    g = torch.Generator().manual_seed(1)
    ids = (torch.rand(20_000, generator=g).pow(-1.2)).long().clamp(max=10**6)  # a heavy head, a long tail
    counts, candidates = torch.zeros(2, 1024, dtype=torch.int32), torch.zeros(512, dtype=torch.int64)
    slots = torch.full_like(ids, ops.COLD, dtype=torch.int32)
    ops.hot_rows_count_(
        [torch.zeros(1, dtype=torch.int32)], [counts], [candidates], ids, slots, None, [10**6 + 1]
    )
    distinct, true = ids.unique(return_counts=True)
    estimates = reference.estimate(distinct, counts)
    assert (estimates >= true).all()
    top = set(distinct[true.topk(20).indices].tolist())
    kept = {(v & ((1 << ops.ID_BITS) - 1)) - 1 for v in candidates.tolist()}
    assert top <= kept


def test_a_directory_of_many_keys_finds_each_and_no_other():
    keys = torch.randperm(10**6, generator=torch.Generator().manual_seed(0))[:3000]
    keys[::7] = -1
    directory = torch.empty(4096, dtype=torch.int32)
    ops.hot_rows_directory_(directory, keys)
    ids = torch.arange(10**6)
    slots = ops.hot_rows_split(ids, None, [keys], [directory], [10**6], [-1])[0].long()
    want = torch.full((10**6,), ops.COLD)
    held = keys >= 0
    want[keys[held]] = torch.arange(3000)[held]
    torch.testing.assert_close(slots, want, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match=r"keys\[0\] and keys\[1\] are both 5"):
        ops.hot_rows_directory_(directory, torch.tensor([5, 5]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"indices": torch.tensor([9, 1])}, r"indices\[0\] = 9 is outside the table's 9 rows \(table 0\)"),
        ({"indices": torch.tensor([0, -1])}, r"indices\[1\] = -1 .* 1000000000000 rows \(table 1\)"),
        ({"indices": torch.tensor([0, 1, 2])}, "3 lookups without offsets for 2 tables"),
        ({"indices": torch.tensor([0.0, 1.0])}, "indices must be int32 or int64"),
        ({"offsets": torch.tensor([0, 1])}, "tables x bags"),
        ({"offsets": torch.tensor([0, 2, 1])}, r"offsets\[2\] = 1 is less than offsets\[1\] = 2"),
        ({"offsets": torch.tensor([0, 1, 3])}, r"offsets\[2\] = 3 is outside the 2 indices"),
        ({"offsets": torch.tensor([1, 1, 2])}, r"offsets\[0\] = 1; it must be 0"),
        ({"padding": [-1]}, "2 keys, but 2 directories, 2 num_embeddings and 1 padding_idx"),
        ({"rows": [9, 2**40]}, "num_embeddings = 1099511627776"),
        ({"directories": [torch.zeros(6, dtype=torch.int32)] * 2}, r"directories\[0\] has 6 entries"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    case = Case([1, 1], 0, True)
    for name, value in changes.items():
        setattr(case, name, value)
    with pytest.raises(RuntimeError, match=message):
        case.split()


def test_bad_slots_and_shapes_are_named():
    case = Case([1, 1], 0, True)
    slots = torch.tensor([4, 0], dtype=torch.int32)
    for args, message in [
        ((case.base, case.weights, slots, None, None, [0, 0]), r"slots\[0\] = 4 is outside the 4 slots"),
        ((case.base[:, :5], case.weights, slots, None, None, [0, 0]), r"must be \[1, 11\]"),
        ((case.base, case.weights, slots, None, torch.ones(2).double(), [0, 1]), "table 1 averages"),
        ((case.base.float(), case.weights, slots, None, None, [0, 0]), "differ in dtype"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            ops.hot_rows_bag(*args)
    hot, counts, candidates = counters(case, exact=True)
    with pytest.raises(RuntimeError, match=r"indices\[1\] = .* with slot 5"):
        bad = torch.tensor([0, 5], dtype=torch.int32)
        ops.hot_rows_count_(hot, counts, candidates, case.indices, bad, None, case.rows)


@pytest.mark.parametrize("weighted", [False, True])
def test_opcheck(weighted):
    case = Case([1, 2, 0, 3, 1, 2], 0)
    slots = case.split()[0]
    library = torch.ops.recsys_opt
    torch.library.opcheck(
        library.hot_rows_split.default,
        (case.indices, case.offsets, case.keys, case.directories, case.rows, case.padding),
    )
    torch.library.opcheck(library.hot_rows_directory_.default, (case.directories[0], case.keys[0]))
    torch.library.opcheck(
        library.hot_rows_count_.default,
        (*counters(case, True), case.indices, slots, case.offsets, case.rows, 1, 0),
    )
    factors = torch.rand(slots.numel(), dtype=torch.float64) if weighted else None
    mean = [0, 0 if weighted else 1]
    torch.library.opcheck(
        library.hot_rows_bag.default, (case.base, case.weights, slots, case.offsets, factors, mean)
    )
    torch.library.opcheck(
        library.hot_rows_bag_base_gradient.default, (case.base, case.weights, slots, case.offsets, mean)
    )
    torch.library.opcheck(
        library.hot_rows_bag_factor_gradients.default, (case.base, case.weights, slots, case.offsets)
    )


def test_gradcheck():
    case = Case([1, 2, 0, 3, 1, 2], 0)
    slots = case.split()[0]
    factors = torch.rand(slots.numel(), dtype=torch.float64, requires_grad=True)

    def run(base, factors):
        return ops.hot_rows_bag(base, case.weights, slots, case.offsets, factors, [0, 0])

    assert torch.autograd.gradcheck(run, (case.base.requires_grad_(), factors))


def test_gradients_by_atomics_are_refused_where_determinism_is_asked_for():
    """As they are made on CUDA; here of CPU tensors, whose own gradients are deterministic."""
    case = Case([2, 2], 0)
    arguments = (case.base, case.weights, case.split()[0], case.offsets, None, [0, 0])
    want = ops._weight_gradients(*arguments)
    try:
        torch.use_deterministic_algorithms(True)
        with pytest.raises(RuntimeError, match="added by atomics on CUDA"):
            ops._weight_gradients_by_atomics(*arguments)
        torch.use_deterministic_algorithms(True, warn_only=True)
        with pytest.warns(UserWarning, match="added by atomics on CUDA"):
            got = ops._weight_gradients_by_atomics(*arguments)
    finally:
        torch.use_deterministic_algorithms(False)
    for mine, right in zip(got, want, strict=True):
        torch.testing.assert_close(mine.to_dense(), right.to_dense())
