"""Curves in TensorBoard, where it is installed; the only place that imports it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Protocol


class ScalarWriter(Protocol):
    """Takes named curves."""

    def add(self, name: str, value: float, step: int) -> None:
        """Adds a point to a curve."""

    def close(self) -> None:
        """Writes out what is left."""


class _Nothing:
    def add(self, name: str, value: float, step: int) -> None:
        """TensorBoard is not installed."""

    def close(self) -> None:
        """TensorBoard is not installed."""


class _Events:
    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def add(self, name: str, value: float, step: int) -> None:
        self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


def open_scalar_writer(folder: Path, first_step: int) -> ScalarWriter:
    """A writer of event files in `folder`/tensorboard; one that does nothing without TensorBoard.

    Points after `first_step` in older files of the folder count as overwritten: a run goes on from there.
    """
    if importlib.util.find_spec("tensorboard") is None:
        return _Nothing()
    from torch.utils.tensorboard import SummaryWriter

    return _Events(SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1))
