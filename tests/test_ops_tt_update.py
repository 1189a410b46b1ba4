"""Updates of tensor-train cores in the backward pass, against the plain-torch twin."""

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recsys_opt import ops, reference
from recsys_opt.ops import tt, tt_gradient, tt_update
from tests.test_ops_tt import make_cores, one_table
from tests.tt_cases import OPTIONS, Case, cases, running

ALGORITHMS = ("sgd", "adagrad", "rowwise_adagrad", "adam")


def numbers(lr=0.1, eps=1e-8, beta1=0.9, beta2=0.99, weight_decay=0.0, step=1) -> Tensor:
    return torch.tensor([lr, eps, beta1, beta2, weight_decay, step], dtype=torch.float64)


def make_states(algorithm: str, cores: list[Tensor], fill: float = 0.0) -> list[Tensor]:
    """States of unshared cores; `fill` above 0: random ones."""
    dtype = torch.float64 if cores[0].dtype == torch.float64 else torch.float32
    generator = torch.Generator().manual_seed(2)

    def state(shape):
        return torch.rand(shape, generator=generator, dtype=dtype) * fill

    if algorithm == "rowwise_adagrad":
        return [state(core.shape[:1]) for core in cores]
    return [state(core.shape) for core in cores for _ in range(ops.TT_ALGORITHMS[algorithm] // 3 + 1)][
        : 0 if algorithm == "sgd" else None
    ]


@dataclass
class Step:
    """Arguments of one backward pass with an update."""

    case: Case
    algorithm: str
    numbers: Tensor

    def __post_init__(self):
        self.cores = [core.detach().clone() for core in self.case.cores]
        self.states = make_states(self.algorithm, self.cores, 1.0)
        with torch.no_grad():
            shape = self.case.call(ops.tt_embedding_bag).shape
        self.grad = torch.linspace(-1, 1, math.prod(shape), dtype=self.cores[0].dtype).reshape(shape)

    def run(self, op) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The weights' gradient, the cores and the states after the step."""
        cores, states = [c.clone() for c in self.cores], [s.clone() for s in self.states]
        return op(*self.arguments(cores, states)), cores, states

    def arguments(self, cores, states):
        case = self.case
        weights = None if case.weights is None else case.weights.detach()
        return (
            self.grad,
            case.indices,
            case.offsets,
            cores,
            states,
            *(case.options[name] for name in OPTIONS),
            weights,
            weights is not None,
            ops.TT_ALGORITHMS[self.algorithm],
            self.numbers,
        )


NATIVE = torch.ops.recsys_opt.tt_embedding_bag_backward_update
UPDATES = st.tuples(st.sampled_from(ALGORITHMS), st.sampled_from([0.0, 0.01]), st.integers(1, 9))


@settings(max_examples=60)
@given(cases(), UPDATES)
def test_the_update_matches_the_reference(case, update):
    check_against_reference(case, *update)


@pytest.mark.slow
@settings(max_examples=200)
@given(cases(), UPDATES)
def test_the_update_matches_the_reference_on_many_cases(case, update):
    check_against_reference(case, *update)


def check_against_reference(case, algorithm, decay, step):
    case = case.mapped(Tensor.double)
    step = Step(case, algorithm, numbers(weight_decay=decay, step=step, eps=1e-3))
    step.grad = case.upstream
    with running(case):
        got = step.run(NATIVE)
    want = step.run(reference.tt_embedding_bag_backward_update)
    for mine, right in zip([got[0], *got[1], *got[2]], [want[0], *want[1], *want[2]], strict=True):
        scale = right.abs().max().item() if right.numel() else 0.0
        torch.testing.assert_close(mine, right, rtol=1e-9, atol=1e-9 * max(1.0, scale))
    for before, after, used in zip(step.cores, got[1], used_slices(case), strict=True):
        assert torch.equal(before[~used], after[~used])


def used_slices(case: Case) -> list[Tensor]:
    """Which slices of each core the batch uses."""
    used = [torch.zeros(core.shape[0], dtype=torch.bool) for core in case.cores]
    tables = case.options["cores_per_table"]
    batch, first = (len(case.offsets) - 1) // len(tables), 0
    for t, d in enumerate(tables):
        for i in case.indices[case.offsets[t * batch] : case.offsets[(t + 1) * batch]].tolist():
            if i == case.options["padding_idx"][t]:
                continue
            for c in reversed(range(first, first + d)):
                used[c][i % len(used[c])] = True
                i //= len(used[c])
        first += d
    return used


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("p", [(40, 30), (40, 9, 30), (10, 9, 8, 15)])
def test_every_used_slice_moves_and_no_other(p, algorithm):
    """The fault of FBTT's fused optimizer: its grid missed slices."""
    torch.manual_seed(0)
    q, ranks = (2,) * len(p), (16,) * (len(p) - 1)
    ids = torch.randint(0, math.prod(p), (500,))
    ids = ids[(ids // p[-1]) % 5 != 0]  # leaves slices of a core between out
    options = dict(zip(OPTIONS, ([len(p)], [math.prod(p)], [0], [-1]), strict=True))
    case = Case(ids, torch.arange(len(ids) + 1), make_cores(p, q, ranks, torch.float32), options)
    step = Step(case, algorithm, numbers())
    step.grad = torch.randn_like(step.grad)
    _, cores, states = step.run(NATIVE)
    for before, after, used in zip(step.cores, cores, used_slices(case), strict=True):
        moved = (before != after).flatten(1)
        assert torch.equal(moved.any(1), used)
        assert moved[used].float().mean() > 0.95
        assert used.any()
    per_core = len(states) // len(cores)
    for k, (before, after) in enumerate(zip(step.states, states, strict=True)):
        moved = (before != after).flatten(1) if before.dim() > 1 else (before != after)[:, None]
        assert torch.equal(moved.any(1), used_slices(case)[k // per_core])


@pytest.mark.parametrize(
    ("algorithm", "compiled"),
    [*((name, False) for name in ALGORITHMS), pytest.param("adam", True, marks=pytest.mark.slow)],
)
def test_tables_with_the_same_cores_are_updated_once_by_the_sum(algorithm, compiled):
    case = one_table(p=(6, 3, 5))
    offsets = torch.cat([case.offsets, case.offsets[1:] + 23, case.offsets[1:] + 46])
    options = {name: values * 3 for name, values in case.options.items()}
    generator = torch.Generator().manual_seed(3)
    case = Case(torch.randint(0, 60, (69,), generator=generator), offsets, case.cores, options)

    def bags(cores, states, numbers):
        update = ops.TTUpdate(ops.TT_ALGORITHMS[algorithm], states * 3, numbers)
        return ops.tt_embedding_bag(case.indices, case.offsets, cores * 3, **options, update=update)

    run = torch.compile(bags, fullgraph=True) if compiled else bags
    cores = [core.detach().clone() for core in case.cores]
    states, own = make_states(algorithm, cores, 1.0), numbers(0.01, step=0)
    expected = [*(core.clone() for core in cores)], [*(state.clone() for state in states)]
    out = run(cores, states, own)
    out.square().sum().backward()
    reference.tt_embedding_bag_backward_update(
        2 * out.detach(),
        case.indices,
        case.offsets,
        expected[0] * 3,
        expected[1] * 3,
        *(options[name] for name in OPTIONS),
        None,
        False,
        ops.TT_ALGORITHMS[algorithm],
        numbers(0.01, step=1),
    )
    torch.testing.assert_close((cores, states), expected)


def test_lookups_of_one_backward_pass_update_one_after_the_other():
    case = one_table()
    cores = [core.detach().clone() for core in case.cores]
    update = ops.TTUpdate(0, [], numbers(0.001))
    out = [case_call(case, cores, update) for _ in range(2)]
    (out[0].sum() + 3 * out[1].sum()).backward()
    wanted = [core.detach().clone() for core in case.cores]
    for factor in (3, 1):  # autograd runs the later lookup first
        reference.tt_embedding_bag_backward_update(
            torch.full_like(out[0], factor),
            case.indices,
            case.offsets,
            wanted,
            [],
            *(case.options[name] for name in OPTIONS),
            None,
            False,
            0,
            numbers(0.001),
        )
    torch.testing.assert_close(cores, wanted)


def case_call(case, cores, update):
    return ops.tt_embedding_bag(
        case.indices,
        case.offsets,
        cores,
        **case.options,
        per_sample_weights=case.weights,
        update=update,
    )


def test_a_graph_that_is_run_twice_updates_twice():
    case = one_table(weighted=True)
    cores = [core.detach().clone() for core in case.cores]
    wanted = [core.clone() for core in cores]
    update = ops.TTUpdate(0, [], numbers(0.001))
    out = case_call(case, cores, update)
    assert out.grad_fn.kept is not None
    for retain in (True, False):
        (got,) = torch.autograd.grad(out.sum(), case.weights, retain_graph=retain)
        assert out.grad_fn.kept is None  # its memory is free
        want = reference.tt_embedding_bag_backward_update(
            torch.ones_like(out),
            case.indices,
            case.offsets,
            wanted,
            [],
            *(case.options[name] for name in OPTIONS),
            case.weights.detach(),
            True,
            0,
            numbers(0.001),
        )
        torch.testing.assert_close([got, *cores], [want, *wanted])
    before = [core.clone() for core in cores]
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(out.sum(), case.weights)
    for changed in (case.indices, case.offsets, case.weights.detach()):
        out = case_call(case, cores, update)
        changed.add_(0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(before, cores, strict=True))


def test_gradients_beside_an_update_cannot_be_differentiated_again():
    case = one_table(weighted=True)
    cores = [core.detach().clone() for core in case.cores]
    out = case_call(case, cores, ops.TTUpdate(0, [], numbers(0.001)))
    (grad,) = torch.autograd.grad(out.square().sum(), case.weights, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        grad.sum().backward()


@pytest.mark.parametrize("form", ["bounds", "starts", "two dimensions", "one id per bag"])
@pytest.mark.parametrize("weighted", [False, True])
def test_devices_that_keep_nothing_compute_the_same(form, weighted, monkeypatch):
    """What runs on CUDA: the public ops, in the forward pass and in the backward pass."""
    case = one_table(weighted=weighted)
    cores = [core.detach() for core in case.cores]
    ids, offsets, weights = case.indices, case.offsets, case.weights
    form_of = {
        "bounds": (ids, offsets, weights, True),
        "starts": (ids, offsets[:-1], weights, False),
        "two dimensions": (
            ids[:20].view(5, 4),
            None,
            None if weights is None else weights[:20].view(5, 4),
            True,
        ),
        "one id per bag": (ids, None, weights, True),
    }
    ids, offsets, weights, last = form_of[form]
    weights = None if weights is None else weights.detach()

    def results(update):
        mine = [core.clone().requires_grad_(update is None) for core in cores]
        factors = None if weights is None else weights.clone().requires_grad_()
        out = ops.tt_embedding_bag(
            ids,
            offsets,
            mine,
            **case.options,
            per_sample_weights=factors,
            include_last_offset=last,
            update=update,
        )
        out.square().sum().backward()
        grads = [core.grad for core in mine] if update is None else mine
        return [out.detach(), *grads, *([] if factors is None else [factors.grad])]

    updates = [lambda: None, lambda: ops.TTUpdate(0, [], numbers(0.001))]
    kept = [results(update()) for update in updates]
    for module in (tt, tt_gradient, tt_update):
        monkeypatch.setattr(module, "LOOK_UP", tt_gradient.look_up_elsewhere)
    for got, update in zip(kept, updates, strict=True):
        torch.testing.assert_close(results(update()), got)


def test_without_gradients_nothing_is_updated():
    case = one_table()
    cores = [core.detach().clone() for core in case.cores]
    with torch.no_grad():
        out = case_call(case, cores, ops.TTUpdate(0, [], numbers()))
    assert not out.requires_grad


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_number_of_threads_does_not_matter(algorithm):
    torch.manual_seed(0)
    options = dict(zip(OPTIONS, ([3], [10800], [0], [-1]), strict=True))
    cores = make_cores((40, 9, 30), (2, 2, 4), (32, 32), torch.float32)
    case = Case(torch.randint(0, 10800, (8000,)), torch.arange(8001), cores, options)
    step = Step(case, algorithm, numbers())
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(step.run(NATIVE))
    finally:
        torch.set_num_threads(threads)
    for _, cores, states in results[1:]:
        pairs = zip([*cores, *states], [*results[0][1], *results[0][2]], strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_gradients_that_are_not_finite_reach_their_slices_alone(algorithm):
    case = one_table()
    case.indices = torch.tensor([0, 59])
    case.offsets = torch.tensor([0, 1, 2])
    step = Step(case, algorithm, numbers())
    step.grad[0] = float("nan")
    _, cores, _ = step.run(NATIVE)
    for core in cores:
        assert core[0].isnan().all()
        assert core[1:].isfinite().all()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_empty_batches_change_nothing(algorithm):
    case = one_table()
    for offsets in (torch.zeros(1, dtype=torch.long), torch.zeros(5, dtype=torch.long)):
        case.indices, case.offsets = torch.empty(0, dtype=torch.long), offsets
        step = Step(case, algorithm, numbers(weight_decay=0.1))
        _, cores, states = step.run(NATIVE)
        assert all(torch.equal(a, b) for a, b in zip(cores, step.cores, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(states, step.states, strict=True))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("weighted", [False, True])
def test_opcheck(algorithm, weighted):
    case = one_table(weighted=weighted)
    step = Step(case, algorithm, numbers())
    torch.library.opcheck(NATIVE.default, step.arguments(step.cores, step.states))


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["sgd", "adam"])
def test_compile(algorithm):
    case = one_table(weighted=True)

    def model(cores, states, own, weights, scale):
        update = ops.TTUpdate(ops.TT_ALGORITHMS[algorithm], states, own)
        out = ops.tt_embedding_bag(
            case.indices, case.offsets, cores, **case.options, per_sample_weights=weights, update=update
        )
        return (out * scale).square().sum()

    results = []
    for run in (model, torch.compile(model, fullgraph=True)):
        cores = [core.detach().clone() for core in case.cores]
        states, own = make_states(algorithm, cores, 1.0), numbers(1e-4, step=0)
        weights = case.weights.detach().clone().requires_grad_()
        scale = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
        for _ in range(3):
            loss = run(cores, states, own, weights, scale)
            loss.backward()
        results.append((loss.detach(), cores, states, own, weights.grad, scale.grad))
    torch.testing.assert_close(*results)


def test_bad_arguments_are_named():
    def refused(message, **changes):
        step = Step(one_table(), "adagrad", numbers())
        arguments = dict(zip(NAMES, step.arguments(step.cores, step.states), strict=True))
        arguments.update({name: change(arguments[name]) for name, change in changes.items()})
        with pytest.raises(RuntimeError, match=message):
            NATIVE(**arguments)

    refused(r"3 cores need 3 states, got 2", states=lambda s: s[:2])
    refused(r"3 cores need 6 states, got 3", algorithm=lambda a: 3)
    refused(r"state 0 of core 1 must be 54 contiguous", states=lambda s: [s[0], s[0], s[2]])
    refused("float64", states=lambda s: [x.float() for x in s])
    refused("algorithm 4 is not", algorithm=lambda a: 4)
    refused("core 1 must be contiguous", cores=lambda c: [c[0], c[1].transpose(2, 3).contiguous().mT, c[2]])
    refused("hyperparameters must be 6 float64", hyperparameters=lambda h: h.float())
    refused("hyperparameters must be 6 float64", hyperparameters=lambda h: h[:5])
    refused("grad must be", grad=lambda g: g[:1])


NAMES = (
    "grad",
    "indices",
    "offsets",
    "cores",
    "states",
    *OPTIONS,
    "per_sample_weights",
    "weights_grad",
    "algorithm",
    "hyperparameters",
)


def test_half_shared_cores_are_refused():
    case = one_table()
    offsets = torch.cat([case.offsets, case.offsets[1:] + 23])
    options = {name: values * 2 for name, values in case.options.items()}
    other = [core.detach().clone() for core in case.cores]
    cores = [core.detach() for core in case.cores]
    mixed = Case(case.indices.repeat(2), offsets, [*cores, cores[0], *other[1:]], options)
    step = Step(mixed, "sgd", numbers())
    step.cores = mixed.cores
    with pytest.raises(RuntimeError, match="two tables share all their cores or none"):
        NATIVE(*step.arguments(mixed.cores, []))
    whole = Case(case.indices.repeat(2), offsets, cores * 2, options)
    step = Step(whole, "adagrad", numbers())
    with pytest.raises(RuntimeError, match="tables 0 and 1 share their cores, but not their states"):
        NATIVE(*step.arguments(cores * 2, make_states("adagrad", cores * 2)))
