from dataclasses import replace

import pytest

from recsys_opt.errors import InputError
from recsys_opt.models.dlrm import DLRM
from recsys_opt.serving.assumed import (
    PRESET_FOLDER,
    PRESETS,
    Stage,
    assumed_times,
    gpu_figures,
    model_stages,
    sample_bytes,
)
from recsys_opt.serving.models import open_run
from recsys_opt.tables import TableConfig

GPU = replace(
    gpu_figures("h100"),
    fixed_s=100e-6,
    launch_s=10e-6,
    copy_s=5e-6,
    link_bytes_per_s=1e9,
    flops_per_s=1e12,
    half_flops=1e6,
    hashes_per_s=1e9,
    stream_bytes_per_s=1e9,
    gather_bytes_per_s=5e8,
    spread=0.0,
)


def test_a_stage_is_its_launches_or_its_work():
    assert Stage("few", 3).seconds(GPU, 1000) == pytest.approx(30e-6)
    products = Stage("products", 1, products=(100_000, 900_000))
    assert products.seconds(GPU, 1) == pytest.approx(10e-6)  # 3 us of work
    assert products.seconds(GPU, 1000) == pytest.approx(1002e-6)
    traffic = Stage("traffic", 1, hashes=7, gather_bytes=64, stream_bytes=100, weight_bytes=5000)
    assert traffic.seconds(GPU, 1000) == pytest.approx(7e-6 + 128e-6 + 105e-6)


def test_times_are_the_sum():
    (one,) = assumed_times([Stage("a", 2), Stage("b", 3)], GPU, [50], sample_bytes=40, quantiles=8)
    assert one.quantiles == (pytest.approx(100e-6 + 15e-6 + 2e-6 + 50e-6, rel=1e-4),) * 8
    assert (one.size, one.runs) == (50, 0)
    (spread,) = assumed_times([Stage("a", 2)], replace(GPU, spread=0.3), [50], sample_bytes=40)
    (even,) = assumed_times([Stage("a", 2)], GPU, [50], sample_bytes=40)
    assert spread.mean == pytest.approx(even.mean, rel=1e-3)
    assert spread.quantile(0.99) > 1.5 * spread.quantile(0.5)


def test_stages_have_the_models_work(table_run, tt_run):
    _, _, table = open_run(table_run)
    stages = {s.name: s for s in model_stages(table)}
    assert stages["bottom 0"].products == (2 * 3 * 32,)
    assert stages["bottom 1"].weight_bytes == 4 * 32 * 16
    assert stages["stored rows"].gather_bytes == 4 * 16 * 4
    assert stages["stored rows"].kernels == 2
    assert stages["interaction"].products == (2 * 5 * 5 * 16,)
    assert {s.name: s for s in model_stages(table, grouped=False)}["stored rows"].kernels == 8
    assert sample_bytes(table) == 4 * (3 + 4 + 1)
    _, _, tt = open_run(tt_run)
    stages = {s.name: s for s in model_stages(tt)}
    made = sum(tt.embeddings.table(n).freeze("prefix").flops_per_lookup() for n in ("C3", "C4"))
    assert stages["made rows"].products == (made,)
    assert stages["stored rows"].gather_bytes == 2 * 16 * 4
    assert "made rows" not in {s.name for s in model_stages(tt, "dense")}


@pytest.mark.parametrize("kind", ["dhe", "hybrid"])
def test_stages_of_hashed_tables(kind):
    """Of a table that is too large to be stored, and of a small one that is."""
    own = {"hashes": 16, "widths": [8]}
    columns = 16 if kind == "dhe" else 32
    if kind == "hybrid":
        own["dhe_dim"] = 16
    tables = [
        TableConfig(name, rows, columns, representation=kind, options=own)
        for name, rows in (("large", 1_100_000), ("small", 100))
    ]
    model = DLRM(tables, dense_features=3, bottom_mlp=(16,), top_mlp=(1,)).eval()
    stages = {s.name: s for s in model_stages(model)}
    assert stages["hashes"].hashes == 16
    assert stages["decoder 0"].products == (2 * 16 * 8,)
    assert stages["decoder 1"].products == (2 * 8 * 16,)
    stored = columns + (16 if kind == "hybrid" else 0)
    assert stages["stored rows"].gather_bytes == 4 * stored
    vectors = 1 + 2 * columns // 16
    assert stages["interaction"].products == (2 * vectors**2 * 16,)


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name):
    gpu = gpu_figures(name)
    assert gpu.name == name
    assert gpu.source
    assert 0 < gpu.flops_per_s < 1e15
    assert (PRESET_FOLDER / f"{name}.toml").read_text().splitlines()[1].startswith("# ")


def test_figures_of_ones_own(tmp_path):
    text = (PRESET_FOLDER / "v100.toml").read_text()
    own = tmp_path / "mine.toml"
    own.write_text(text.replace('name = "v100"', 'name = "mine"').replace('"32GB"', "200_000_000"))
    assert gpu_figures(str(own)).memory_bytes == 200_000_000
    for old, new, message in (
        ('"recsys_opt.gpu"', '"recsys_opt.hardware"', "must begin with format"),
        ("version = 1", "version = 2", "must begin with format"),
        ("launch_s = 10e-6", "launch_s = -1.0", "launch_s = -1.0"),
        ("flops_per_s = 9.4e12", "flops_per_s = 0.0", "flops_per_s = 0.0; it must be above 0"),
        ("spread = 0.05", "spred = 0.05", "did you mean 'spread'"),
        ("spread = 0.05", "spread = nan", "spread = nan"),
        ("grouped = false", "grouped = 0", "grouped = 0; it must be true or false"),
        ("copy_s = 10e-6", "copy_s =", "is not whole, readable TOML"),
    ):
        own.write_text(text.replace(old, new))
        with pytest.raises(InputError) as error:
            gpu_figures(str(own))
        assert message in str(error.value)
    with pytest.raises(InputError, match="there is no GPU 'h900': name a preset"):
        gpu_figures("h900")
