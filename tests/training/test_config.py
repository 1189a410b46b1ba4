import json

import pytest

from recsys_opt.errors import InputError
from recsys_opt.training.config import (
    RECIPES,
    CompressionConfig,
    TrainingConfig,
    differences,
    recipe,
    replaced,
)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_survive_json(name):
    config = replaced(recipe(name), {"compression.tt_tables": ("C3", "C12"), "max_rows": 5})
    assert TrainingConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_replaced_reaches_into_nested_settings_and_checks_them():
    config = replaced(TrainingConfig(), {"schedule.warmup": 0.2, "optimizer.eps": 0.1, "seed": 4})
    assert (config.schedule.warmup, config.optimizer.eps, config.seed) == (0.2, 0.1, 4)
    with pytest.raises(InputError, match="warmup = 2"):
        replaced(config, {"schedule.warmup": 2})


def test_differences_name_what_decides_the_weights():
    a = TrainingConfig()
    b = replaced(a, {"checkpoint_every_s": None, "schedule.decay": 0.5, "seed": 1})
    assert differences(a, b) == ["schedule.decay: 0.0 -> 0.5", "seed: 0 -> 1"]
    assert differences(a, a) == []


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 0},
        {"epochs": 0},
        {"max_rows": 0},
        {"precision": "fp16"},
        {"device": "tpu"},
        {"dense_representation": "sparse"},
        {"seed": -1},
        {"log_every": 0},
        {"evals_per_epoch": -1},
        {"checkpoint_every_s": -1.0},
        {"checkpoint_every_s": float("nan")},
        {"compression": {"tt_rank": 0}},
    ],
)
def test_refusals(change):
    with pytest.raises(InputError, match=r"must be"):
        if "compression" in change:
            CompressionConfig(**change["compression"])
        else:
            replaced(TrainingConfig(), change)


def test_a_document_from_before_a_field_has_its_default():
    document = recipe("criteo_kaggle").to_json()
    del document["dense_representation"]
    assert TrainingConfig.from_json(document) == recipe("criteo_kaggle")


def test_a_document_with_a_fields_former_name():
    document = recipe("criteo_kaggle").to_json()
    document["optimizer"]["core_update"] = "stored"
    del document["optimizer"]["table_update"]
    assert TrainingConfig.from_json(document).optimizer.table_update == "stored"


def test_unknown_names_and_documents():
    with pytest.raises(InputError, match="no recipe 'x'; choose one of criteo_kaggle"):
        recipe("x")
    with pytest.raises(InputError, match="not a training configuration"):
        TrainingConfig.from_json({"batchsize": 3})
