import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_opt.embeddings import tt_spectra
from recsys_opt.embeddings.tt import TTEmbeddingBag
from recsys_opt.embeddings.tt_budget import TTOption
from recsys_opt.embeddings.tt_spectra import Spectra


@settings(max_examples=60)
@given(
    st.lists(st.integers(1, 5), min_size=2, max_size=4),
    st.data(),
    st.integers(1, 200),
)
def test_tails_are_those_of_the_unfoldings(p, data, block):
    q = tuple(data.draw(st.integers(1, 3)) for _ in p)
    rows = data.draw(st.integers(1, math.prod(p)))
    torch.manual_seed(rows)
    weight = torch.randn(rows, math.prod(q), dtype=torch.float64)
    table = torch.zeros(math.prod(p), math.prod(q), dtype=torch.float64)
    table[:rows] = weight
    d = len(p)
    whole = table.view(*p, *q).permute([axis for k in range(d) for axis in (k, d + k)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tt_spectra, "_BLOCK_ENTRIES", block)
        spectra = Spectra(weight)
        for bond in range(1, d):
            side = math.prod(p[:bond]) * math.prod(q[:bond])
            energies = torch.linalg.svdvals(whole.reshape(side, -1)) ** 2
            full = [10**6] * (d - 1)
            for rank in range(1, len(energies) + 1):
                full[bond - 1] = rank
                found = spectra.squared_error(TTOption(tuple(p), q, tuple(full)))
                assert found == pytest.approx(float(energies[rank:].sum() / energies.sum()), abs=1e-9)


@pytest.mark.parametrize("ranks", [(2, 3), (6, 4), (12, 12)])
def test_the_fit_is_no_worse(ranks):
    torch.manual_seed(0)
    decay = torch.linspace(0, 3, 8).neg().exp()
    weight = torch.randn(500, 8) @ torch.diag(decay) @ torch.randn(8, 8)
    p, q = (8, 8, 8), (2, 2, 2)
    bag = TTEmbeddingBag.from_pretrained(weight, ranks, tt_p_shapes=p, tt_q_shapes=q)
    bound = Spectra(weight).squared_error(TTOption(p, q, ranks))
    distance = float((bag.materialize().detach() - weight).norm() / weight.norm())
    assert distance**2 <= bound + 1e-5
    assert bound <= 2 * distance**2 + 1e-5  # never more than d - 1 times too large


def test_what_is_too_large_is_said_beforehand():
    assert not Spectra.possible(TTOption((3000, 3000), (4, 4), (8,)))
    assert Spectra.possible(TTOption((200, 220, 250), (2, 2, 4), (8, 8)))


def test_a_table_of_zeros_loses_nothing():
    assert Spectra(torch.zeros(8, 4)).squared_error(TTOption((2, 4), (2, 2), (1,))) == 0
