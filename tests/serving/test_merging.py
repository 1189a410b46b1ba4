from dataclasses import replace

import pytest

from recsys_opt.errors import InputError
from recsys_opt.serving.merging import merged
from recsys_opt.serving.profile import ServedModel
from tests.serving.profiles import MODEL, make_device, make_profile

CPU = make_profile({"table@cpu": (0.78, 1e-4, 1e-5), "tt@cpu": (0.77, 2e-4, 2e-5)})
GPU = make_profile({"dhe@gpu": (0.79, 5e-4, 1e-6)}, assumed=frozenset({"gpu"}))


def test_merging():
    both = merged([CPU, GPU])
    assert [p.name for p in both.paths] == ["table@cpu", "tt@cpu", "dhe@gpu"]
    assert [d.name for d in both.devices] == ["cpu", "gpu"]
    assert set(both.circumstances) == {"cpu", "gpu"}
    later = replace(GPU.paths[0], name="table@gpu")
    again = replace(GPU, paths=(later,), circumstances={"gpu": {"command": "later"}})
    three = merged([GPU, again, replace(again, paths=(replace(later, name="x"),), circumstances={"gpu": 3})])
    assert set(three.circumstances) == {"gpu", "gpu (2)", "gpu (3)"}


@pytest.mark.parametrize(
    ("model", "difference"),
    [
        (replace(MODEL, dense_features=4), "dense_features 3 and 4"),
        (replace(MODEL, embedding_dim=8), "embedding_dim 16 and 8"),
        (replace(MODEL, features=("C1", "C2", "X", "C4")), "feature C3 and X at one place"),
        (ServedModel(3, ("C1",), (4,), 16), "feature C2 and none at one place"),
        (replace(MODEL, cardinalities=(4, 60, 701, 5000)), "feature C3 has 700 and 701 rows"),
        (replace(MODEL, what="other words"), None),
    ],
)
def test_merging_models(model, difference):
    assert MODEL.difference(model) == difference
    if difference is None:
        merged([CPU, replace(GPU, model=model)])
    else:
        with pytest.raises(InputError, match=f"profile 2 is of another model than the first: {difference}"):
            merged([CPU, replace(GPU, model=model)])


def test_what_cannot_be_merged():
    with pytest.raises(InputError, match="there is no profile to merge"):
        merged([])
    with pytest.raises(InputError, match="two of the profiles have two paths called 'table@cpu'"):
        merged([CPU, CPU])
    other = replace(GPU, devices=(make_device("gpu", "cuda", workers=2, assumed=True),))
    with pytest.raises(InputError, match="two different devices are called 'gpu'"):
        merged([GPU, other])
