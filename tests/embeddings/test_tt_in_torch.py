"""TTEmbeddingBag as a citizen of torch: copies, devices, fake tensors, functional calls, other processes."""

import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from recsys_opt import FusedUpdate, TTEmbeddingBag

IDS, OFFSETS = torch.tensor([1, 59, 0, 7, 7]), torch.tensor([0, 2, 2])


def make_bag(**options) -> TTEmbeddingBag:
    torch.manual_seed(0)
    bag = TTEmbeddingBag(60, 8, [3, 5], **{"dtype": torch.float64, **options})
    bag.reset_parameters(1.0)
    return bag


def through_pickle(bag):
    return pickle.loads(pickle.dumps(bag))


def through_save(bag):
    buffer = io.BytesIO()
    torch.save(bag, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, through_pickle, through_save])
def test_copies_compute_the_same(duplicate):
    bag = make_bag(mode="mean", padding_idx=-1, include_last_offset=True)
    offsets = torch.tensor([0, 2, 2, 5])
    other = duplicate(bag)
    assert torch.equal(other(IDS, offsets), bag(IDS, offsets))
    assert repr(other) == repr(bag)
    other(IDS, offsets).sum().backward()
    assert all(core.grad is not None for core in other.cores)


def test_a_deep_copy_shares_nothing():
    bag = make_bag()
    other = copy.deepcopy(bag)
    with torch.no_grad():
        other.cores[0].zero_()
    assert bag(IDS, OFFSETS).any()
    assert not other(IDS, OFFSETS).any()


def test_the_state_holds_the_cores_alone():
    bag, other = make_bag(), TTEmbeddingBag(60, 8, [3, 5], dtype=torch.float64)
    assert list(bag.state_dict()) == ["cores.0", "cores.1", "cores.2"]
    buffer = io.BytesIO()
    torch.save(bag.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer))
    assert torch.equal(other(IDS, OFFSETS), bag(IDS, OFFSETS))
    meta = TTEmbeddingBag(60, 8, [3, 5], device="meta")
    meta.load_state_dict(bag.state_dict(), assign=True)
    assert torch.equal(meta(IDS, OFFSETS), bag(IDS, OFFSETS))


def test_types_and_devices():
    bag = make_bag()
    want = bag(IDS, OFFSETS)
    single = bag.to(torch.float32)
    assert single is bag
    assert bag(IDS, OFFSETS).dtype == torch.float32
    torch.testing.assert_close(bag(IDS, OFFSETS), want.float())
    assert bag.double()(IDS, OFFSETS).dtype == torch.float64
    meta = copy.deepcopy(bag).to("meta")
    out = meta(IDS.to("meta"), OFFSETS.to("meta"))
    assert out.is_meta
    assert out.shape == (3, 8)
    meta.to_empty(device="cpu")
    for other in (meta, bag):
        torch.manual_seed(0)
        other.reset_parameters()
    assert torch.equal(meta(IDS, OFFSETS), bag(IDS, OFFSETS))


def test_fake_tensors():
    with FakeTensorMode() as mode:
        bag = TTEmbeddingBag(10_131_227, 16, 32)
        out = bag(torch.zeros(6, dtype=torch.int64), torch.tensor([0, 2]), torch.ones(6))
        assert out.shape == (2, 16)
        out.sum().backward()
        assert bag.cores[1].grad.shape == bag.cores[1].shape
        assert bag(torch.zeros(6, 2, dtype=torch.int64)).shape == (6, 16)
        bag.fuse_update(FusedUpdate("adagrad", 0.1))
        bag(torch.zeros(6, dtype=torch.int64), torch.tensor([0, 2])).sum().backward()
    real = make_bag()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert real(mode.from_tensor(IDS), mode.from_tensor(OFFSETS)).shape == (3, 8)


def test_functional_call():
    bag = make_bag()
    doubled = {name: (2 * p).detach().requires_grad_() for name, p in bag.named_parameters()}
    out = torch.func.functional_call(bag, doubled, (IDS, OFFSETS))
    torch.testing.assert_close(out, 8 * bag(IDS, OFFSETS))
    grads = torch.autograd.grad(out.sum(), list(doubled.values()))
    own = torch.autograd.grad(bag(IDS, OFFSETS).sum(), list(bag.cores))
    torch.testing.assert_close(grads, tuple(4 * g for g in own))


