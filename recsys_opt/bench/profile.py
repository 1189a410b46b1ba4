"""A profile of trained runs on this machine: service times, bytes and accuracy of each path."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, Literal

import numpy as np
import torch

from recsys_opt.data.batches import BatchStream
from recsys_opt.data.dataset import Dataset
from recsys_opt.environment import cpu_model, environment
from recsys_opt.errors import InputError
from recsys_opt.progress import Progress, SilentProgress
from recsys_opt.run_folder import RunFolder
from recsys_opt.serving.assumed import GpuFigures, assumed_times, figures_json, model_stages, sample_bytes
from recsys_opt.serving.cached import dataset_of
from recsys_opt.serving.measure import SIZES, MeasuredPath, MeasureSettings, PathSource, measure_paths
from recsys_opt.serving.models import FrozenModel, ServingOptions, load_frozen, open_run
from recsys_opt.serving.profile import GIVEN, Device, Path, Profile, ServedModel
from recsys_opt.serving.samples import Samples, dataset_samples, generated_samples
from recsys_opt.training.metrics import compute_metrics

EVALUATED_ROWS = 1_000_000
"""Most rows that an accuracy is measured on: its standard error is .0004 then, and AUC's less."""
_BATCH = 4096


@dataclass(frozen=True)
class PathRequest:
    """A run to profile."""

    run: str
    name: str | None = None
    """Of the path, before the `@`; None: the representation."""
    options: ServingOptions = field(default_factory=ServingOptions)
    suffix: str = ""
    """Behind the name: what tells it from the run's other paths."""


@dataclass(frozen=True)
class ProfileSettings:
    """What to measure and where."""

    measure: MeasureSettings = field(default_factory=MeasureSettings)
    devices: Mapping[str, str] = field(default_factory=lambda: {"cpu": "cpu"})
    """Kind -> name in the profile."""
    data: FilePath | None = None
    """A dataset for queries and accuracy; None: the first run's, if it is still where it was."""
    accuracies: Mapping[str, float] = field(default_factory=dict)
    """By the path's name before the `@`: what to put in the place of a measured accuracy."""
    memory_bytes: int | None = None
    """Of each device; None: what it has."""


@dataclass(frozen=True)
class Worth:
    """How good a path's predictions are, and who says so."""

    accuracy: float
    auc: float | None
    source: str


def measured_profile(
    requests: Sequence[PathRequest], settings: ProfileSettings, *, progress: Progress | None = None
) -> Profile:
    """The profile of runs on this machine's devices."""
    progress = progress or SilentProgress()
    _check_devices(settings)
    runs = _opened(requests, settings.data, settings.accuracies, progress)
    model, names, worth = runs.model, runs.names, runs.worth
    samples = generated_samples(model) if runs.data is None else dataset_samples(runs.data, model)
    paths: list[Path] = []
    circumstances: dict[str, Any] = {}
    for kind, device in settings.devices.items():
        sources = [PathSource(f"{names[r]}@{device}", r.run, r.options, _kind(kind)) for r in requests]
        found = measure_paths(sources, samples, settings.measure, progress=progress)
        paths += [_path(p, device, worth[r]) for r, p in zip(requests, found, strict=True)]
        circumstances[device] = _circumstances(found, samples, settings.measure)
    devices = tuple(_device(kind, name, settings) for kind, name in settings.devices.items())
    return Profile(model, devices, tuple(paths), circumstances)


def assumed_profile(
    requests: Sequence[PathRequest],
    gpu: GpuFigures,
    *,
    device: str = "gpu",
    sizes: Sequence[int] = SIZES,
    data: FilePath | None = None,
    accuracies: Mapping[str, float] | None = None,
    memory_bytes: int | None = None,
) -> Profile:
    """The profile of runs on a GPU that is not here: computed from its figures, and marked assumed.

    sizes  ascending
    """
    MeasureSettings(sizes=tuple(sizes))  # refuses sizes that cannot be
    runs = _opened(requests, data, accuracies or {}, SilentProgress())
    paths = []
    for request, frozen in runs.bytes.items():
        _, _, dlrm = open_run(request.run)
        stages = model_stages(dlrm, request.options.tensor_trains, grouped=gpu.grouped)
        worth = runs.worth[request]
        paths.append(
            Path(
                f"{runs.names[request]}@{device}",
                runs.representations[request],
                device,
                worth.accuracy,
                frozen,
                assumed_times(stages, gpu, sizes, sample_bytes=sample_bytes(dlrm)),
                auc=worth.auc,
                accuracy_from=worth.source,
                assumed=True,
                run=FilePath(request.run).resolve().name,
                fingerprint=runs.fingerprints[request],
                options=request.options.to_json(),
            )
        )
    about = Device(device, "cuda", 1, 1, memory_bytes or gpu.memory_bytes, assumed=True, what=gpu.what)
    circumstances = {device: {**environment(), "figures": figures_json(gpu)}}
    return Profile(runs.model, (about,), tuple(paths), circumstances)


@dataclass(frozen=True)
class _Opened:
    """What is known of runs before they are measured."""

    model: ServedModel
    names: Mapping[PathRequest, str]
    worth: Mapping[PathRequest, Worth]
    representations: Mapping[PathRequest, str]
    fingerprints: Mapping[PathRequest, str]
    bytes: Mapping[PathRequest, int]
    data: FilePath | None


