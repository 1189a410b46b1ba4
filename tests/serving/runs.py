"""Small trained runs for tests of what serves them."""

from pathlib import Path
from typing import Any

from recsys_opt.models.recipes import DLRMConfig
from recsys_opt.training.config import TrainingConfig, replaced
from recsys_opt.training.trainer import train
from tests.generated import make_dataset

TINY = replaced(
    TrainingConfig(architecture=DLRMConfig(bottom_mlp=(32, 16), top_mlp=(32, 1), dense_features=3)),
    {"batch_size": 100, "max_rows": 2000, "checkpoint_every_s": 1e9},
)


def make_run(folder: Path, name: str, changes: dict[str, Any] | None = None) -> Path:
    """folder/name, trained on folder/data, which is made where it is not there yet."""
    data = folder / "data"
    if not data.exists():
        make_dataset(data)
    train(replaced(TINY, changes or {}), data, folder / name)
    return folder / name
