"""The CUDA kernels of tables in two tiers, run on the host by the shim (simt.h), against the CPU's."""

import copy
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_opt import ops as public
from recsys_opt import reference_tiered as reference
from tests.simt import ops
from tests.test_ops_tiered import STATES, Case, cases, numbers

pytestmark = pytest.mark.usefixtures("one_thread")
ORDERS = st.sampled_from(("forward", "backward", "random"))
NATIVE = torch.ops.recsys_opt


def guarded(value):
    """Copies that end at a page that may not be touched; those of one tensor are one."""
    if not isinstance(value, list):
        return ops.guarded(value)
    made = {id(tensor): ops.guarded(tensor) for tensor in value}
    return [made[id(tensor)] for tensor in value]


def look_up(case: Case):
    *tensors, mean = case.arguments()
    return ops.library().tiered_bag(*map(guarded, tensors), mean)


@settings(max_examples=20)
@given(cases, st.booleans(), ORDERS)
def test_lookups(case, narrow, order):
    if narrow:
        case.hot, case.cold = ([tier.float() for tier in tiers] for tiers in (case.hot, case.cold))
        case.factors = None if case.factors is None else case.factors.float()
    with ops.running(order):
        got, positions = look_up(case)
    want, wanted_positions = NATIVE.tiered_bag(*case.arguments())
    torch.testing.assert_close(got, want)
    used = 0 if not len(positions) else len(case.indices) if case.offsets is None else case.offsets[-1]
    assert positions.dtype == wanted_positions.dtype
    assert torch.equal(positions[:used], wanted_positions[:used])


@settings(max_examples=20)
@given(cases, ORDERS)
def test_gradients_of_factors(case, order):
    factors = torch.ones(len(case.indices), dtype=torch.float64)
    arguments = (case.grad, case.hot, case.cold, case.positions(), case.offsets, factors)
    with ops.running(order):
        got = ops.library().tiered_bag_factor_gradients(*map(guarded, arguments))
    torch.testing.assert_close(got, NATIVE.tiered_bag_factor_gradients(*arguments))


def update(case: Case, algorithm: str, tensors, order: str, seed: int, factors_grad: bool = False):
    """The kernels' update of (hot, cold, hot_states, cold_states), and what the op returned."""
    there = tuple(map(guarded, tensors))
    rest = map(guarded, (case.positions(), case.offsets, case.factors))
    rule = (public.TT_ALGORITHMS[algorithm], guarded(numbers(0.1, 3)))
    with ops.running(order, seed):
        result = ops.library().tiered_bag_backward_update(
            guarded(case.grad), *there, *rest, case.mean, factors_grad, *rule
        )
    return result, *there


@settings(max_examples=25)
@given(cases, st.sampled_from(sorted(STATES)), st.booleans(), ORDERS)
def test_updates(case, algorithm, factors_grad, order):
    tensors = (case.hot, case.cold, *case.states(algorithm))
    want = copy.deepcopy(tensors)
    factors_grad = factors_grad and case.factors is not None
    rest = (case.positions(), case.offsets, case.factors, case.mean, factors_grad)
    rule = (public.TT_ALGORITHMS[algorithm], numbers(0.1, 3))
    result = reference.tiered_bag_backward_update(case.grad, *want, *rest, *rule)
    got = update(case, algorithm, tensors, order, 0, factors_grad)
    torch.testing.assert_close(got, (result, *want))


class Skewed(Case):
    """Few rows that most lookups have: their gradients go over many tiles, of one and of two tables."""

    def __init__(self, lookups: int, dims: tuple[int, int], seed: int = 0):
        g = torch.Generator().manual_seed(seed)
        self.hot = [torch.randn(3, d, generator=g) for d in dims]
        self.cold = [torch.randn(n, d, generator=g) for n, d in zip((40, 300), dims, strict=True)]
        self.remaps = [torch.randperm(43, generator=g).int(), torch.empty(0).int()]
        ids = (torch.rand(2 * lookups, generator=g) ** 6 * 43).int()
        ids[:lookups:5] = 7
        ids[lookups + 50 :] += 9
        self.indices, self.offsets, self.factors, self.mean = ids, None, None, [0, 1]
        self.grad = torch.randn(lookups, sum(dims), generator=g)


