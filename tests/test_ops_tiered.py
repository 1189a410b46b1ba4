"""The ops of tables in two tiers beside their twins in plain torch."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recsys_opt import ops
from recsys_opt import reference_tiered as reference

pytestmark = pytest.mark.usefixtures("one_thread")

NATIVE = torch.ops.recsys_opt
STATES = {"sgd": 0, "adagrad": 1, "rowwise_adagrad": 1, "adam": 2}


def numbers(weight_decay=0.0, step=1) -> Tensor:
    return torch.tensor([0.1, 1e-3, 0.9, 0.99, weight_decay, step], dtype=torch.float64)


class Case:
    """Tables whose rows are split at some place, ranked or not, and a batch of lookups."""

    def __init__(self, seed: int, tables: int, batch: int, *, single=False, narrow=False, weighted=False):
        g = torch.Generator().manual_seed(seed)

        def one_of(*values):
            return values[int(torch.randint(0, len(values), (1,), generator=g))]

        self.hot, self.cold, self.remaps = [], [], []
        for _ in range(tables):
            rows, dim = one_of(1, 3, 40, 20_011), one_of(1, 3, 16, 33, 64, 128)
            split = one_of(0, rows // 3, rows)
            self.hot.append(torch.randn(split, dim, dtype=torch.float64, generator=g))
            self.cold.append(torch.randn(rows - split, dim, dtype=torch.float64, generator=g))
            remap = torch.randperm(rows, generator=g).int() if one_of(0, 1, 1) else torch.empty(0).int()
            self.remaps.append(remap)
        if tables > 1 and one_of(0, 1):  # two features of one table
            for tensors in (self.hot, self.cold, self.remaps):
                tensors[-1] = tensors[0]
        self.rows = [len(h) + len(c) for h, c in zip(self.hot, self.cold, strict=True)]
        lengths = torch.randint(0, 4, (tables * batch,), generator=g)
        if single:
            lengths.fill_(1)
        ids = []
        for k, length in enumerate(lengths.tolist()):
            n = self.rows[k // batch]
            bag = torch.randint(0, n, (length,), generator=g)
            bag[:1] = (0, n - 1, n // 2)[k % 3]
            ids.append(bag)
        beyond = torch.full((0 if single else seed % 3,), 10**6)  # of no bag
        self.indices = torch.cat([*ids, beyond]).to(torch.int32 if narrow else torch.int64)
        self.offsets = None if single else torch.cat([torch.zeros(1).long(), lengths.cumsum(0)])
        count = len(self.indices)
        self.factors = torch.randn(count, dtype=torch.float64, generator=g) if weighted else None
        self.mean = [0 if weighted else one_of(0, 1) for _ in range(tables)]
        columns = sum(h.shape[1] for h in self.hot)
        self.grad = torch.randn(batch, columns + 2, dtype=torch.float64, generator=g)[:, 1:-1]

    def arguments(self):
        return self.hot, self.cold, self.remaps, self.indices, self.offsets, self.factors, self.mean

    def positions(self) -> Tensor:
        return reference.positions(len(self.hot), self.remaps, self.indices, self.offsets)

    def states(self, algorithm: str):
        """Of either tier; those of one table are shared."""
        made: dict[int, list[Tensor]] = {}

        def of(tier: Tensor) -> list[Tensor]:
            shape = tier.shape[:1] if algorithm == "rowwise_adagrad" else tier.shape
            fresh = [torch.rand(shape, dtype=tier.dtype) for _ in range(STATES[algorithm])]
            return made.setdefault(id(tier), fresh)

        return [s for h in self.hot for s in of(h)], [s for c in self.cold for s in of(c)]


cases = st.builds(
    Case,
    st.integers(0, 10_000),
    st.integers(1, 4),
    st.sampled_from([0, 1, 2, 70]),  # more than a block of samples
    single=st.booleans(),
    narrow=st.booleans(),
    weighted=st.booleans(),
)


@settings(max_examples=50)
@given(cases)
def test_lookups_match_the_reference(case):
    output, positions = NATIVE.tiered_bag(*case.arguments())
    torch.testing.assert_close(output, reference.tiered_bag(*case.arguments()))
    if any(remap.numel() for remap in case.remaps):
        used = len(case.indices) if case.offsets is None else int(case.offsets[-1])
        assert positions.dtype == torch.int32
        assert torch.equal(positions[:used].long(), case.positions()[:used])
    else:
        assert positions.numel() == 0


@settings(max_examples=50)
@given(cases, st.sampled_from(sorted(STATES)), st.booleans(), st.sampled_from([0.0, 0.1]))
def test_the_update_matches_the_reference(case, algorithm, factors_grad, decay):
    tensors = (case.hot, case.cold, *case.states(algorithm))
    got, want = copy.deepcopy(tensors), copy.deepcopy(tensors)
    factors_grad = factors_grad and case.factors is not None
    rest = (case.positions(), case.offsets, case.factors, case.mean, factors_grad)
    rule = (ops.TT_ALGORITHMS[algorithm], numbers(decay, 3))
    torch.testing.assert_close(
        (NATIVE.tiered_bag_backward_update(case.grad, *got, *rest, *rule), *got),
        (reference.tiered_bag_backward_update(case.grad, *want, *rest, *rule), *want),
    )


@settings(max_examples=25)
@given(cases)
def test_gradients_match_autograd_through_the_reference(case):
    """Of rows that are looked up several times, from either tier, and of weights of lookups."""
    results = []
    for function in (ops.tiered_bag, reference.tiered_bag):
        leaves = [tier.detach().clone().requires_grad_() for tiers in (case.hot, case.cold) for tier in tiers]
        if case.remaps[-1] is case.remaps[0]:  # still one table
            leaves[len(case.hot) - 1], leaves[-1] = leaves[0], leaves[len(case.hot)]
        factors = None if case.factors is None else case.factors.clone().requires_grad_()
        tables = len(case.hot)
        output = function(
            leaves[:tables], leaves[tables:], case.remaps, case.indices, case.offsets, factors, case.mean
        )
        wanted = [*leaves, *([] if factors is None else [factors])]
        grads = torch.autograd.grad(output, wanted, case.grad, allow_unused=True, materialize_grads=True)
        results.append([g.to_dense() if g.is_sparse else g for g in grads])
    torch.testing.assert_close(*results)


def test_opcheck():
    for case in (Case(1, 2, 3, weighted=True), Case(2, 2, 3, single=True, narrow=True)):
        for tier in (*case.hot, *case.cold):
            tier.requires_grad_()
        torch.library.opcheck(NATIVE.tiered_bag.default, case.arguments())
        state = torch.zeros(0)
        torch.library.opcheck(
            NATIVE.tiered_ask_ahead.default,
            (*case.arguments()[:3], [state] * 2, *case.arguments()[3:5], [0, 0]),
        )
        plain = [[tier.detach() for tier in tiers] for tiers in (case.hot, case.cold)]
        rest = (case.positions(), case.offsets, case.factors, case.mean, case.factors is not None)
        for algorithm in ("sgd", "adam"):
            arguments = (case.grad, *plain, *case.states(algorithm), *rest)
            rule = (ops.TT_ALGORITHMS[algorithm], numbers())
            torch.library.opcheck(NATIVE.tiered_bag_backward_update.default, (*arguments, *rule))


@pytest.mark.slow
def test_compiles_with_its_sparse_gradients():
    case = Case(2, 3, 5, weighted=True)
    results = []
    for function in (torch.compile(ops.tiered_bag, fullgraph=True), ops.tiered_bag):
        tiers = [[tier.clone().requires_grad_() for tier in tiers] for tiers in (case.hot, case.cold)]
        output = function(*tiers, *case.arguments()[2:])
        output.backward(case.grad)
        results.append([output.detach(), *(t.grad.to_dense() for own in tiers for t in own)])
    torch.testing.assert_close(*results)


def test_many_rows_have_wide_positions():
    """Rows by the thousand million, of no columns: none of them takes up memory."""
    rows = 2**31 + 5
    hot, cold = torch.empty(3, 0), torch.empty(rows - 3, 0)
    empty = torch.empty(0, dtype=torch.int64)
    ids = torch.tensor([0, 2, 3, rows - 1])
    small = (torch.empty(2, 1), torch.empty(2, 1), torch.tensor([3, 1, 0, 2], dtype=torch.int32))
    arguments = ([hot, small[0]], [cold, small[1]], [empty, small[2]])
    positions = NATIVE.tiered_bag(*arguments, torch.cat([ids, ids % 4]), None, None, [0, 0])[1]
    assert positions.tolist() == [0, 2, 3, rows - 1, 3, 0, 2, 3]
    assert positions.dtype == torch.int64


@pytest.mark.parametrize("algorithm", sorted(STATES))
def test_threads_do_not_change_the_result(algorithm):
    results, threads = [], torch.get_num_threads()
    try:
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            g = torch.Generator().manual_seed(0)
            hot, cold = torch.randn(1000, 16, generator=g), torch.randn(200_000, 16, generator=g)
            shapes = [t.shape[:1] if algorithm == "rowwise_adagrad" else t.shape for t in (hot, cold)]
            states = [[torch.ones(s) for _ in range(STATES[algorithm])] * 2 for s in shapes]
            ids = (torch.rand(20_000, generator=g) ** 4 * 201_000).int()
            grad = torch.randn(10_000, 32, generator=g)
            NATIVE.tiered_bag_backward_update(
                grad, [hot] * 2, [cold] * 2, *states, ids, None, None, [0, 1], False,
                ops.TT_ALGORITHMS[algorithm], numbers(),
            )  # fmt: skip
            results.append([hot, cold, *states[0], *states[1]])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def example() -> dict[str, object]:
    g = torch.Generator().manual_seed(0)
    return {
        "hot": [torch.randn(n, 3, generator=g) for n in (2, 0)],
        "cold": [torch.randn(n, 3, generator=g) for n in (5, 9)],
        "remaps": [torch.tensor([6, 5, 4, 3, 2, 1, 0], dtype=torch.int32), torch.empty(0).int()],
        "indices": torch.tensor([0, 6, 6, 1, 8]),
        "offsets": torch.tensor([0, 2, 3, 3, 5]),
        "factors": None,
        "mean": [0, 1],
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"indices": torch.tensor([0, 6, 7, 1, 8])}, r"indices\[2\] = 7 is outside the 7 rows of table 0"),
        ({"indices": torch.tensor([0, 6, 6, -1, 9])}, r"indices\[3\] = -1 is outside the 9 rows of table 1"),
        (
            {"remaps": [torch.tensor([6, 5, 4, 3, 2, 1, 7], dtype=torch.int32), torch.empty(0).int()]},
            r"remaps\[0\]\[6\] = 7 is outside the 7 rows",
        ),
        ({"remaps": [torch.arange(7), torch.empty(0)]}, r"remaps\[0\] must be empty, or 7 contiguous int32"),
        ({"remaps": [torch.empty(0)]}, "2 tables, but 1 remaps"),
        ({"cold": [torch.zeros(5, 3)]}, "2 hot tiers, but 1 cold ones"),
        ({"cold": [torch.zeros(5, 3), torch.zeros(9, 2)]}, r"cold\[1\] must be \[rows, 3\] as hot\[1\]"),
        ({"cold": [torch.zeros(5, 3).double(), torch.zeros(9, 3)]}, "differ in dtype"),
        ({"hot": [torch.zeros(2, 3), torch.zeros(3)]}, r"hot\[1\] must be \[rows, D\] and contiguous"),
        ({"offsets": torch.tensor([0, 2, 1, 3, 5])}, r"offsets\[2\] = 1 is below"),
        ({"factors": torch.ones(5)}, "needs sum pooling, but table 1 averages"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(RuntimeError, match=message):
        NATIVE.tiered_bag(*(example() | change).values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": torch.tensor([0, 6, 7, 1, 8])}, r"indices\[2\] = 7 is outside the 7 rows of table 0"),
        ({"grad": torch.zeros(2, 5)}, r"grad must be \[2, 6\]"),
        ({"cold_states": []}, "2 tables need 2 states of either tier, got 0"),
        ({"hot_states": [torch.zeros(2), torch.zeros(1)]}, "state 0 of table 1's hot rows must be 0"),
        ({"algorithm": 1}, "state 0 of table 0's hot rows must be 6 contiguous"),
        ({"numbers": torch.zeros(5).double()}, "hyperparameters must be 6 float64 numbers"),
        ({"factors_grad": True}, "no per_sample_weights to have a gradient"),
    ],
)
def test_bad_updates_are_named_and_change_nothing(change, message):
    base = example()
    arguments = {
        "grad": torch.ones(2, 6),
        "hot": base["hot"],
        "cold": base["cold"],
        "hot_states": [torch.zeros(2), torch.zeros(0)],
        "cold_states": [torch.zeros(5), torch.zeros(9)],
        "positions": base["indices"],
        "offsets": base["offsets"],
        "factors": None,
        "mean": base["mean"],
        "factors_grad": False,
        "algorithm": 2,
        "numbers": numbers(),
    }
    before = copy.deepcopy((base["hot"], base["cold"]))
    with pytest.raises(RuntimeError, match=message):
        NATIVE.tiered_bag_backward_update(*(arguments | change).values())
    torch.testing.assert_close((base["hot"], base["cold"]), before, rtol=0, atol=0)


def test_tables_share_both_tiers_or_none():
    base = example()
    hot = [base["hot"][0]] * 2
    cold = [base["cold"][0], torch.zeros(5, 3)]
    with pytest.raises(RuntimeError, match="share rows, but are not the same table"):
        NATIVE.tiered_bag_backward_update(
            torch.ones(2, 6),
            hot,
            cold,
            [],
            [],
            torch.zeros(4).long(),
            None,
            None,
            [0, 0],
            False,
            0,
            numbers(),
        )
