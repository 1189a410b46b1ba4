"""What is served: the profile's paths that this machine can run, checked against their runs."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from recsys_opt._serving import Fleet
from recsys_opt.errors import InputError
from recsys_opt.server.settings import Settings
from recsys_opt.server.worker import ModelTask, Task
from recsys_opt.serving.profile import Device, Profile, fleet


@dataclass(frozen=True, eq=False)
class Served:
    """Paths with their models, and the workers that will hold them."""

    profile: Profile
    """With the served paths and their devices alone."""
    runs: Path
    fleet: Fleet = field(init=False)
    path_in_worker: tuple[int, ...] = field(init=False)
    """By number of the path: which one it is among its device's own."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "fleet", fleet(self.profile))
        numbers = []
        for path in self.profile.paths:
            names = [p.name for p in self.profile.on_device(path.device)]
            numbers.append(names.index(path.name))
        object.__setattr__(self, "path_in_worker", tuple(numbers))

    @classmethod
    def of(cls, settings: Settings) -> Served:
        """Reads the profile, chooses the paths, and holds them against their runs."""
        profile = Profile.load(settings.profile)
        if settings.paths:
            profile = profile.with_paths(settings.paths)
        else:
            measured = [p.name for p in profile.paths if not p.assumed]
            if not measured:
                raise InputError(
                    f"all paths of {settings.profile} are assumed: there is nothing to serve; measure some: "
                    "recsys-opt profile"
                )
            profile = profile.with_paths(measured)
        for path in profile.paths:
            if path.assumed:
                raise InputError(f"path {path.name} is assumed, not measured; it cannot be served")
            if path.run is None:
                raise InputError(f"path {path.name} names no run; profile a trained one: recsys-opt profile")
        return cls(profile, settings.runs)

    def devices_of_workers(self) -> list[str]:
        """The device of each worker, in the scheduler's order."""
        return [d.name for d in self.profile.devices for _ in range(d.workers)]

    def task(self, worker: int) -> Task:
        """What a worker is told."""
        device, number = self._place(worker)
        paths = self.profile.on_device(device.name)
        return Task(
            name=f"{device.name}:{number}",
            models=tuple(
                ModelTask(p.name, str(self.runs / (p.run or "")), p.fingerprint, device.kind, p.options)
                for p in paths
            ),
            model=self.profile.model,
            samples=max(p.max_size for p in paths),
            cores=self._cores(worker),
            threads=device.threads,
        )

    def _place(self, worker: int) -> tuple[Device, int]:
        for device in self.profile.devices:
            if worker < device.workers:
                return device, worker
            worker -= device.workers
        raise IndexError(f"there is no worker {worker} more")

    def _cores(self, worker: int) -> tuple[int, ...]:
        """From the last core downward: the server's own work finds the first ones free."""
        device, _ = self._place(worker)
        if device.kind != "cpu":
            return ()
        cores = sorted(os.sched_getaffinity(0), reverse=True)
        before = 0
        left = worker
        for other in self.profile.devices:
            taken = min(left, other.workers)
            before += taken * other.threads if other.kind == "cpu" else 0
            left -= taken
            if other.name == device.name:
                break
        return tuple(sorted(cores[(before + k) % len(cores)] for k in range(device.threads)))
