"""The same calls on nn.EmbeddingBag and on TTEmbeddingBag: values, gradients, and the kind of error."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from recsys_opt import TTEmbeddingBag
from recsys_opt.errors import InputError

ROWS, DIM = 60, 8
IDS = torch.tensor([1, 59, 0, 7, 7, 3, 59])


def pair(**options) -> tuple[nn.EmbeddingBag, TTEmbeddingBag]:
    """The same table as rows and as cores."""
    torch.manual_seed(0)
    options = {"mode": "sum", "dtype": torch.float64, **options}
    ours = TTEmbeddingBag(ROWS, DIM, [3, 5], **options)
    ours.reset_parameters(1.0)
    theirs = nn.EmbeddingBag(ROWS, DIM, **options)
    with torch.no_grad():
        theirs.weight.copy_(ours.materialize())
    return theirs, ours


@dataclass
class Call:
    input: Tensor
    offsets: Tensor | None = None
    weights: Tensor | None = None

    def on(self, bag: nn.Module) -> Tensor:
        return bag(self.input, self.offsets, self.weights)


def long(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


CALLS = {
    "one id per bag": Call(IDS, torch.arange(7)),
    "several ids per bag": Call(IDS, long(0, 2, 5)),
    "one bag": Call(IDS, long(0)),
    "empty bags at the start, between and at the end": Call(IDS, long(0, 0, 3, 3, 3, 7)),
    "only empty bags": Call(IDS[:0], long(0, 0, 0)),
    "no bag": Call(IDS[:0], long()),
    "one id": Call(IDS[:1], long(0)),
    "two dimensions": Call(IDS[:6].view(2, 3)),
    "two dimensions, one column": Call(IDS[:, None]),
    "two dimensions, no row": Call(IDS[:0].view(0, 3)),
    "two dimensions, transposed": Call(IDS[:6].view(2, 3).T),
    "int32": Call(IDS.int(), long(0, 2, 5).int()),
    "int32 in two dimensions": Call(IDS[:6].view(2, 3).int()),
    "int32 ids, int64 offsets": Call(IDS.int(), long(0, 2, 5)),
    "int64 ids, int32 offsets": Call(IDS, long(0, 2, 5).int()),
    "every second id": Call(IDS[::2], long(0, 1, 1)),
    "every second offset": Call(IDS, long(0, 9, 2, 9, 5, 9)[::2]),
}
WEIGHTED = {
    name: Call(
        call.input, call.offsets, torch.linspace(-1, 2, call.input.numel()).double().view_as(call.input)
    )
    for name, call in CALLS.items()
}


def compare(call: Call, **options) -> None:
    theirs, ours = pair(**options)
    weights = [None if call.weights is None else call.weights.clone().requires_grad_() for _ in range(2)]
    want = Call(call.input, call.offsets, weights[0]).on(theirs)
    got = Call(call.input, call.offsets, weights[1]).on(ours)
    torch.testing.assert_close(got, want)
    upstream = torch.linspace(-1, 3, want.numel(), dtype=want.dtype).view_as(want)
    got.backward(upstream)
    want.backward(upstream)
    if weights[0] is not None:
        torch.testing.assert_close(weights[1].grad, weights[0].grad)
    # The chain rule from the rows' gradient to the cores'.
    cores = torch.autograd.grad(ours.materialize(), list(ours.cores), theirs.weight.grad)
    torch.testing.assert_close([core.grad for core in ours.cores], list(cores))


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("padding_idx", [None, 7, -1])
@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_equal_values_and_gradients(name, mode, padding_idx):
    compare(CALLS[name], mode=mode, padding_idx=padding_idx)


@pytest.mark.parametrize("name", WEIGHTED)
@pytest.mark.parametrize("padding_idx", [None, 7])
def test_equal_values_and_gradients_with_weights(name, padding_idx):
    compare(WEIGHTED[name], padding_idx=padding_idx)


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("offsets", [(0, 7), (0, 2, 5, 7), (0, 0, 3, 7, 7)])
def test_equal_with_the_last_offset(offsets, mode):
    compare(Call(IDS, long(*offsets)), mode=mode, include_last_offset=True)


def test_ids_after_the_last_offset_are_of_no_bag():
    """As nn.EmbeddingBag's documentation says; its own results vary with mode and padding."""
    bag = pair(include_last_offset=True)[1]
    assert torch.equal(bag(IDS, long(0, 2, 5)), bag(IDS[:5], long(0, 2, 5)))
    assert bag(IDS, long(0)).shape == (0, DIM)


def test_bags_of_a_2d_input_without_columns_are_empty():
    """nn.EmbeddingBag fails: "step must be nonzero"."""
    for mode in ("sum", "mean"):
        assert torch.equal(pair(mode=mode)[1](long().view(3, 0)), torch.zeros(3, DIM, dtype=torch.float64))


