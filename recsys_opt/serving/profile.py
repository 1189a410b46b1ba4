"""profile.json: how long each path takes for a query of each size, what it is worth and what it holds.

A path is one representation of the whole model on one device, "dhe@cpu". Its service times are
distributions: for every profiled size the quantiles at the probabilities (k + 0.5) / Q, k = 0 .. Q - 1, in
seconds. Between profiled sizes quantiles are linear in the size, below the first they are those of the first,
and a batch larger than the last is never formed. A worker of a device computes one batch at a time; the times
are those of one worker while the device's others work too.

A path whose times were computed rather than measured is `assumed`; whoever prints a result that rests on one
prints `Profile.assumption` with it.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path as FilePath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from recsys_opt import _serving
from recsys_opt.documents import from_document
from recsys_opt.errors import InputError
from recsys_opt.files import read_json, write_json
from recsys_opt.serving.as_served import AsServed, padded_sizes

FORMAT = "recsys_opt.profile"
VERSION = 1
GIVEN = "given, not measured"
"""`Path.accuracy_from` of an accuracy that a person put there."""
QUANTILES = 64
"""Quantiles of a size, unless somebody wants more."""


@dataclass(frozen=True)
class ServedModel:
    """What a request must look like, whichever path answers it."""

    dense_features: int
    """Numbers of a sample."""
    features: tuple[str, ...]
    """Names of its ids, in the order of a request."""
    cardinalities: tuple[int, ...]
    """Rows of each feature's table: an id is 0 .. cardinality - 1."""
    embedding_dim: int
    what: str = ""
    """For a reader: the recipe, the dataset."""

    def __post_init__(self) -> None:
        _at_least(self, 0, "dense_features")
        _at_least(self, 1, "embedding_dim")
        if not self.features:
            raise InputError("the model has no features; name at least one")
        if len(self.features) != len(self.cardinalities):
            raise InputError(
                f"{len(self.features)} features, but {len(self.cardinalities)} cardinalities; each has one"
            )
        for at, (name, rows) in enumerate(zip(self.features, self.cardinalities, strict=True)):
            if not name or name in self.features[:at]:
                raise InputError(f"features[{at}] = {name!r}; each needs a name of its own")
            if rows < 1:
                raise InputError(f"cardinalities[{at}] = {rows} (of {name}); it must be at least 1")

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """The cardinalities as an array, [F]."""
        return np.array(self.cardinalities, np.int64)

    def difference(self, other: ServedModel) -> str | None:
        """The first thing in which requests for the two models differ, or None."""
        for name in ("dense_features", "embedding_dim"):
            if getattr(self, name) != getattr(other, name):
                return f"{name} {getattr(self, name)} and {getattr(other, name)}"
        if self.features != other.features:
            for a, b in itertools.zip_longest(self.features, other.features):
                if a != b:
                    return f"feature {a or 'none'} and {b or 'none'} at one place"
        for name, a, b in zip(self.features, self.cardinalities, other.cardinalities, strict=True):
            if a != b:
                return f"feature {name} has {a:,} and {b:,} rows"
        return None


@dataclass(frozen=True)
class Device:
    """Workers that are alike and share a memory."""

    name: str
    kind: Literal["cpu", "cuda"]
    workers: int
    """Batches it computes at a time: processes on a CPU, streams on a GPU."""
    threads: int
    """Of each worker."""
    memory_bytes: int
    assumed: bool = False
    """Whether there was no such device, but figures of one."""
    what: str = ""
    """For a reader: its model, or the figures' name."""

    def __post_init__(self) -> None:
        _check_name("device", self.name)
        _at_least(self, 1, "workers", "threads", "memory_bytes")


