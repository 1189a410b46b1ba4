"""Served models on a GPU: what they predict there is what they predict on the CPU."""

import numpy as np
import pytest
import torch

from recsys_opt import ops
from recsys_opt.serving.measure import MeasureSettings, PathSource, measure_paths
from recsys_opt.serving.models import ServingOptions, load_frozen
from recsys_opt.serving.samples import generated_samples

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        not (torch.cuda.is_available() and ops.has_cuda_kernel("tt_prefix_bag")),
        reason="needs a CUDA GPU and the CUDA kernels; scripts/gpu_check.sh builds and runs these",
    ),
]


@pytest.mark.parametrize("kind", ["table", "tt"])
@pytest.mark.parametrize("tables", ["fp32", "fp16"])
def test_equals_the_cpu(request, kind, tables):
    run = request.getfixturevalue(f"{kind}_run")
    options = ServingOptions(tables=tables)
    here, there = load_frozen(run, options), load_frozen(run, options, device="cuda")
    assert there.bytes == here.bytes
    samples = generated_samples(here.request, 1000)
    for size in (1, 50, 700):
        dense, ids = samples.request(size, 3)
        np.testing.assert_allclose(there.predict(dense, ids), here.predict(dense, ids), atol=1e-5)


def test_measuring(table_run):
    samples = generated_samples(load_frozen(table_run).request, 1000)
    source = PathSource("table@gpu", str(table_run), ServingOptions(), "cuda")
    (found,) = measure_paths([source], samples, MeasureSettings(sizes=(1, 256), seconds=2.0))
    assert [t.size for t in found.times] == [1, 256]
