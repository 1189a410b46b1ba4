"""Deep hash embeddings against their plain-torch twins in float64: hashes, rows, gradients, graphs."""

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

from recsys_opt import ops, reference
from recsys_opt.ops import dhe_torch
from recsys_opt.ops.dhe_torch import backward_by_torch, forward_by_torch

pytestmark = pytest.mark.usefixtures("one_thread")
# Of a hash function's prime and buckets: exact in doubles; the largest that is; the first that is not.
PRIMES = (
    (101, 64),
    (1_000_003, 1_000_000),
    (94_906_249, 1_000_000),
    (94_906_267, 77),
    (2**31 - 1, 2**31 - 1),
)
EXTREMES = (0, 1, 2**31 - 2, 2**31 - 1, 2**40, 2**62)


@dataclass
class Call:
    """Arguments of `ops.dhe_embedding_bag`."""

    indices: Tensor
    offsets: Tensor | None
    hashes: list[Tensor] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    biases: list[Tensor] = field(default_factory=list)
    tables: list[int] = field(default_factory=list)
    factors: Tensor | None = None

    def arguments(self):
        return (self.indices, self.offsets, self.hashes, self.weights, self.biases, self.tables, self.factors)

    def leaves(self) -> list[Tensor]:
        return [*self.weights, *self.biases, *([] if self.factors is None else [self.factors])]


def add_table(
    call: Call, rows, hashes, widths, prime=1_000_003, buckets=1_000_000, encoding=0, mean=0, padding=-1
):
    """Adds a table with random weights to a call."""
    call.hashes.append(torch.randint(0, prime, (2, hashes)))
    for inputs, outputs in zip([hashes, *widths], widths):  # noqa: B905
        call.weights.append((torch.randn(inputs, outputs).double() / inputs**0.5).requires_grad_())
        call.biases.append((torch.randn(outputs).double() / 4).requires_grad_())
    call.tables += [len(widths), rows, prime, buckets, encoding, mean, padding]


@st.composite
def calls(draw) -> Call:
    torch.manual_seed(draw(st.integers(0, 2**20)))
    tables, batch = draw(st.integers(1, 3)), draw(st.integers(0, 5))
    weighted, jagged = draw(st.booleans()), draw(st.booleans())
    parts, lengths, rows = [], [], []
    for _ in range(tables):
        rows.append(draw(st.sampled_from((1, 7, 60, 10_131_227, 2**40))))
        size = torch.randint(0, 4, (batch,)) if jagged else torch.ones(batch, dtype=torch.int64)
        few = torch.randint(0, rows[-1], (3,))  # ids that come several times
        parts.append(few[torch.randint(0, 3, (int(size.sum()),))])
        lengths.append(size)
    bounds = torch.cat([torch.zeros(1, dtype=torch.int64), torch.cat(lengths).cumsum(0)])
    indices = torch.cat(parts)
    if draw(st.booleans()) and max(rows) < 2**31:
        indices = indices.int()
    call = Call(indices, bounds if jagged else None)
    for own in rows:
        prime, buckets = draw(st.sampled_from(PRIMES))
        encoding = draw(st.integers(0, 1))
        hashes = (
            draw(st.sampled_from((1, 3, 64, 130, 258)))
            if encoding == 0
            else draw(st.sampled_from((2, 66, 130)))
        )
        widths = draw(st.sampled_from(((1,), (8,), (16, 4), (5, 3), (32, 16, 8))))
        mean = 0 if weighted else draw(st.integers(0, 1))
        padding = draw(st.sampled_from((-1, 0)))
        add_table(call, own, hashes, widths, prime, buckets, encoding, mean, padding)
    if weighted:
        call.factors = torch.randn(len(indices)).double().requires_grad_()
    return call


def check(call: Call) -> None:
    got, want = ops.dhe_embedding_bag(*call.arguments()), reference.dhe_embedding_bag(*call.arguments())
    torch.testing.assert_close(got, want)
    upstream = torch.randn_like(want)
    leaves = call.leaves()
    wanted = torch.autograd.grad(want, leaves, upstream, allow_unused=True, materialize_grads=True)
    for a, b in zip(torch.autograd.grad(got, leaves, upstream), wanted, strict=True):
        torch.testing.assert_close(a, b)


@settings(max_examples=80)
@given(calls())
def test_rows_and_gradients(call):
    check(call)


@settings(max_examples=30)
@given(calls())
def test_the_form_for_other_devices_computes_the_same(call):
    with torch.no_grad():
        want = ops.dhe_embedding_bag(*call.arguments())
        got, *kept = forward_by_torch(*call.arguments(), True)
        torch.testing.assert_close(got, want)
    upstream = torch.randn_like(want)
    again = ops.dhe_embedding_bag(*call.arguments())
    wanted = torch.autograd.grad(again, call.leaves(), upstream)
    factors_grad = call.factors is not None
    with torch.no_grad():
        found = backward_by_torch(upstream, *call.arguments()[:2], *kept, *call.arguments()[2:], factors_grad)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("bad", [60, -1, 2**63 - 1, -(2**63)])