@dataclass(frozen=True)
class ServiceTime:
    """How long a batch of one size takes, as a distribution."""

    size: int
    """Samples."""
    quantiles: tuple[float, ...]
    """Seconds at the probabilities (k + 0.5) / Q, ascending."""
    runs: int
    """That they were estimated from; 0 of an assumed path."""
    p50_within: float | None = None
    """Half the width of the median's 95 % confidence interval, as a share of the median."""
    p99_within: float | None = None
    """The same of the 99th percentile."""

    def __post_init__(self) -> None:
        _at_least(self, 1, "size")
        _at_least(self, 0, "runs")
        if not self.quantiles:
            raise InputError(f"size {self.size} has no quantiles; it needs at least one")
        before = 0.0
        for k, seconds in enumerate(self.quantiles):
            if not (math.isfinite(seconds) and seconds > 0):
                raise InputError(
                    f"size {self.size}: quantiles[{k}] = {seconds}; a time is a positive number of seconds"
                )
            if seconds < before:
                raise InputError(
                    f"size {self.size}: quantiles[{k}] = {seconds} is below quantiles[{k - 1}] = {before}; "
                    "they must ascend"
                )
            before = seconds
        for name in ("p50_within", "p99_within"):
            share = getattr(self, name)
            if share is not None and not (math.isfinite(share) and share >= 0):
                raise InputError(f"size {self.size}: {name} = {share}; it must be a share, 0 or more")

    @classmethod
    def of_samples(
        cls,
        size: int,
        seconds: Sequence[float] | NDArray[np.float64],
        quantiles: int = QUANTILES,
        **known: Any,
    ) -> ServiceTime:
        """The quantiles of measured times; `known` are further fields."""
        times = np.asarray(seconds, np.float64)
        if times.size == 0:
            raise InputError(f"size {size}: no measured time to take quantiles of")
        at = np.quantile(times, (np.arange(quantiles) + 0.5) / quantiles)
        rounded = tuple(float(f"{t:.5g}") for t in at)
        return cls(size, rounded, int(times.size), **known)

    @property
    def mean(self) -> float:
        """Seconds: the mean of the quantiles."""
        return math.fsum(self.quantiles) / len(self.quantiles)

    def quantile(self, q: float) -> float:
        """Seconds at a probability: linear between the quantiles, and the outermost beyond them."""
        return _interpolated(self.quantiles, q)


