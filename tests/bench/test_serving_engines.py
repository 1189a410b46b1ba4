import pytest

from recsys_opt.bench.serving_engines import ENGINES, run, text
from recsys_opt.models.recipes import DLRMConfig


@pytest.mark.slow
def test_engines_agree():
    rows = run(DLRMConfig(bottom_mlp=(32, 8), top_mlp=(16, 1)), [1, 50], rounds=3)
    assert len(rows) == 2 * len(ENGINES)
    for row in rows:
        assert row["largest_difference"] < (0.02 if "bf16" in row["engine"] else 1e-5), row
        assert row["median_ms"] > 0
    assert all(engine.name in text(rows) for engine in ENGINES)