def _opened(
    requests: Sequence[PathRequest],
    data: FilePath | None,
    accuracies: Mapping[str, float],
    progress: Progress,
) -> _Opened:
    """Loads the runs, checks that they are one model, and evaluates them."""
    models = {request: load_frozen(request.run, request.options) for request in requests}
    model = _one_request(models)
    names = _names(models)
    unknown = sorted(set(accuracies) - set(names.values()))
    if unknown:
        raise InputError(
            f"an accuracy is given for {', '.join(unknown)}, but the paths are {', '.join(names.values())}"
        )
    data = data or dataset_of(requests[0].run)
    if data is not None:
        dataset_samples(data, model, 1)  # refuses another model's
    worth = {}
    progress.start("evaluating", len(models), "paths")
    for request, frozen in models.items():
        worth[request] = worth_of(request.run, frozen, data, accuracies.get(names[request]))
        progress.advance(1, path=names[request])
    progress.finish()
    return _Opened(
        model,
        names,
        worth,
        {r: m.representation for r, m in models.items()},
        {r: m.fingerprint for r, m in models.items()},
        {r: m.bytes for r, m in models.items()},
        data,
    )


def worth_of(run: str, frozen: FrozenModel, data: FilePath | None, given: float | None) -> Worth:
    """Accuracy and AUC: measured on the data as the path computes, else as the run's training wrote them."""
    if given is not None:
        return Worth(given, None, GIVEN)
    if data is not None:
        return _evaluated(frozen, Dataset(data))
    for split in ("test", "validation"):
        lines = [
            m for m in RunFolder(run).metrics() if m.get("kind") == "evaluation" and m.get("split") == split
        ]
        if lines:
            last = lines[-1]
            return Worth(
                float(last["accuracy"]),
                None if last["auc"] is None else float(last["auc"]),
                f"training's evaluation on {last['rows']:,} rows of its {split} split",
            )
    raise InputError(
        f"the accuracy of {run} is unknown: its metrics.jsonl has no evaluation and its dataset is not here; "
        "name one with --data, or give the accuracy with --accuracy"
    )


def _evaluated(frozen: FrozenModel, dataset: Dataset) -> Worth:
    for split in ("test", "validation", "train"):
        start, stop = dataset.info.splits.get(split, (0, 0))
        if stop > start:
            break
    stop = min(stop, start + EVALUATED_ROWS)
    logits, labels = [], []
    for batch in BatchStream(dataset, start, stop, _BATCH):
        ids = batch.values.view(-1, batch.rows).numpy()
        p = frozen.predict(batch.dense.numpy(), ids, checked=True).astype(np.float64)
        p = np.clip(p, 1e-12, 1 - 1e-12)
        logits.append(np.log(p / (1 - p)).astype(np.float32))
        labels.append(batch.labels.numpy().astype(np.uint8))
    found = compute_metrics(np.concatenate(logits), np.concatenate(labels))
    what = f"{stop - start:,} rows of the {split} split of {dataset.info.name}"
    return Worth(found.accuracy, found.auc, f"measured on {what}")


def _one_request(models: Mapping[PathRequest, FrozenModel]) -> ServedModel:
    """What a request to every run looks like; raises InputError where they differ."""
    (first, one), *others = models.items()
    for request, other in others:
        difference = one.request.difference(other.request)
        if difference is not None:
            raise InputError(
                f"{first.run} and {request.run} are not the same model: {difference}; a profile is of one "
                "model in several representations"
            )
    return one.request


def _names(models: Mapping[PathRequest, FrozenModel]) -> dict[PathRequest, str]:
    """Each path's name before the `@`: the one given, the representation, or where two have it the run's."""
    by_run = {r.run: m.representation for r, m in models.items() if r.name is None}
    kinds = list(by_run.values())
    names: dict[PathRequest, str] = {}
    for request, frozen in models.items():
        own = frozen.representation
        name = request.name or (own if kinds.count(own) == 1 else FilePath(request.run).resolve().name)
        name += request.suffix
        if name in names.values():
            raise InputError(
                f"two paths are called {name!r}; name them: recsys-opt profile NAME=RUN NAME=RUN"
            )
        names[request] = name
    return names


def _path(found: MeasuredPath, device: str, worth: Worth) -> Path:
    return Path(
        found.source.name,
        found.representation,
        device,
        worth.accuracy,
        found.bytes,
        found.times,
        auc=worth.auc,
        accuracy_from=worth.source,
        run=FilePath(found.source.run).resolve().name,
        fingerprint=found.fingerprint,
        options=found.source.options.to_json(),
    )


def _circumstances(
    found: Sequence[MeasuredPath], samples: Samples, measure: MeasureSettings
) -> dict[str, Any]:
    return {
        **environment(),
        "clock": measure.clock,
        "idle_s": measure.idle_s,
        "seconds_a_path": measure.seconds,
        "p50_within": measure.p50_within,
        "p99_within": measure.p99_within,
        "queries": samples.what,
        "noise": {p.source.name: p.noise for p in found},
        "unsettled": {p.source.name: list(p.unsettled) for p in found if p.unsettled},
    }


def _kind(text: str) -> Literal["cpu", "cuda"]:
    return "cuda" if text == "cuda" else "cpu"


def _check_devices(settings: ProfileSettings) -> None:
    if "cuda" in settings.devices and not torch.cuda.is_available():
        raise InputError(
            "there is no CUDA device here; measure on the machine that has it and merge the profiles "
            "(recsys-opt profile merge), or assume one (recsys-opt profile assume)"
        )


def _device(kind: str, name: str, settings: ProfileSettings) -> Device:
    measure = settings.measure
    if kind == "cuda":
        about = torch.cuda.get_device_properties(0)
        memory, what = about.total_memory, str(about.name)
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        what = cpu_model()
    return Device(
        name,
        _kind(kind),
        measure.workers,
        measure.threads,
        settings.memory_bytes or memory,
        what=what,
    )
