import math

import numpy as np
import pytest
import torch

from recsys_opt import TTEmbeddingBag
from recsys_opt.errors import InputError

SHAPE = dict(tt_p_shapes=[12, 15, 16], tt_q_shapes=[2, 2, 4])
ROWS = 2875  # the last prefix is not whole


def table(noise=0.3) -> torch.Tensor:
    torch.manual_seed(0)
    bag = TTEmbeddingBag(ROWS, 16, 5, dtype=torch.float64, **SHAPE)
    bag.reset_parameters(1.0)
    made = bag.materialize().detach()
    return made + noise * torch.randn_like(made)


def zipf() -> torch.Tensor:
    return 1.0 / (1 + torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))).double() ** 1.05


def weighted_error(bag, rows, weights) -> float:
    missed = (bag.materialize().detach() - rows).square().sum(1)
    return math.sqrt(float(weights @ missed) / float(weights @ rows.square().sum(1)))


@pytest.mark.parametrize("method", ["exact", "streaming", "randomised"])
def test_heavy_rows_come_out_closer(method):
    rows, weights = table(), zipf()
    plain = TTEmbeddingBag.from_pretrained(rows, 6, method=method, **SHAPE)
    bag = TTEmbeddingBag.from_pretrained(
        rows, 6, method=method, row_weights=weights, work_bytes=2 << 20, **SHAPE
    )
    assert bag.fit_report.weighted_error == pytest.approx(weighted_error(bag, rows, weights), rel=1e-6)
    assert bag.fit_report.weighted_error < 0.93 * weighted_error(plain, rows, weights)
    assert plain.fit_error < bag.fit_error < 1.2 * plain.fit_error
    hot = weights.argsort(descending=True)[:50]
    errors = [float((b.materialize().detach()[hot] - rows[hot]).norm()) for b in (plain, bag)]
    assert errors[1] < 0.9 * errors[0]


def test_the_last_core_is_the_least_squares_solution():
    """The derivative of the weighted error with respect to it is nothing beside the others'."""
    rows, weights = table(), zipf()
    bag = TTEmbeddingBag.from_pretrained(rows, 6, row_weights=weights, **SHAPE)
    lost = (weights[:, None] * (bag.materialize() - rows).square()).sum()
    first, _, last = torch.autograd.grad(lost, list(bag.cores))
    scale = float(bag.cores[2].detach().norm() / bag.cores[0].detach().norm())
    assert float(last.norm()) * scale < 1e-3 * float(first.norm())


def test_equal_weights_change_nothing_much_and_no_weight_leaves_a_slice():
    rows = table()
    plain = TTEmbeddingBag.from_pretrained(rows, 6, **SHAPE)
    equal = TTEmbeddingBag.from_pretrained(rows, 6, row_weights=torch.full((ROWS,), 7.0), **SHAPE)
    assert equal.fit_error == pytest.approx(plain.fit_error, rel=1e-3)
    assert equal.fit_error <= plain.fit_error * (1 + 1e-9)
    assert equal.fit_report.weighted_error == pytest.approx(equal.fit_error, rel=1e-6)
    some = (torch.arange(ROWS) % 16 != 3).float()  # nothing looks up the last digit 3
    bag = TTEmbeddingBag.from_pretrained(rows, 6, row_weights=some, **SHAPE)
    assert float((bag.materialize().detach() - rows)[3::16].norm()) < 1.1 * float(
        (plain.materialize().detach() - rows)[3::16].norm()
    )


def test_files_too(tmp_path):
    rows, weights = table().float(), zipf()
    np.save(tmp_path / "t.npy", rows.numpy())
    bags = [
        TTEmbeddingBag.from_pretrained(
            w, 6, method="streaming", row_weights=weights, work_bytes=2 << 20, **SHAPE
        )
        for w in (rows, tmp_path / "t.npy")
    ]
    torch.testing.assert_close(bags[0].materialize(), bags[1].materialize())


def test_refusals():
    rows = table()
    for weights, more, message in [
        (torch.ones(3), {}, r"row_weights has shape \[3\]; the table has 2875 rows"),
        (-torch.ones(ROWS), {}, r"row_weights\[0\] = -1.0"),
        (torch.full((ROWS,), math.nan), {}, r"row_weights\[0\] = nan"),
        (torch.zeros(ROWS), {}, "all 0"),
    ]:
        with pytest.raises(InputError, match=message):
            TTEmbeddingBag.from_pretrained(rows, 6, row_weights=weights, **more)
    with pytest.raises(InputError, match="a tolerance is about the plain error"):
        TTEmbeddingBag.from_pretrained(rows, tolerance=0.5, row_weights=torch.ones(ROWS))
    with pytest.raises(InputError, match="row_weights need a further pass"):
        TTEmbeddingBag.from_pretrained(
            iter([rows]), 6, num_embeddings=ROWS, row_weights=torch.ones(ROWS), method="randomised"
        )
