import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from recsys_opt import TTEmbeddingBag
from recsys_opt.embeddings.tt_file import load_bag, save_bag
from recsys_opt.errors import InputError
from recsys_opt.tensor_files import read_metadata

IDS, OFFSETS = torch.tensor([1, 59, 0, 7, 7]), torch.tensor([0, 2, 2, 5])


def make_bag(dtype: torch.dtype = torch.float64) -> TTEmbeddingBag:
    return TTEmbeddingBag(
        60, 8, [3, 5], mode="mean", padding_idx=-1, init="gaussian", include_last_offset=True, dtype=dtype
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_bag_comes_back_as_it_was(tmp_path, dtype):
    bag = make_bag(dtype)
    save_bag(bag, tmp_path / "bag.safetensors")
    other = load_bag(tmp_path / "bag.safetensors")
    assert repr(other) == repr(bag)
    assert (other.padding_idx, other.init) == (59, "gaussian")
    for mine, right in zip(other.cores, bag.cores, strict=True):
        assert mine.dtype == dtype
        assert mine.requires_grad
        assert torch.equal(mine, right)
    assert torch.equal(other.materialize(), bag.materialize())
    assert [p.name for p in tmp_path.iterdir()] == ["bag.safetensors"]


def test_other_programs_read_the_cores(tmp_path):
    bag, other = make_bag(), make_bag()
    save_bag(bag, tmp_path / "bag.safetensors")
    other.load_state_dict(load_file(tmp_path / "bag.safetensors"))
    assert torch.equal(other(IDS, OFFSETS), bag(IDS, OFFSETS))


def changed(tmp_path, tensors=None, **changes):
    """A saved bag's file with other metadata or tensors."""
    path = tmp_path / "bag.safetensors"
    bag = make_bag()
    save_bag(bag, path)
    metadata = {k: v for k, v in {**read_metadata(path), **changes}.items() if v is not None}
    save_file(bag.state_dict() if tensors is None else tensors, path, metadata)
    return path


def description(**changes) -> str:
    return json.dumps({"num_embeddings": 60, "embedding_dim": 8, "tt_ranks": [3, 5], **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "its format is 'other'; a plain state dict is read"),
        ({"format": None}, "its format is None"),
        ({"version": "2"}, "has version 2 of recsys_opt.tt_embedding_bag; this recsys_opt reads version 1"),
        ({"bag": None}, r"is damaged: its description is not one of a bag \('bag'\)"),
        ({"bag": "{"}, "is damaged"),
        ({"bag": description(rank=3)}, "is damaged: .*unexpected keyword argument 'rank'"),
        ({"bag": description(tt_p_shapes=[2, 2, 2])}, r"is damaged: .*\[2, 2, 2\] make 8 rows"),
        (
            {"bag": description(tt_ranks=[4, 5])},
            r"cores\.0 is torch.float64 \[.*, 3\]; the model has torch.float64 \[.*, 4\]",
        ),
        ({"tensors": {}}, r"missing \['cores\.0', 'cores\.1', 'cores\.2'\]"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, changes, message):
    path = changed(tmp_path, **changes)
    with pytest.raises(InputError, match=message):
        load_bag(path)


def test_an_absent_or_foreign_file(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load_bag(tmp_path / "none.safetensors")
    (tmp_path / "text").write_text("text")
    with pytest.raises(InputError, match="is damaged"):
        load_bag(tmp_path / "text")
