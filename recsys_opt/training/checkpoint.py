"""Checkpoints that are whole or not there: a killed or full machine leaves the last one as it was.

run/checkpoint -> .checkpoint-000001200     a link, replaced atomically once the new folder is durable
    checkpoint.json        step, position, configuration, what else is needed to go on
    model.safetensors      the model's state dict
    optimizer.safetensors  the optimizers' tensors
    trainer.safetensors    random state, recent predictions
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from recsys_opt.errors import InputError, RecsysOptError
from recsys_opt.files import fsync_dir, write_json
from recsys_opt.run_folder import CHECKPOINT_FORMAT, CHECKPOINT_PREFIX, VERSION, RunFolder
from recsys_opt.tensor_files import read_into, read_tensors, write_tensors


@dataclass(frozen=True)
class Position:
    """Where a run stands."""

    step: int
    """Updates done."""
    epoch: int
    """Passes over the training rows finished."""
    row: int
    """The next row of the training split, counted from its start."""
    rows_seen: int
    """Rows trained on, over all epochs."""
    metrics_bytes: int
    """Length of metrics.jsonl: what lies beyond was written after this checkpoint."""


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint."""

    path: Path
    position: Position
    config: Mapping[str, Any]
    """The run's configuration, as in config.json."""
    model: Mapping[str, Any]
    """The model's architecture: dense features, tables, layers."""
    dataset: Mapping[str, Any]
    """Which dataset it was trained on: name and input_hash."""

    def load_model(self, model: nn.Module) -> None:
        """Copies the weights into a model of the same architecture, one tensor at a time."""
        read_into(self.path / "model.safetensors", model.state_dict())

    def optimizer_state(self) -> dict[str, Tensor]:
        """What was given to `write_checkpoint`."""
        return read_tensors(self.path / "optimizer.safetensors")

    def trainer_state(self) -> dict[str, Tensor]:
        """What was given to `write_checkpoint`."""
        return read_tensors(self.path / "trainer.safetensors")


def write_checkpoint(
    run: RunFolder,
    position: Position,
    model: nn.Module,
    optimizer_state: Mapping[str, Tensor],
    trainer_state: Mapping[str, Tensor],
    documents: Mapping[str, Any],
) -> None:
    """Writes a checkpoint beside the last one and swaps them; on any failure the last one stays.

    documents  "config", "model" and "dataset" of `Checkpoint`
    """
    folder = run.path / f"{CHECKPOINT_PREFIX}{position.step:09d}"
    link = run.checkpoint_link
    current = run.checkpoint_folder()
    if current == folder:  # same step again: its content is the same, but metrics_bytes may not be
        folder = folder.with_name(folder.name + "-again")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir()
        write_tensors(folder / "model.safetensors", model.state_dict())
        write_tensors(folder / "optimizer.safetensors", optimizer_state)
        write_tensors(folder / "trainer.safetensors", trainer_state)
        write_json(
            folder / "checkpoint.json",
            CHECKPOINT_FORMAT,
            VERSION,
            {"position": asdict(position), **documents},
        )  # last: a folder that has it is whole
        fsync_dir(folder)
        fresh = run.path / f".{link.name}.partial"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(folder.name)
        if link.is_dir() and not link.is_symlink():  # a copy of a run that followed the link
            link.rename(run.path / f"{CHECKPOINT_PREFIX}copy")
        os.replace(fresh, link)
        fsync_dir(run.path)
    except (OSError, RecsysOptError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        kept = "the one before it is whole" if current else "there is none yet"
        reason = error.strerror if isinstance(error, OSError) else error
        raise RecsysOptError(
            f"cannot write the checkpoint of step {position.step} to {run.path}: {reason} ({kept}); "
            "make room, then run the same command with --resume"
        ) from error
    remove_leftovers(run)


def read_checkpoint(run: RunFolder) -> Checkpoint | None:
    """The last whole checkpoint of a run, or None."""
    found = run.checkpoint_document()
    if found is None:
        return None
    folder, document = found
    try:
        position = Position(**document["position"])
        return Checkpoint(folder, position, document["config"], document["model"], document["dataset"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder / 'checkpoint.json'} does not describe a checkpoint: {error!r}") from None


def remove_leftovers(run: RunFolder) -> None:
    """Removes superseded checkpoints and halves of one; for the folder's one writer."""
    current = run.checkpoint_folder()
    for path in run.path.glob(f"{CHECKPOINT_PREFIX}*"):
        if path != current:
            shutil.rmtree(path, ignore_errors=True)
    (run.path / f".{run.checkpoint_link.name}.partial").unlink(missing_ok=True)
