"""The CUDA kernel of encodings, run on the host by the shim (simt.h), against its definition."""

import pytest
import torch

from recsys_opt import reference
from tests.simt import ops

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("order", ["forward", "random"])
@pytest.mark.parametrize(("hashes", "encoding"), [(1, 0), (7, 0), (600, 0), (2, 1), (300, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_encodings(order, hashes, encoding, dtype):
    torch.manual_seed(0)
    numbers, like = torch.randint(0, 2**62, (2, hashes)), torch.empty(0, dtype=dtype)
    for prime, buckets in ((1_000_003, 1_000_000), (2**31 - 1, 2**31 - 1), (101, 7)):
        ids = torch.cat([torch.randint(0, 2**40, (5,)), torch.tensor([0, prime - 1, prime, 2**40 - 1])])
        with ops.running(order):
            got = ops.library().dhe_encode(
                ops.guarded(ids), ops.guarded(numbers), 2**40, prime, buckets, encoding, like
            )
        want = reference.dhe_encode(
            ids, numbers, num_embeddings=2**40, prime=prime, buckets=buckets, encoding=encoding, like=like
        )
        torch.testing.assert_close(got, want)


def test_no_ids():
    none = torch.empty(0, dtype=torch.int64)
    got = ops.library().dhe_encode(none, torch.ones(2, 4, dtype=torch.int64), 9, 101, 7, 0, torch.empty(0))
    assert got.shape == (0, 4)


def test_id_outside_the_table_is_noted():
    hashes, like = torch.ones(2, 4, dtype=torch.int64), torch.empty(0)
    got = ops.library().dhe_encode(torch.tensor([3, 9]), hashes, 9, 101, 7, 0, like)
    assert torch.all(got[1] == 0)
    with pytest.raises(RuntimeError, match=r"met 1 ids.*indices\[1\] = 9, outside the table's 9 rows"):
        ops.library().dhe_encode(torch.tensor([3]), hashes, 9, 101, 7, 0, like)


def test_what_is_noted_says_where_the_id_stood():
    hashes, like = torch.ones(2, 4, dtype=torch.int64), torch.empty(0)
    places = torch.tensor([40, 17])
    ops.library().dhe_encode(torch.tensor([3, 9]), hashes, 9, 101, 7, 0, like, places, 5)
    with pytest.raises(RuntimeError, match=r"indices\[17\] = 9, outside the table's 9 rows \(table 5\)"):
        ops.library().dhe_encode(torch.tensor([3]), hashes, 9, 101, 7, 0, like)
    with pytest.raises(RuntimeError, match=r"positions must be \[1\] int64, as ids"):
        ops.library().dhe_encode(torch.tensor([3]), hashes, 9, 101, 7, 0, like, places, 5)