@pytest.mark.parametrize("algorithm", ["sgd", "rowwise_adagrad", "adam"])
@pytest.mark.parametrize(("lookups", "dims"), [(1500, (4, 4)), (700, (33, 2)), (300, (130, 64))])
def test_rows_of_many_lookups_are_summed_alike_in_every_order(algorithm, lookups, dims):
    """To the bit, whatever the order of blocks and threads: no sum is atomic."""
    case = Skewed(lookups, dims)
    tensors = (case.hot, case.cold, *case.states(algorithm))
    rest = (case.positions(), case.offsets, case.factors, case.mean, False)
    want = copy.deepcopy(tensors)
    NATIVE.tiered_bag_backward_update(
        case.grad, *want, *rest, public.TT_ALGORITHMS[algorithm], numbers(0.1, 3)
    )
    results = [
        update(case, algorithm, tensors, *order) for order in (("forward", 0), ("backward", 0), ("random", 5))
    ]
    torch.testing.assert_close(results[0][1:], want, rtol=1e-4, atol=1e-5)
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=0)


def test_more_tables_than_a_launch_takes_by_value():
    case = Case(4, 30, 5)
    with ops.running("random", 1):
        got = look_up(case)[0]
    torch.testing.assert_close(got, NATIVE.tiered_bag(*case.arguments())[0])
    tensors = (case.hot, case.cold, *case.states("adagrad"))
    want = copy.deepcopy(tensors)
    rest = (case.positions(), case.offsets, case.factors, case.mean, False)
    reference.tiered_bag_backward_update(case.grad, *want, *rest, 1, numbers(0.1, 3))
    torch.testing.assert_close(update(case, "adagrad", tensors, "random", 2)[1:], want)


def small() -> Case:
    """Two tables of 4 + 5 and 2 + 1 rows, bags of 2, 1, 0 and 3 ids."""
    case = Case(0, 2, 2)
    g = torch.Generator().manual_seed(0)
    case.hot = [torch.randn(n, 4, dtype=torch.float64, generator=g) for n in (4, 2)]
    case.cold = [torch.randn(n, 4, dtype=torch.float64, generator=g) for n in (5, 1)]
    case.remaps = [torch.arange(8, -1, -1, dtype=torch.int32), torch.empty(0).int()]
    case.indices, case.factors, case.mean = torch.tensor([0, 8, 4, 2, 0, 1]), None, [0, 0]
    case.offsets = torch.tensor([0, 2, 3, 3, 6])
    case.grad = torch.ones(2, 8, dtype=torch.float64)
    return case


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"indices": (1, 9)}, "indices[1] = 9, outside the table's 9 rows (table 0)"),
        ({"indices": (3, -7)}, "indices[3] = -7, outside the table's 3 rows (table 1)"),
        ({"remaps": (8, 9)}, "positions[1] = 9, outside the table's 9 rows (table 0)"),
        ({"offsets": (1, 9)}, "offsets[1] = 9, outside the 6 indices"),
        ({"offsets": (4, 7)}, "offsets[4] = 7, outside the 6 indices"),
        ({"offsets": (2, 1)}, "offsets[2] = 1, less than offsets[1] = 2"),
        ({"offsets": (0, 1)}, "offsets[0] = 1, where the first bag must start at 0"),
    ],
)
@pytest.mark.parametrize("order", ["forward", "random"])
def test_bad_values_count_for_nothing_and_the_next_call_says_so(change, message, order):
    case, good = small(), small()
    (name, (place, value)) = next(iter(change.items()))
    target = case.remaps[0] if name == "remaps" else getattr(case, name)
    target[place] = value
    with ops.running(order, 3):
        output, positions = look_up(case)
        assert output.isfinite().all()
        with pytest.raises(RuntimeError, match=re.escape(message)):
            look_up(good)
        torch.testing.assert_close(look_up(good)[0], NATIVE.tiered_bag(*good.arguments())[0])
        # Nor do they in the backward pass, which writes nowhere outside.
        tiers = [guarded(tensors) for tensors in (case.hot, case.cold)]
        rest = (positions, guarded(case.offsets), None, case.mean, False, 0, guarded(numbers()))
        ops.library().tiered_bag_backward_update(guarded(case.grad), *tiers, [], [], *rest)
    if name == "offsets":
        return
    bad = {"indices": place, "remaps": 1}[name]
    assert positions[bad] == -1
    kept = torch.tensor([k for k in range(6) if k != bad])
    good.positions = lambda: reference.positions(2, good.remaps, good.indices, good.offsets)[kept]
    lengths = good.offsets.diff()
    lengths[0 if bad < 2 else 3] -= 1
    good.offsets = torch.cat([torch.zeros(1).long(), lengths.cumsum(0)])
    want = [[tier.clone() for tier in tensors] for tensors in (good.hot, good.cold)]
    empty: list[torch.Tensor] = []
    arguments = (good.positions(), good.offsets, None, [0, 0], False, 0, numbers())
    reference.tiered_bag_backward_update(good.grad, *want, empty, empty, *arguments)
    torch.testing.assert_close(tiers, want)