@dataclass(frozen=True)
class Path:
    """A representation of the whole model on a device."""

    name: str
    """`representation@device`, by custom."""
    representation: str
    """"table", "tt", "dhe", "hybrid", "select", or a name of one's own."""
    device: str
    accuracy: float
    """Share of predictions that are right."""
    bytes: int
    """Memory that its tables and weights take on the device."""
    times: tuple[ServiceTime, ...]
    """By ascending size, all with as many quantiles."""
    auc: float | None = None
    accuracy_from: str = ""
    """Where accuracy and AUC come from: the data they were measured on, or who gave them."""
    assumed: bool = False
    """Whether its times were computed from figures of a device, not measured."""
    run: str | None = None
    """Name of the folder of the run that it serves."""
    fingerprint: str | None = None
    """Hash of the run's weights."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """How the served model is made of the run: what `recsys_opt.serving.models` takes. JSON values only."""

    def __post_init__(self) -> None:
        if not self.name or any(c.isspace() or c == "," for c in self.name):
            raise InputError(f"a path is called {self.name!r}; its name must be a word without commas")
        if not self.representation:
            raise InputError(f"path {self.name} has no representation; name it, e.g. table")
        for name in ("accuracy", "auc"):
            share = getattr(self, name)
            if share is not None and not 0 <= share <= 1:
                raise InputError(f"path {self.name}: {name} = {share}; it must be a share, 0 .. 1")
        if self.bytes < 0:
            raise InputError(f"path {self.name}: bytes = {self.bytes}; it must not be negative")
        if not self.times:
            raise InputError(f"path {self.name} has no service times; measure it: recsys-opt profile")
        for a, b in itertools.pairwise(self.times):
            if b.size <= a.size:
                raise InputError(f"path {self.name}: size {b.size} follows {a.size}; sizes must ascend")
            if len(a.quantiles) != len(b.quantiles):
                raise InputError(
                    f"path {self.name}: {len(a.quantiles)} quantiles for size {a.size}, but "
                    f"{len(b.quantiles)} for {b.size}; all sizes must have as many"
                )

    @property
    def sizes(self) -> tuple[int, ...]:
        """Profiled sizes."""
        return tuple(t.size for t in self.times)

    @property
    def max_size(self) -> int:
        """Samples of the largest batch."""
        return self.times[-1].size

    def quantiles(self, size: int) -> tuple[float, ...]:
        """Seconds at the probabilities (k + 0.5) / Q for a batch of any size up to the largest."""
        if not 1 <= size <= self.max_size:
            raise InputError(
                f"path {self.name}: size = {size}; its batches have 1 .. {self.max_size} samples"
            )
        at = bisect.bisect_left(self.sizes, size)
        after = self.times[at]
        if after.size == size or at == 0:
            return after.quantiles
        before = self.times[at - 1]
        part = (size - before.size) / (after.size - before.size)
        return tuple(a + part * (b - a) for a, b in zip(before.quantiles, after.quantiles, strict=True))

    def expected(self, size: int) -> float:
        """Mean seconds of a batch."""
        found = self.quantiles(size)
        return math.fsum(found) / len(found)

    def quantile(self, size: int, q: float) -> float:
        """Seconds of a batch at a probability."""
        return _interpolated(self.quantiles(size), q)


@dataclass(frozen=True)
class Profile:
    """The content of profile.json."""

    model: ServedModel
    devices: tuple[Device, ...]
    paths: tuple[Path, ...]
    circumstances: Mapping[str, Any] = field(default_factory=dict)
    """By device: where, when and by which command its paths were measured; JSON values only."""
    as_served: AsServed | None = None
    """Where the times are those of batches inside a server; None: those of models by themselves."""

    def __post_init__(self) -> None:
        unique_names("devices", [d.name for d in self.devices])
        unique_names("paths", [p.name for p in self.paths])
        known = {d.name: d for d in self.devices}
        quantiles = len(self.paths[0].times[0].quantiles)
        for path in self.paths:
            if path.device not in known:
                raise InputError(
                    f"path {path.name} is on device {path.device!r}, which is none of {', '.join(known)}"
                )
            if known[path.device].assumed and not path.assumed:
                raise InputError(
                    f"path {path.name} passes for measured, but its device {path.device} is assumed"
                )
            if len(path.times[0].quantiles) != quantiles:
                raise InputError(
                    f"path {path.name} has {len(path.times[0].quantiles)} quantiles a size, but path "
                    f"{self.paths[0].name} has {quantiles}; all must have as many"
                )

    @property
    def assumed(self) -> bool:
        """Whether any path is."""
        return any(p.assumed for p in self.paths)

    def assumption(self, paths: Collection[str] | None = None) -> str | None:
        """What to print with a result that rests on these paths (default: all); None: all are measured."""
        names = [p.name for p in self.paths if p.assumed and (paths is None or p.name in paths)]
        if not names:
            return None
        devices = dict.fromkeys(self.path(n).device for n in names)
        figures = "; ".join(f"{d}: {self.device(d).what or 'no description'}" for d in devices)
        return f"ASSUMED, not measured: {', '.join(names)} ({figures})"

    def device(self, name: str) -> Device:
        """A device by name."""
        for device in self.devices:
            if device.name == name:
                return device
        raise InputError(
            f"the profile has no device {name!r}; it has {', '.join(d.name for d in self.devices)}"
        )

    def path(self, name: str) -> Path:
        """A path by name."""
        for path in self.paths:
            if path.name == name:
                return path
        raise InputError(f"the profile has no path {name!r}; it has {', '.join(p.name for p in self.paths)}")

    def on_device(self, name: str) -> tuple[Path, ...]:
        """The paths of a device, which must be there."""
        device = self.device(name)
        return tuple(p for p in self.paths if p.device == device.name)

    def with_paths(self, names: Collection[str]) -> Profile:
        """The profile with these paths alone, in its own order, and with the devices that they need."""
        chosen = {self.path(name).name for name in names}
        paths = tuple(p for p in self.paths if p.name in chosen)
        needed = {p.device for p in paths}
        return replace(self, paths=paths, devices=tuple(d for d in self.devices if d.name in needed))

    def with_accuracies(self, given: Mapping[str, float]) -> Profile:
        """The profile with accuracies from elsewhere, by paths' names before the `@`; it says so of them."""
        names = {p.name.partition("@")[0] for p in self.paths}
        unknown = sorted(set(given) - names)
        if unknown:
            raise InputError(
                f"the profile has no path {', '.join(unknown)}; it has {', '.join(sorted(names))}"
            )
        paths = []
        for path in self.paths:
            own = given.get(path.name.partition("@")[0])
            changes: dict[str, Any] = {"accuracy": own, "auc": None, "accuracy_from": GIVEN}
            paths.append(path if own is None else replace(path, **changes))
        return replace(self, paths=tuple(paths))

    def save(self, path: FilePath | str) -> None:
        """Writes profile.json whole."""
        write_json(FilePath(path), FORMAT, VERSION, self.to_json(), numbers_on_a_line=True)

    def to_json(self) -> dict[str, Any]:
        """JSON values only."""
        document = asdict(self)
        for path in document["paths"]:
            path["times"] = [{**t, "quantiles": list(t["quantiles"])} for t in path["times"]]
        document["devices"] = list(document["devices"])
        document["paths"] = list(document["paths"])
        for name in ("features", "cardinalities"):
            document["model"][name] = list(document["model"][name])
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any], where: str = "the profile") -> Profile:
        """The inverse of `to_json`; format and version are left out."""
        own = {key: value for key, value in document.items() if key not in ("format", "version")}
        return from_document(cls, own, where)

    @classmethod
    def load(cls, path: FilePath | str) -> Profile:
        """Reads what `save` wrote; refuses other formats and versions, and values that cannot be."""
        return cls.from_json(read_json(FilePath(path), FORMAT, VERSION), str(path))