def test_hooks():
    bag, seen = make_bag(), []
    bag.register_forward_pre_hook(lambda module, args: seen.append(("before", args[0])))
    bag.register_forward_hook(lambda module, args, out: 2 * out)
    bag.register_full_backward_hook(lambda module, grad_in, grad_out: seen.append(("backward", grad_out[0])))
    bag.cores[0].register_post_accumulate_grad_hook(lambda core: seen.append(("grad", core.grad)))
    plain = make_bag()
    out = bag(IDS, OFFSETS)
    torch.testing.assert_close(out, 2 * plain(IDS, OFFSETS))
    out.sum().backward()
    assert sorted(name for name, _ in seen) == ["backward", "before", "grad"]


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients(context):
    bag = make_bag()
    with context():
        out = bag(IDS, OFFSETS, torch.ones(5, dtype=torch.float64))
        assert not out.requires_grad
    torch.testing.assert_close(bag(IDS, OFFSETS).detach(), out.clone())


def test_gradients_of_some_leaves_alone():
    bag = make_bag()
    weights = torch.rand(5, dtype=torch.float64, requires_grad=True)
    bag.requires_grad_(False)
    (alone,) = torch.autograd.grad(bag(IDS, OFFSETS, weights).sum(), weights)
    bag.cores[1].requires_grad_(True)
    out = bag(IDS, OFFSETS, weights)
    core, both = torch.autograd.grad(out.sum(), (bag.cores[1], weights))
    assert torch.equal(both, alone)
    out = bag(IDS, OFFSETS, weights.detach())
    assert torch.equal(torch.autograd.grad(out.sum(), bag.cores[1])[0], core)


def test_gradients_accumulate_over_passes():
    bag = make_bag()
    bag(IDS, OFFSETS).sum().backward()
    once = [core.grad.clone() for core in bag.cores]
    bag(IDS, OFFSETS).sum().backward()
    torch.testing.assert_close([core.grad for core in bag.cores], [2 * g for g in once])


def test_gradients_cannot_be_differentiated_again():
    bag = make_bag()
    (grad,) = torch.autograd.grad(bag(IDS, OFFSETS).square().sum(), bag.cores[0], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        grad.sum().backward()


def test_activation_checkpointing_gives_the_same_gradients():
    bag = make_bag()
    want = torch.autograd.grad(bag(IDS, OFFSETS).square().sum(), list(bag.cores))
    out = torch.utils.checkpoint.checkpoint(bag, IDS, OFFSETS, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(out.square().sum(), list(bag.cores)), want)


def test_parameters_can_be_shared_and_parametrised():
    bag = make_bag()
    twin = TTEmbeddingBag(60, 8, [3, 5], dtype=torch.float64)
    twin.cores = bag.cores
    assert torch.equal(twin(IDS, OFFSETS), bag(IDS, OFFSETS))
    assert len(list(nn.ModuleList([bag, twin]).parameters())) == 3


def test_the_text_names_what_the_bag_is():
    text = repr(make_bag(mode="mean", padding_idx=-1, include_last_offset=True))
    for part in ("60, 8", "tt_ranks=[3, 5]", "mode='mean'", "padding_idx=59", "include_last_offset=True"):
        assert part in text


def _train_a_step(bag: TTEmbeddingBag) -> None:
    bag(IDS, OFFSETS).sum().backward()
    with torch.no_grad():
        for core in bag.cores:
            core -= core.grad


@pytest.mark.slow
def test_another_process_trains_shared_cores():
    bag, alone = make_bag().share_memory(), make_bag()
    assert all(core.is_shared() for core in bag.cores)
    process = torch.multiprocessing.get_context("spawn").Process(target=_train_a_step, args=(bag,))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    _train_a_step(alone)
    torch.testing.assert_close(list(bag.cores), list(alone.cores))


def test_hooks_on_saved_tensors_get_nothing_but_tensors():
    """Such hooks may copy what they are given, or write it to disk."""
    bag, copies = make_bag(), []

    def pack(tensor):
        copies.append(tensor.detach().clone())
        return len(copies) - 1

    want = torch.autograd.grad(bag(IDS, OFFSETS).square().sum(), list(bag.cores))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda place: copies[place]):
        out = bag(IDS, OFFSETS)
    assert {copy.dtype for copy in copies} == {torch.int64, torch.float64}
    torch.testing.assert_close(torch.autograd.grad(out.square().sum(), list(bag.cores)), want)


