import json

import pytest

from recsys_opt.bench.convert import Settings, run
from recsys_opt.cli.main import main
from recsys_opt.errors import InputError
from recsys_opt.models.recipes import DLRMConfig
from recsys_opt.progress import SilentProgress
from recsys_opt.training.config import CompressionConfig, TrainingConfig
from recsys_opt.training.optimizers import OptimizerConfig
from recsys_opt.training.trainer import train
from tests.generated import make_dataset


@pytest.mark.parametrize("compression", [CompressionConfig(), CompressionConfig(tt_threshold=700, tt_rank=8)])
def test_less_rank_loses_more(tmp_path, capsys, compression):
    dataset = make_dataset(tmp_path / "data")
    config = TrainingConfig(
        architecture=DLRMConfig(bottom_mlp=(16, 8), top_mlp=(16, 1)),
        optimizer=OptimizerConfig(algorithm="adagrad", mlp_lr=0.01, table_lr=0.05, core_lr=0.02),
        compression=compression,
        batch_size=128,
    )
    result = train(config, dataset.path, tmp_path / "run")
    out = tmp_path / "record.json"
    flags = ["--least-rows", "700", "--rank", "4", "1", "--tolerance", "1e-5", "--record", str(out)]
    assert main(["bench", "convert", str(tmp_path / "run"), str(dataset.path), *flags]) == 0
    assert "as trained" in capsys.readouterr().out
    trained, four, one, near = json.loads(out.read_text())["rows"]
    assert trained["auc"] == pytest.approx(result.test.auc)
    assert [t["name"] for t in four["tables"]] == ["C3", "C4"]
    assert trained["embedding_bytes"] > four["embedding_bytes"] > one["embedding_bytes"]
    assert trained["largest_error"] == 0 < four["largest_error"] < one["largest_error"]
    assert near["largest_error"] <= 1e-5
    assert near["logloss"] == pytest.approx(trained["logloss"], abs=1e-4)


def test_refusals(tmp_path):
    dataset = make_dataset(tmp_path / "data", rows=500)
    config = TrainingConfig(architecture=DLRMConfig(bottom_mlp=(16, 8), top_mlp=(16, 1)), batch_size=128)
    train(config, dataset.path, tmp_path / "run")
    with pytest.raises(InputError, match=r"no table of .* is a tensor train or has 100000 rows"):
        run(tmp_path / "run", dataset, Settings(), SilentProgress())
    with pytest.raises(InputError, match="every one must be at least 1"):
        Settings(ranks=(0,))
