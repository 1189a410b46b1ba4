import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_opt import TTEmbeddingBag, reference
from recsys_opt.embeddings.tt_rows import block_rows_within, interface_rows, row_blocks
from recsys_opt.errors import InputError


def random_cores(p, q, ranks) -> list[torch.Tensor]:
    full = [1, *ranks, 1]
    return [torch.randn(p[k], q[k], full[k], full[k + 1], dtype=torch.float64) for k in range(len(p))]


@settings(max_examples=60)
@given(data=st.data())
def test_rows_of_any_range_are_the_definitions(data):
    d = data.draw(st.integers(2, 4))
    numbers = st.lists(st.integers(1, 5), min_size=d, max_size=d)
    p, q, ranks = data.draw(numbers), data.draw(numbers), data.draw(numbers)[1:]
    total = int(np.prod(p))
    start = data.draw(st.integers(0, total - 1))
    stop = data.draw(st.integers(start + 1, total))
    cores = random_cores(p, q, ranks)
    want = reference.tt_rows(torch.arange(start, stop), cores)
    torch.testing.assert_close(interface_rows(cores, start, stop).squeeze(2), want)
    size = data.draw(st.integers(1, total))
    blocks = list(row_blocks(cores, start, stop, size))
    assert [at for at, _ in blocks] == [start, *(at + len(rows) for at, rows in blocks[:-1])]
    assert all(len(rows) <= size for _, rows in blocks)
    torch.testing.assert_close(torch.cat([rows for _, rows in blocks]), want)


def test_prefixes_are_rows_of_the_first_cores():
    cores = random_cores([3, 4, 5], [2, 1, 3], [2, 3])
    prefixes = interface_rows(cores[:-1], 2, 11)
    assert prefixes.shape == (9, 2, 3)
    one = torch.einsum("jr,kr...s->jks", cores[0][1, :, 0], cores[1][3, :, :, :]).flatten(0, 1)
    torch.testing.assert_close(prefixes[7 - 2], one)


def test_blocks_stay_within_the_work():
    cores = random_cores([10, 10, 100], [2, 2, 4], [4, 4])
    rows = block_rows_within(cores, 3 * 300 * 16 * 8)
    assert rows == 300
    assert block_rows_within(cores, 1) == 100  # a prefix at least


def test_a_range_goes_into_what_the_caller_brings(tmp_path):
    torch.manual_seed(0)
    bag = TTEmbeddingBag(5000, 16, 4)
    whole = bag.materialize().detach()
    torch.testing.assert_close(whole, reference.tt_rows(torch.arange(5000), list(bag.cores)).detach())
    out = torch.empty(1234, 16)
    assert bag.materialize(range(17, 1251), out=out, work_bytes=1 << 14) is out
    torch.testing.assert_close(out, whole[17:1251])
    file = np.lib.format.open_memmap(tmp_path / "t.npy", "w+", np.float32, (5000, 16))
    bag.materialize(out=torch.from_numpy(file), work_bytes=1 << 14)
    file.flush()
    torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "t.npy")), whole)
    half = torch.empty(5000, 16, dtype=torch.bfloat16)
    torch.testing.assert_close(bag.materialize(out=half), whole.bfloat16())
    assert bag.materialize(range(3, 3)).shape == (0, 16)


def test_materialize_is_differentiable_unless_told_where_to_write():
    bag = TTEmbeddingBag(60, 8, 4, dtype=torch.float64)
    weights = torch.randn(20, 8, dtype=torch.float64)
    got = torch.autograd.grad((bag.materialize(range(5, 25)) * weights).sum(), list(bag.cores))
    made = reference.tt_rows(torch.arange(5, 25), list(bag.cores))
    torch.testing.assert_close(got, torch.autograd.grad((made * weights).sum(), list(bag.cores)))
    assert not bag.materialize(out=torch.empty(60, 8, dtype=torch.float64)).requires_grad
    with torch.no_grad():
        assert not bag.materialize().requires_grad


def test_refusals():
    bag = TTEmbeddingBag(60, 8, 4)
    for call, message in [
        (lambda: bag.materialize(range(0, 61)), r"rows = range\(0, 61\); .* the table's 60 rows"),
        (lambda: bag.materialize(range(0, 10, 2)), "step 1"),
        (lambda: bag.materialize(range(3), out=torch.empty(4, 8)), r"out has shape \[4, 8\]; .* \[3, 8\]"),
    ]:
        with pytest.raises(InputError, match=message):
            call()