def test_a_graph_can_be_run_twice():
    bag = make_bag()
    out = bag(IDS, OFFSETS).square().sum()
    first = torch.autograd.grad(out, list(bag.cores), retain_graph=True)
    assert all(
        torch.equal(a, b) for a, b in zip(first, torch.autograd.grad(out, list(bag.cores)), strict=True)
    )
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(out, list(bag.cores))
    out = bag(IDS, OFFSETS)
    with torch.no_grad():
        bag.cores[0].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def _change_type(bag):
    return bag.float()


def _load(bag):
    bag.load_state_dict({name: 2 * core for name, core in bag.state_dict().items()})
    return bag


def _load_by_assignment(bag):
    bag.load_state_dict({name: 2 * core for name, core in bag.state_dict().items()}, assign=True)
    return bag


def _replace_the_cores(bag):
    bag.cores = nn.ParameterList(nn.Parameter(core.detach() + 1) for core in bag.cores)
    return bag


def _replace_a_core(bag):
    bag.cores[1] = nn.Parameter(bag.cores[1].detach() + 1)
    return bag


def _replace_the_data(bag):
    bag.cores[2].data = bag.cores[2].data + 1
    return bag


def _swap_a_smaller_core(bag):
    bag.cores[1].data = bag.cores[1].data[:1].clone()
    return bag


def _average(bag):
    bag.mode = "mean"
    return bag


def _pad(bag):
    bag.padding_idx = 7
    return bag


def _fuse_and_back(bag):
    bag.fuse_update(FusedUpdate("adam", 0.1))
    bag(IDS, OFFSETS).sum().backward()
    bag.fuse_update(None)
    return bag


def _fuse_and_move(bag):
    bag.fuse_update(FusedUpdate("adagrad", 0.1))
    return bag.float()


def _fuse_and_copy(bag):
    bag.fuse_update(FusedUpdate("rowwise_adagrad", 0.1))
    return copy.deepcopy(bag)


CHANGES = [
    _change_type,
    _load,
    _load_by_assignment,
    _replace_the_cores,
    _replace_a_core,
    _replace_the_data,
    _average,
    _pad,
    _fuse_and_back,
    _fuse_and_move,
    _fuse_and_copy,
    copy.deepcopy,
    through_pickle,
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_lookup_takes_the_bag_as_it_is_now(change):
    bag = make_bag()
    bag(IDS, OFFSETS).sum().backward()
    bag = change(bag)
    for _ in range(2):  # an update in the first backward pass is in the second lookup
        table = bag.materialize().detach()
        out = bag(IDS, OFFSETS)
        want = torch.nn.functional.embedding_bag(
            IDS, table, OFFSETS, mode=bag.mode, padding_idx=bag.padding_idx
        )
        torch.testing.assert_close(out, want)
        out.sum().backward()
        assert torch.equal(bag.materialize(), table) == (bag.update is None)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("change", [_change_type, _swap_a_smaller_core])
def test_tensors_that_have_other_memory_than_in_the_forward_pass_are_refused(change, fused):
    bag = make_bag()
    bag.fuse_update(FusedUpdate("sgd", 0.1) if fused else None)
    out = bag(IDS, OFFSETS)
    change(bag)
    with pytest.raises(RuntimeError, match="another shape, type or device than in the forward pass"):
        out.sum().backward()
    bag = make_bag()
    bag.fuse_update(FusedUpdate("sgd", 0.1) if fused else None)
    weights = torch.ones(5, dtype=torch.float64)
    out = bag(IDS, OFFSETS, weights)
    weights.data = torch.ones(2, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="another shape, type or device than in the forward pass"):
        out.sum().backward()


def test_torch_func_is_refused():
    bag = make_bag()
    weights = torch.ones(5, dtype=torch.float64)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="setup_context"):
            torch.func.grad(lambda w: bag(IDS, OFFSETS, w).sum())(weights)
        bag.fuse_update(FusedUpdate("sgd", 0.1))


def test_threads_look_up_and_train_side_by_side():
    bag = make_bag()
    batches = [torch.randint(0, 60, (40,), generator=torch.Generator().manual_seed(k)) for k in range(24)]
    offsets = torch.arange(0, 40, 4)

    def step(ids):
        out = bag(ids, offsets)
        return [out.detach(), *torch.autograd.grad(out.square().sum(), list(bag.cores))]

    want = [step(ids) for ids in batches]
    with ThreadPoolExecutor(4) as pool:
        for got, right in zip(pool.map(step, batches), want, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(got, right, strict=True))
