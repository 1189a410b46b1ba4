"""What is served: the profile's paths that this machine can run, checked against their runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from recsys_opt._serving import Fleet
from recsys_opt.errors import InputError
from recsys_opt.server.settings import Settings
from recsys_opt.server.worker import ModelTask, Task
from recsys_opt.serving.as_served import padded
from recsys_opt.serving.profile import Device, Profile, fleet


@dataclass(frozen=True, eq=False)
class Served:
    """Paths with their models, and the workers that will hold them."""

    profile: Profile
    """With the served paths and their devices alone."""
    runs: Path
    cores: tuple[int, ...]
    """That the server may use."""
    spin_s: float
    """For how long a worker waits for its next batch without sleep."""
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
    def of(cls, settings: Settings, cores: Iterable[int]) -> Served:
        """Reads the profile and chooses the paths."""
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
                raise InputError(
                    f"path {path.name} is assumed, not measured, and cannot be served; measure it: "
                    "recsys-opt profile"
                )
            if path.run is None:
                raise InputError(f"path {path.name} names no run; profile a trained one: recsys-opt profile")
        return cls(profile, settings.runs, tuple(sorted(cores)), settings.spin_s)

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
            samples=padded(max(p.max_size for p in paths)),
            cores=self._cores(worker) or self.cores,  # not those that the server keeps for itself
            threads=device.threads,
            spin_s=self.spin_s,
        )

    def _place(self, worker: int) -> tuple[Device, int]:
        for device in self.profile.devices:
            if worker < device.workers:
                return device, worker
            worker -= device.workers
        raise IndexError(f"there is no worker {worker} more")

    def own_cores(self) -> tuple[int, ...]:
        """For the server's own process: those that no worker keeps to, or all where there are none."""
        taken = {core for worker in range(self.fleet.workers) for core in self._cores(worker)}
        return tuple(core for core in self.cores if core not in taken) or self.cores

    def _cores(self, worker: int) -> tuple[int, ...]:
        """A CPU worker's, from the last one downward; none: it may run anywhere."""
        device, number = self._place(worker)
        if device.kind != "cpu":
            return ()
        before = 0
        for other in self.profile.devices:
            if other.name == device.name:
                break
            before += other.workers * other.threads if other.kind == "cpu" else 0
        first = before + number * device.threads
        count = len(self.cores)
        return tuple(sorted({self.cores[-1 - (first + k) % count] for k in range(device.threads)}))
