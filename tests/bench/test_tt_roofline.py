import pytest
import torch

from recsys_opt.bench.ceilings import Ceilings
from recsys_opt.bench.tt_cases import Case, Shape
from recsys_opt.bench.tt_roofline import Need, count_distinct, need_of

SHAPE = Shape(60, 8, (3, 4, 5), (2, 2, 2))
CASE = Case(SHAPE, 16, "uniform", 2, 4, 1)
# i = (i0 * 4 + i1) * 5 + i2: rows 0, 1, 4 share the prefix (0, 0); 20 is (1, 0, 0), 25 (1, 1, 0).
BATCH = torch.tensor([0, 1, 4, 0, 20, 25, 25, 1])


def test_distinct_prefixes_and_slices_are_counted():
    found = count_distinct(CASE, [BATCH])
    assert found.rows == 5
    assert found.prefixes == (2, 3, 5)
    assert found.slices == (2, 2, 3)
    both = count_distinct(CASE, [BATCH, torch.zeros(8, dtype=torch.int64)])
    assert both.prefixes == (1.5, 2, 3)


def test_the_least_work_of_a_tensor_train():
    need = need_of("tt", "forward", CASE, count_distinct(CASE, [BATCH]))
    prefix = 3 * 2 * 2 * 16 * 2 * 16  # 3 prefixes; 2 columns x 16 by 16 x (2 x 16)
    last = 5 * 2 * 4 * 16 * 2  # 5 rows; 4 columns x 16 by 16 x 2
    assert need.flops == prefix + last
    cores = 4 * (2 * 2 * 16 + 2 * 2 * 16 * 16 + 3 * 2 * 16)
    assert need.streamed_bytes == cores + 8 * 8 + 4 * (8 + 8 * 4)  # ids; offsets and output
    assert need.gathered_bytes == 0
    frozen = need_of("tt-prefix", "forward", CASE, count_distinct(CASE, [BATCH]))
    assert frozen.flops == last
    assert need_of("tt", "step", CASE, count_distinct(CASE, [BATCH])).flops == 3 * need.flops


def test_the_least_work_of_a_dense_table():
    need = need_of("dense", "forward", CASE, count_distinct(CASE, [BATCH]))
    assert need.gathered_bytes == 5 * 8 * 4
    assert need_of("dense", "step", CASE, count_distinct(CASE, [BATCH])).gathered_bytes == 2 * 5 * 8 * 4


def test_the_roof_is_what_takes_longest():
    ceilings = Ceilings(1, 1e9, 2e9, {"L3": 1e9, "memory": 1e8}, {32: 1e7}, cache_bytes=1000)
    assert Need(2e9, 1e8, 0).roof_s(ceilings, 32, 10) == 2
    assert Need(2e9, 1e8, 0).roof_s(ceilings, 32, 10, bf16=True) == 2e9 / ceilings.bf16_flops_per_s
    assert Need(1e6, 1e8, 1e7).roof_s(ceilings, 32, 1000) == pytest.approx(0.11)  # from the cache
    assert Need(1e6, 1e8, 1e7).roof_s(ceilings, 32, 1001) == pytest.approx(1.1)  # from memory
