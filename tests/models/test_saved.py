import json

import pytest
import torch

from recsys_opt.models.recipes import DLRMConfig
from recsys_opt.models.saved import load_model
from recsys_opt.run_folder import RunFolder
from recsys_opt.tensor_files import tensor_shapes
from recsys_opt.training.config import TrainingConfig, replaced
from recsys_opt.training.trainer import train
from tests.generated import make_dataset

CONFIG = replaced(
    TrainingConfig(architecture=DLRMConfig(bottom_mlp=(16, 8), top_mlp=(16, 1))),
    {"batch_size": 100, "max_rows": 1000, "checkpoint_every_s": 0.0},
)
# Column factors as the library's default was before: not what it gives 8 columns now.
OLD = {"tt_ranks": [4, 4], "tt_q_shapes": [2, 2, 2]}


@pytest.mark.parametrize("cache_rows", [0, 9])
def test_a_run_of_an_earlier_version_has_the_shapes_of_its_file(tmp_path, cache_rows):
    """Such a run names no factors, and the defaults have changed since."""
    data, out = make_dataset(tmp_path / "data"), tmp_path / "run"
    config = replaced(
        CONFIG,
        {"compression.tt_options": {"C4": OLD}, "compression.tt_cache_rows": cache_rows, "epochs": 2},
    )
    whole = train(config, data.path, out)
    shapes = tensor_shapes(RunFolder(out).checkpoint_folder() / "model.safetensors")
    assert sum("cores" in name and shape[1] == 2 for name, shape in shapes.items()) == 3
    expected = load_model(out)

    def forget(table):
        if table["name"] == "C4":
            del table["options"]["tt_q_shapes"], table["options"]["tt_p_shapes"]

    for path in (out / "config.json", RunFolder(out).checkpoint_folder() / "checkpoint.json"):
        document = json.loads(path.read_text())
        for table in document["model"]["tables"]:
            forget(table)
        path.write_text(json.dumps(document))
    found = load_model(out)
    assert list(found.embeddings.configs[3].options["tt_q_shapes"]) == [2, 2, 2]
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensor, found.state_dict()[name]), name
    assert train(config, data.path, out, resume=True).test == whole.test
