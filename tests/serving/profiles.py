"""Profiles for tests: service times that are affine in the size, times a lognormal spread."""

from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from recsys_opt.serving.profile import Device, Path, Profile, ServedModel, ServiceTime

SIZES = (1, 16, 64, 128, 256, 512, 1024, 2048, 4096)
MODEL = ServedModel(
    dense_features=3,
    features=("C1", "C2", "C3", "C4"),
    cardinalities=(4, 60, 700, 5000),
    embedding_dim=16,
    what="a small model for tests",
)


def affine_times(
    fixed_s: float,
    per_sample_s: float,
    *,
    spread: float = 0.1,
    sizes: Sequence[int] = SIZES,
    quantiles: int = 64,
) -> tuple[ServiceTime, ...]:
    """Means fixed_s + size * per_sample_s; `spread` is the logarithm's standard deviation (0: none)."""
    normal = NormalDist()
    z = np.array([normal.inv_cdf((k + 0.5) / quantiles) for k in range(quantiles)])
    factors = np.exp(spread * z)
    factors /= factors.mean()
    return tuple(
        ServiceTime(size, tuple(float(t) for t in (fixed_s + size * per_sample_s) * factors), runs=1000)
        for size in sizes
    )


def make_device(
    name: str, kind: Literal["cpu", "cuda"] = "cpu", *, workers: int = 1, assumed: bool = False
) -> Device:
    return Device(
        name, kind, workers, threads=1, memory_bytes=4 << 30, assumed=assumed, what=f"{name} for tests"
    )


def make_path(
    name: str, accuracy: float, times: tuple[ServiceTime, ...], *, megabytes: int = 10, **known: Any
) -> Path:
    representation, _, device = name.partition("@")
    return Path(name, representation, device, accuracy, megabytes * 10**6, times, **known)


def make_profile(
    paths: Mapping[str, tuple[float, float, float]],
    *,
    workers: Mapping[str, int] | None = None,
    spread: float = 0.1,
    sizes: Sequence[int] = SIZES,
    quantiles: int = 64,
    assumed: frozenset[str] = frozenset(),
) -> Profile:
    """Paths by name -> (accuracy, fixed seconds, seconds a sample), on the devices that their names say.

    workers  of each device, by name; 1 of others
    assumed  names of devices whose figures are assumed
    """
    devices = dict.fromkeys(name.partition("@")[2] for name in paths)
    return Profile(
        MODEL,
        tuple(
            make_device(
                d,
                "cuda" if d.startswith("gpu") else "cpu",
                workers=(workers or {}).get(d, 1),
                assumed=d in assumed,
            )
            for d in devices
        ),
        tuple(
            make_path(
                name,
                accuracy,
                affine_times(fixed, each, spread=spread, sizes=sizes, quantiles=quantiles),
                assumed=name.partition("@")[2] in assumed,
            )
            for name, (accuracy, fixed, each) in paths.items()
        ),
        {d: {"cpu": "a machine for tests", "command": "pytest"} for d in devices},
    )


def cpu_gpu_profile(**settings: Any) -> Profile:
    """Table, DHE and hybrid on a CPU core and on an assumed GPU, about as those of Criteo Kaggle."""
    return make_profile(
        {
            "table@cpu": (0.7879, 100e-6, 14e-6),
            "dhe@cpu": (0.7894, 300e-6, 30e-6),
            "hybrid@cpu": (0.7898, 500e-6, 45e-6),
            "table@gpu": (0.7879, 500e-6, 0.7e-6),
            "dhe@gpu": (0.7894, 700e-6, 2e-6),
            "hybrid@gpu": (0.7898, 800e-6, 2.6e-6),
        },
        assumed=frozenset({"gpu"}),
        **settings,
    )