def fleet(profile: Profile, paths: Collection[str] | None = None) -> _serving.Fleet:
    """The devices and paths (default: all) as the scheduler and its simulation take them, in their order."""
    if paths is not None:
        profile = profile.with_paths(paths)
    devices = _serving.Fleet()
    numbers = {d.name: devices.add_device(d.name, d.workers) for d in profile.devices}
    for path in profile.paths:
        sizes, times = list(path.sizes), np.array([t.quantiles for t in path.times])
        if profile.as_served is not None:
            # A batch takes the time of the size that it is filled up to.
            full = sorted({min(s, path.max_size) for s in padded_sizes(path.max_size)})
            at = {s: path.quantiles(s) for s in full}
            sizes = sorted({1, *full, *(s + 1 for s in full if s < path.max_size)})
            times = np.array([at[full[bisect.bisect_left(full, s)]] for s in sizes])
        devices.add_path(path.name, numbers[path.device], path.accuracy, np.array(sizes), times)
    return devices


def _interpolated(quantiles: Sequence[float], q: float) -> float:
    if not 0 <= q <= 1:
        raise InputError(f"q = {q}; a probability is 0 .. 1")
    position = min(max(q * len(quantiles) - 0.5, 0.0), len(quantiles) - 1.0)
    low = int(position)
    high = min(low + 1, len(quantiles) - 1)
    return quantiles[low] + (position - low) * (quantiles[high] - quantiles[low])


def _at_least(owner: Any, least: int, *names: str) -> None:
    for name in names:
        if getattr(owner, name) < least:
            raise InputError(f"{name} = {getattr(owner, name)}; it must be at least {least}")


def _check_name(what: str, name: str) -> None:
    if not name or any(c.isspace() or c in "@," for c in name):
        raise InputError(f"a {what} is called {name!r}; its name must be a word without '@' and commas")


def unique_names(what: str, names: Sequence[str], owner: str = "the profile has") -> None:
    """Raises InputError where two of the names are equal, or there is none."""
    if not names:
        raise InputError(f"the profile has no {what}; it needs at least one")
    for at, name in enumerate(names):
        if name in names[:at]:
            raise InputError(f"{owner} two {what} called {name!r}; give each its own name")