def test_the_form_for_other_devices_says_which_id_is_out_of_range(bad):
    call = Call(torch.tensor([3, 59, 3, 0, bad, 0]), None)
    add_table(call, 1000, 8, (4,))
    add_table(call, 60, 8, (4,))
    with pytest.raises(RuntimeError, match=rf"ids\[4\] = {bad} is outside the 60 rows of table 1"):
        forward_by_torch(*call.arguments(), False)


def test_the_form_for_other_devices_computes_each_distinct_id_once(monkeypatch):
    encoded = []
    encode = dhe_torch._Lookups.encode

    def noted(lookups, ids, *rest):
        encoded.append(sorted(ids.tolist()))
        return encode(lookups, ids, *rest)

    monkeypatch.setattr(dhe_torch._Lookups, "encode", noted)
    call = Call(torch.tensor([7, 3, 7, 7, 3, 9, 9, 9]), None)
    add_table(call, 1000, 8, (4,))
    add_table(call, 60, 8, (4,))
    forward_by_torch(*call.arguments(), False)
    assert encoded == [[3, 7], [3, 9]]


def test_many_rows_over_blocks_and_threads():
    """More distinct ids than a block of the kernel holds, and hashes beyond a block; any threads."""
    torch.manual_seed(0)
    call = Call(torch.cat([torch.randint(0, 10_000_000, (700,)), torch.randint(0, 50, (700,))]), None)
    add_table(call, 10_000_000, 300, (48, 16), prime=10_000_019)
    add_table(call, 50, 128, (16,))
    check(call)
    one = ops.dhe_embedding_bag(*call.arguments())
    torch.set_num_threads(2)
    two = ops.dhe_embedding_bag(*call.arguments())
    assert torch.equal(one, two)
    for a, b in zip(*(torch.autograd.grad(x.sum(), call.leaves()) for x in (one, two)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("widest", [0, 1, 2])
def test_instruction_sets_agree(widest):
    torch.manual_seed(1)
    call = Call(torch.randint(0, 1000, (100,)), None)
    add_table(call, 1000, 200, (24, 16, 6))
    before = ops.tt_limit_isa(widest)
    try:
        check(call)
    finally:
        ops.tt_limit_isa(before)


@pytest.mark.parametrize("ids", [8, 200])
@pytest.mark.parametrize(("hashes", "widths"), [(400, (32, 16)), (48, (16,)), (200, (24, 6))])
def test_products_of_rounded_operands(ids, hashes, widths):
    """They differ by some 2^-9 where there are enough ids and widths allow it, and not at all elsewhere."""
    torch.manual_seed(1)
    call = Call(torch.arange(ids), None)
    add_table(call, 1000, hashes, widths)
    call.weights, call.biases = (
        [t.detach().float().requires_grad_() for t in ts] for ts in (call.weights, call.biases)
    )
    grad = torch.randn(ids, widths[-1])

    def found():
        out = ops.dhe_embedding_bag(*call.arguments())
        return [out.detach(), *torch.autograd.grad(out, call.leaves(), grad)]

    exact = found()
    assert not ops.tt_allow_bf16(True)
    try:
        rounded = found()
    finally:
        assert ops.tt_allow_bf16(False)
    assert float((rounded[0] - exact[0]).norm() / exact[0].norm()) < 0.01
    for a, b in zip(rounded[1:], exact[1:], strict=True):  # sums that are near 0 may be on its other side
        assert float((a - b).norm() / b.norm()) < 0.15
    can = ids >= 16 and hashes % 16 == 0 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert torch.equal(rounded[0], exact[0]) != can


@pytest.mark.parametrize(("prime", "buckets"), PRIMES)
@pytest.mark.parametrize("encoding", [0, 1])
def test_encodings(prime, buckets, encoding):
    torch.manual_seed(2)
    hashes = torch.randint(0, 2**62, (2, 70))  # larger than the prime: they count modulo it
    hashes[:, 0] = torch.tensor([prime - 1, prime - 1])
    ids = torch.tensor([*EXTREMES, prime - 1, prime, prime + 1])
    options = {"num_embeddings": 2**62 + 1, "prime": prime, "buckets": buckets, "encoding": encoding}
    for dtype in (torch.float64, torch.float32):
        like = torch.empty(0, dtype=dtype)
        got = ops.dhe_encode(ids, hashes, like=like, **options)
        torch.testing.assert_close(got, reference.dhe_encode(ids, hashes, like=like, **options))
    x, a, b = int(ids[3]), int(hashes[0, 5]), int(hashes[1, 5])
    if encoding == 0:  # whole numbers of any size, in Python
        want = 2 * ((a * x + b) % prime % buckets) / (buckets - 1) - 1
        assert float(
            ops.dhe_encode(ids, hashes, like=torch.empty(0).double(), **options)[3, 5]
        ) == pytest.approx(want, abs=1e-15)


@pytest.mark.parametrize("buckets", [2, 3, 8, 257, 2**31 - 1])
def test_normal_encodings_to_the_last_places(buckets):
    """Each pair of hashes, the extreme ones too: with a = 0, hash j of every id is b_j."""
    ends = torch.arange(min(buckets, 64))
    values = torch.cat(
        [ends, buckets - 1 - ends, torch.randint(0, buckets, (200,)), torch.tensor([0, buckets // 2])]
    )
    hashes = torch.stack(
        [torch.zeros(len(values) * 2, dtype=torch.int64), torch.cat([values, values.flip(0)])]
    )
    options = {"num_embeddings": 1, "prime": 2**31 - 1, "buckets": buckets, "encoding": 1}
    got, like = [], torch.empty(0).double()
    for order in (hashes, hashes[:, torch.randperm(hashes.shape[1])]):
        u, v = ((order[1].double() + 0.5) / buckets).view(-1, 2).unbind(1)
        radius = (-2 * u.log()).sqrt()
        # In turns, not radians: what 2 pi v loses in the last place is not the kernel's to repeat.
        angle = 2 * torch.pi * torch.where(v > 0.5, v - 1, v)
        expected = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1).view(-1)
        found = ops.dhe_encode(torch.tensor([0]), order, like=like, **options)[0]
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=3e-15)
        got.append(found)
    assert torch.isfinite(torch.stack(got)).all()


def test_bad_arguments_are_refused_by_name():
    call = Call(torch.tensor([3, 60, 2]), None)
    add_table(call, 60, 8, (4,))
    with pytest.raises(RuntimeError, match=r"indices\[1\] = 60 is outside the 60 rows of table 0"):
        ops.dhe_embedding_bag(*call.arguments())
    call.indices = torch.tensor([3, -1])
    with pytest.raises(RuntimeError, match=r"indices\[1\] = -1 is outside"):
        ops.dhe_embedding_bag(*call.arguments())
    call.indices, call.offsets = torch.tensor([3, 1]), torch.tensor([0, 3])
    with pytest.raises(RuntimeError, match=r"offsets\[1\] = 3 is outside the 2 indices"):
        ops.dhe_embedding_bag(*call.arguments())
    call.offsets = None
    call.tables[2] = 2**31
    with pytest.raises(RuntimeError, match="prime = 2147483648"):
        ops.dhe_embedding_bag(*call.arguments())
    call.tables[2] = 1_000_003
    call.biases[0] = call.biases[0][:2]
    with pytest.raises(RuntimeError, match=r"biases\[0\] of table 0 must be \[4\]"):
        ops.dhe_embedding_bag(*call.arguments())
    options = {"num_embeddings": 5, "prime": 101, "buckets": 50, "like": torch.empty(0)}
    with pytest.raises(RuntimeError, match=r"ids\[0\] = 5 is outside the 5 rows of table 0"):
        ops.dhe_encode(torch.tensor([5]), torch.ones(2, 4, dtype=torch.int64), encoding=0, **options)
    with pytest.raises(RuntimeError, match="an even number"):
        ops.dhe_encode(torch.tensor([1]), torch.ones(2, 3, dtype=torch.int64), encoding=1, **options)


def small_call(offsets: bool = True) -> Call:
    torch.manual_seed(3)
    call = Call(torch.randint(0, 40, (12,)), torch.tensor([0, 2, 2, 5, 7, 11, 12]) if offsets else None)
    add_table(call, 40, 16, (8, 4))
    add_table(call, 50, 6, (4,), encoding=1, padding=3)
    return call


@pytest.mark.parametrize("offsets", [True, False])
def test_opcheck(offsets):
    call = small_call(offsets)
    if offsets:
        call.factors = torch.rand(12).double().requires_grad_()
    native = torch.ops.recsys_opt
    opcheck(
        native.dhe_encode.default, (call.indices, call.hashes[0], 40, 101, 50, 0, call.weights[0].detach())
    )
    opcheck(native.dhe_embedding_bag.default, (*call.arguments(), True))
    with torch.no_grad():
        out, *kept = native.dhe_embedding_bag(*call.arguments(), True)
        backward = native.dhe_embedding_bag_backward.default
        opcheck(backward, (out, *call.arguments()[:2], *kept, *call.arguments()[2:], offsets))


def test_compiles():
    call = small_call()
    call.factors = torch.rand(12).double().requires_grad_()
    compiled = torch.compile(ops.dhe_embedding_bag, fullgraph=True, backend="aot_eager")
    got, want = compiled(*call.arguments()), ops.dhe_embedding_bag(*call.arguments())
    torch.testing.assert_close(got, want)
    wanted = torch.autograd.grad(want.square().sum(), call.leaves())
    for a, b in zip(torch.autograd.grad(got.square().sum(), call.leaves()), wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_gradients_cannot_be_differentiated_again():
    call = small_call(offsets=False)
    (grad,) = torch.autograd.grad(
        ops.dhe_embedding_bag(*call.arguments()).square().sum(), call.weights[:1], create_graph=True
    )
    with pytest.raises(RuntimeError, match="differentiate"):
        grad.sum().backward()
