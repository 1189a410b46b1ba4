"""Models as a worker runs them: from the shared memory's arrays to probabilities in it."""

from __future__ import annotations

from pathlib import Path

import torch

from recsys_opt.errors import InputError
from recsys_opt.server.slots import Slots
from recsys_opt.server.worker import ModelTask, Task
from recsys_opt.serving.as_served import padded_sizes
from recsys_opt.serving.models import FrozenModel, ServingOptions, load_frozen


class Runner:
    """The models of a worker's paths."""

    def __init__(self, task: Task, slots: Slots) -> None:
        torch.set_num_threads(task.threads)
        self._models = [_load(task, m) for m in task.models]
        self._slots = slots
        slots.ids(task.samples)[:] = 0
        slots.dense(task.samples)[:] = 0
        for path in range(len(self._models)):  # products of every size are made before a query needs them
            for samples in padded_sizes(task.samples):
                self.compute(path, samples)

    def compute(self, path: int, samples: int) -> None:
        """Computes the batch in the slots; `samples` is one of `padded_sizes`."""
        slots = self._slots
        slots.outputs(samples)[:] = self._models[path].predict(
            slots.dense(samples), slots.ids(samples), checked=True
        )


def _load(task: Task, wanted: ModelTask) -> FrozenModel:
    model = load_frozen(
        Path(wanted.run),
        ServingOptions.from_json(wanted.options, f"the profile: path {wanted.path}: options"),
        device=wanted.device,
        fingerprint=wanted.fingerprint,
    )
    difference = task.model.difference(model.request)
    if difference is not None:
        raise InputError(
            f"the profile is of another model than {wanted.run}, which path {wanted.path} serves: "
            f"{difference}; profile it again, or name other runs"
        )
    model.warm_up(())
    return model