SUM, MEAN, LAST = {"mode": "sum"}, {"mode": "mean"}, {"include_last_offset": True}
# What nn.EmbeddingBag refuses: the call, the bag, and a part of what we say.
REFUSED: dict[str, tuple[Call, dict[str, object], str]] = {
    "1-D without offsets": (Call(IDS), SUM, "a 1-D input needs offsets"),
    "2-D with offsets": (Call(IDS[None], long(0)), SUM, "input is 2-D, [1, 7]"),
    "3-D": (Call(IDS[None, None]), SUM, "shape [1, 1, 7]"),
    "0-D": (Call(IDS[0], long(0)), SUM, "shape []"),
    "2-D offsets": (Call(IDS, long(0)[None]), SUM, "offsets must be 1-D"),
    "float ids": (Call(IDS.float(), long(0)), SUM, "input must be int32 or int64, but is torch.float32"),
    "float offsets": (Call(IDS, long(0).float()), SUM, "offsets must be int32 or int64"),
    "a first offset that is not 0": (Call(IDS, long(1, 2)), SUM, "offsets[0] = 1; the first bag"),
    "an offset behind the ids": (Call(IDS, long(0, 8)), SUM, "offsets[1] = 8 is outside the 7 indices"),
    "no last offset": (Call(IDS, long()), LAST, "with include_last_offset it has at least the end"),
    "a last offset behind the ids": (Call(IDS, long(0, 8)), LAST, "offsets[1] = 8 is outside"),
    "an id too large": (Call(long(1, 60), long(0)), SUM, "indices[1] = 60 is outside the table's 60 rows"),
    "a negative id": (Call(long(-1, 6), long(0)), MEAN, "indices[0] = -1 is outside the table's 60 rows"),
    "too few weights": (Call(IDS, long(0), torch.ones(2)), SUM, "per_sample_weights has shape [2]"),
    "flat weights of a 2-D input": (Call(IDS[None], None, torch.ones(7)), SUM, "input [1, 7]"),
    "weights of a mean": (Call(IDS, long(0), torch.ones(7)), MEAN, "needs sum pooling"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_same_kind_of_error(name):
    call, options, message = REFUSED[name]
    theirs, ours = pair(**options)
    with pytest.raises((ValueError, RuntimeError)) as their_error:
        call.on(theirs)
    with pytest.raises((ValueError, RuntimeError)) as our_error:
        call.on(ours)
    kind = ValueError if isinstance(their_error.value, ValueError) else RuntimeError
    assert isinstance(our_error.value, kind)
    assert message in str(our_error.value)


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ((0, 3, 2), r"offsets\[2\] = 2 is less than offsets\[1\] = 3"),
        ((0, -2), r"offsets\[1\] = -2 is outside"),
        ((), "the first bag must start at 0"),
    ],
)
def test_offsets_with_which_nn_embedding_bag_reads_or_writes_other_memory_are_refused(offsets, message):
    with pytest.raises(RuntimeError, match=message):
        pair()[1](IDS, long(*offsets))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "max"}, "use 'sum' or 'mean', or look up one id per bag and take amax"),
        ({"mode": "median"}, "mode = 'median'; it must be 'sum' or 'mean'"),
        ({"max_norm": 1.0}, "max_norm = 1.0 needs a table of stored rows: .*weight_decay"),
        ({"scale_grad_by_freq": True}, "scale_grad_by_freq = True .*per_sample_weights"),
        ({"sparse": True}, "sparse = True .*leave sparse=True out"),
        ({"padding_idx": 60}, "padding_idx = 60 is outside the table's 60 rows"),
        ({"padding_idx": -61}, "padding_idx = -61"),
    ],
)
def test_options_that_a_tensor_train_cannot_have(options, message):
    with pytest.raises(InputError, match=message):
        TTEmbeddingBag(ROWS, DIM, 4, **options)
    TTEmbeddingBag(ROWS, DIM, 4, max_norm=None, scale_grad_by_freq=False, sparse=False)


def test_a_negative_padding_idx_counts_from_the_end():
    theirs, ours = pair(padding_idx=-3)
    assert ours.padding_idx == theirs.padding_idx == 57


def test_weights_of_another_type_are_converted():
    bag = TTEmbeddingBag(ROWS, DIM, 4)
    weights = torch.rand(7, dtype=torch.float64, requires_grad=True)
    out = bag(IDS, long(0, 3), weights)
    assert out.dtype == torch.float32
    out.sum().backward()
    assert weights.grad.dtype == torch.float64


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            lambda: nn.EmbeddingBag(ROWS, DIM).state_dict(),
            r"weight is a table of rows, \[60, 8\]; .*from_pretrained",
        ),
        (
            lambda: TTEmbeddingBag(ROWS, DIM, [3, 4]).state_dict(),
            r"the state has .*tt_ranks=\[3, 4\]; this table has .*tt_ranks=\[3, 5\]\. Build the table with",
        ),
        (
            lambda: TTEmbeddingBag(ROWS, DIM, [3, 5], tt_p_shapes=[3, 4, 5]).state_dict(),
            r"the state has tt_p_shapes=\[3, 4, 5\], .*; this table has tt_p_shapes=",
        ),
        (lambda: TTEmbeddingBag(ROWS, DIM, 3, tt_p_shapes=[8, 8]).state_dict(), r"tt_p_shapes=\[8, 8\]"),
        (lambda: {"cores.0": torch.zeros(3)}, r"the state has cores of shapes \[\(3,\)\]"),
        (lambda: {}, r"Missing key.*cores\.0"),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_the_state_of_another_table_is_refused(state, message, strict):
    holder = nn.ModuleDict({"table": TTEmbeddingBag(ROWS, DIM, [3, 5])})
    wrong = {f"table.{name}": value for name, value in state().items()}
    if not wrong and not strict:
        assert len(holder.load_state_dict(wrong, strict=False).missing_keys) == 3
        return
    with pytest.raises(RuntimeError, match=message):
        holder.load_state_dict(wrong, strict=strict)
