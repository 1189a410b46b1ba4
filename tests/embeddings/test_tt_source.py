import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from recsys_opt.embeddings.tt_source import open_table
from recsys_opt.errors import InputError

TABLE = torch.arange(100 * 6, dtype=torch.float32).reshape(100, 6)


def read(source, rows: int) -> torch.Tensor:
    blocks = []
    for start, block in source.blocks(rows):
        assert start == sum(len(b) for b in blocks)
        assert len(block) == min(rows, source.num_embeddings - start)
        blocks.append(block.clone())  # a block may be used again for the next
    return torch.cat(blocks)


class Blocks:
    """Can be read again and again."""

    def __init__(self, sizes):
        self.sizes = sizes

    def __iter__(self):
        return iter(TABLE.split(self.sizes))


@pytest.fixture
def kinds(tmp_path):
    np.save(tmp_path / "t.npy", TABLE.numpy())
    save_file({"one": TABLE}, str(tmp_path / "one.safetensors"))
    save_file(
        {"a": TABLE[:3].clone(), "b.weight": TABLE, "v": TABLE[0].clone()}, str(tmp_path / "two.safetensors")
    )
    return {
        "tensor": TABLE,
        "strided": TABLE.T.contiguous().T,
        "parameter": torch.nn.Parameter(TABLE.clone()),
        "array": TABLE.numpy(),
        "memory map": np.load(tmp_path / "t.npy", mmap_mode="r"),
        "npy": tmp_path / "t.npy",
        "npy by name": str(tmp_path / "t.npy"),
        "safetensors": tmp_path / "one.safetensors",
        "one of several": f"{tmp_path}/two.safetensors#b.weight",
        "list": list(TABLE.split(7)),
        "uneven arrays": [b.numpy() for b in TABLE.split([1, 50, 9, 40])],
        "iterable": Blocks([30, 0, 70]),
    }


@pytest.mark.parametrize("rows", [1, 7, 32, 100, 1000])
def test_every_kind_gives_the_same_rows(kinds, rows):
    for name, weight in kinds.items():
        source = open_table(weight, 100)
        assert (source.num_embeddings, source.embedding_dim) == (100, 6), name
        assert source.repeatable
        for _ in range(2):
            assert torch.equal(read(source, rows), TABLE), name
        assert torch.equal(source.whole(), TABLE)


def test_an_iterator_is_read_once():
    source = open_table(iter(TABLE.split(7)), 100)
    assert not source.repeatable
    assert torch.equal(read(source, 9), TABLE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types(tmp_path, dtype):
    table = TABLE.to(dtype)
    save_file({"t": table}, str(tmp_path / "t.safetensors"))
    source = open_table(tmp_path / "t.safetensors")
    assert source.dtype == dtype
    assert torch.equal(read(source, 13), table)
    if dtype != torch.bfloat16:
        np.save(tmp_path / "t.npy", table.numpy())
        assert torch.equal(read(open_table(tmp_path / "t.npy"), 13), table)


def test_refusals(tmp_path):
    save_file({"a": TABLE, "b": TABLE[:3].clone()}, str(tmp_path / "two.safetensors"))
    save_file({"ids": torch.zeros(3, 2, dtype=torch.int64)}, str(tmp_path / "ids.safetensors"))
    np.save(tmp_path / "fortran.npy", np.asfortranarray(TABLE.numpy()))
    np.save(tmp_path / "ints.npy", np.zeros((3, 2), np.int32))
    (tmp_path / "bad.npy").write_bytes(b"hello, hello")
    (tmp_path / "bad.safetensors").write_bytes(b"hello, hello")
    (tmp_path / "t.csv").write_text("1,2")
    for weight, message in [
        (TABLE[0], r"shape \[6\]; it must be \[num_embeddings, embedding_dim\]"),
        (TABLE[:0], r"shape \[0, 6\]"),
        (TABLE.long(), "torch.int64; it must be float32"),
        (np.zeros((3, 2), np.int32), "int32"),
        (3.5, "weight is a float"),
        (tmp_path / "none.npy", "does not exist"),
        (tmp_path / "t.csv", "neither a .npy nor"),
        (tmp_path / "fortran.npy", "Fortran order"),
        (tmp_path / "ints.npy", "int32"),
        (tmp_path / "bad.npy", "no .npy file"),
        (tmp_path / "bad.safetensors", "no safetensors file"),
        (tmp_path / "two.safetensors", r"has the tables a, b; choose one by two.safetensors#NAME"),
        (f"{tmp_path}/two.safetensors#c", "got 'c'"),
        (tmp_path / "ids.safetensors", "I64"),
        (TABLE.split(7), "needs num_embeddings"),
    ]:
        with pytest.raises(InputError, match=message):
            open_table(weight)
    for weight, message in [
        ([], "no blocks"),
        (TABLE.split(7)[:-1], "have 98 rows, but num_embeddings = 100"),
        ([*TABLE.split(7), TABLE], "more than num_embeddings = 100 rows: block 15"),
        ([TABLE[:50], TABLE[50:, :5]], r"block 1 is torch.float32 \[50, 5\]"),
        ([TABLE[:50], TABLE[50:].double()], "block 1 is torch.float64"),
        ([TABLE[:50], "x"], "block 1 is str"),
    ]:
        with pytest.raises(InputError, match=message):
            read(open_table(weight, 100), 8)


def test_files_that_end_early(tmp_path):
    np.save(tmp_path / "t.npy", TABLE.numpy())
    whole = (tmp_path / "t.npy").read_bytes()
    (tmp_path / "t.npy").write_bytes(whole[:-100])
    with pytest.raises(InputError, match="ends before row 100 of 100: it is not whole"):
        read(open_table(tmp_path / "t.npy"), 30)
    save_file({"t": TABLE}, str(tmp_path / "t.safetensors"))
    whole = (tmp_path / "t.safetensors").read_bytes()
    (tmp_path / "t.safetensors").write_bytes(whole[:-100])
    with pytest.raises(InputError, match="t is not whole"):
        open_table(tmp_path / "t.safetensors")
