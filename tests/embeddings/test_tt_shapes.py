import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_opt.embeddings.tt_shapes import column_factors, resolve_shapes, row_factors
from recsys_opt.errors import InputError

KAGGLE = [
    *(1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194, 27, 14992, 5461306),
    *(10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572),
]


@given(st.integers(1, 50_000_000), st.integers(2, 4))
def test_row_factors_cover_the_rows_with_little_waste(rows, cores):
    factors = row_factors(rows, cores)
    assert len(factors) == cores
    assert math.prod(factors) >= rows
    if rows > 20_000:
        assert math.prod(factors) <= 1.04 * rows
        assert max(factors) <= 1.5 * (min(factors) + 1) + 1
    if cores > 2:
        assert factors[-1] == max(factors)
        assert min(factors) in factors[1:-1]


def test_kaggle_compression_at_rank_32():
    """7 largest tables in TT at R=32, the rest dense: at least the published 117 times smaller."""
    largest = sorted(KAGGLE)[-7:]
    stored = (sum(KAGGLE) - sum(largest)) * 16
    for rows in largest:
        p, q, r = resolve_shapes(rows, 16, 32, None, None)
        stored += sum(p[k] * q[k] * r[k] * r[k + 1] for k in range(3))
    assert sum(KAGGLE) * 16 / stored >= 117.4


@pytest.mark.parametrize(
    ("dim", "cores", "factors"),
    [
        (16, 3, (2, 1, 8)),
        (64, 3, (4, 1, 16)),
        (128, 3, (4, 1, 32)),
        (16, 2, (2, 8)),
        (16, 4, (2, 1, 1, 8)),
        (12, 3, (1, 1, 12)),
        (7, 3, (1, 1, 7)),
        (1, 2, (1, 1)),
    ],
)
def test_column_factors(dim, cores, factors):
    assert column_factors(dim, cores) == factors


def test_resolve():
    assert resolve_shapes(60, 8, 4, None, None)[1:] == ((1, 1, 8), (1, 4, 4, 1))
    assert resolve_shapes(60, 8, [4], None, None)[1] == (1, 8)
    assert resolve_shapes(60, 8, 4, [8, 8], None)[2] == (1, 4, 1)
    for arguments, message in [
        ((60, 8, [4, 4], [8, 8], None), "disagree on the number of cores: tt_p_shapes 2, tt_ranks 3"),
        ((60, 8, [4, 4, 4, 4], None, None), "5 cores; a table has 2 to 4"),
        ((60, 8, 4, [2, 2, 2], None), "make 8 rows; the table needs 60"),
        ((60, 8, 4, None, [2, 2, 3]), "make 12 columns; embedding_dim is 8"),
        ((60, 8, 0, None, None), "every number must be at least 1"),
        ((0, 8, 4, None, None), "num_embeddings = 0"),
    ]:
        with pytest.raises(InputError, match=message):
            resolve_shapes(*arguments)
