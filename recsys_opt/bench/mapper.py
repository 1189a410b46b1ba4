"""How near ways to choose a device's paths come to the exact optimum, over random cases and a profile."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from recsys_opt.errors import InfeasibleError, RecsysOptError
from recsys_opt.progress import Progress, SilentProgress
from recsys_opt.serving.mapper import Choice, Mapper
from recsys_opt.serving.profile import Device, Path, Profile, ServedModel, ServiceTime
from recsys_opt.serving.sizes import Sizes, parse_sizes

METHODS: dict[str, Callable[[Mapper], Choice]] = {
    "mp-rec": Mapper.mp_rec,
    "ours": Mapper.chosen,
    "exact": Mapper.exact,
}
_SIZES = (1, 128, 1024, 4096)
_SLA_S = 25e-3


def random_profile(random: np.random.Generator, devices: int, paths: int) -> Profile:
    """`paths` on each device; the more accurate are the slower and the larger, more or less."""
    owned = []
    for d in range(devices):
        speed = 10 ** random.uniform(-1.5, 0)
        for k in range(paths):
            rank = random.uniform()
            accuracy = 0.78 + 0.01 * rank + random.normal(0, 0.001)
            fixed = speed * 1e-3 * 10 ** random.uniform(-0.5, 0.5)
            each = speed * 1e-5 * 10 ** (rank + random.normal(0, 0.3))
            size = 10 ** random.uniform(7, 9.5)
            times = tuple(ServiceTime(n, (fixed + n * each,) * 2, 1) for n in _SIZES)
            owned.append(Path(f"p{k}@d{d}", "random", f"d{d}", accuracy, int(size), times))
    about = [Device(f"d{d}", "cpu", 1, 1, 1 << 40) for d in range(devices)]
    return Profile(ServedModel(13, ("C1",), (10,), 16), tuple(about), tuple(owned))


def mapped(profile: Profile, memory: dict[str, int], sizes: Sizes, load: float, case: str) -> dict[str, Any]:
    """A case's row: the worth of each method's choice over that of the exact one, and its seconds.

    load  as a share of what all paths that fit could answer
    """
    half = Mapper(profile, memory, sizes=sizes, sla=_SLA_S)
    row: dict[str, Any] = {
        "case": case,
        "paths": len(profile.paths),
        "load": load,
        "feasible": len(half.candidates),
    }
    values = {}
    for name, method in METHODS.items():
        mapper = Mapper(profile, memory, sizes=sizes, sla=_SLA_S, rate=half.rate * 2 * load)
        began = time.perf_counter()
        choice = method(mapper)
        row[f"{name}_s"] = round(time.perf_counter() - began, 4)
        values[name] = mapper.worth(choice)[0]
    for name in ("mp-rec", "ours"):
        row[name] = round(values[name] / values["exact"], 6)
        if row[name] > 1.0 + 1e-6:
            raise RecsysOptError(
                f"{case}: {name} is worth {row[name]} of the exact optimum, which is none then"
            )
    return row


def run(
    cases: int, paths: Sequence[int], profile: Profile | None, seed: int, *, progress: Progress | None = None
) -> list[dict[str, Any]]:
    """Rows of random cases, and of the profile under a sweep of memory limits and loads."""
    progress = progress or SilentProgress()
    sizes = parse_sizes("lognormal:mean=128")
    rows = []
    progress.start("mapping", cases * len(paths), "cases")
    for count in paths:
        for k in range(cases):
            random = np.random.default_rng([seed, count, k])
            devices = int(random.integers(1, 4))
            made = random_profile(random, devices, count)
            memory = {d.name: int(10 ** random.uniform(8.3, 9.7)) for d in made.devices}
            load = float(random.choice([0.3, 0.6, 0.9, 1.2]))
            progress.advance(1, paths=str(devices * count))
            try:
                rows.append(mapped(made, memory, sizes, load, f"random {devices} x {count}"))
            except InfeasibleError:
                continue
    progress.finish()
    if profile is not None:
        rows += list(_swept(profile, sizes))
    return rows


def _swept(profile: Profile, sizes: Sizes) -> list[dict[str, Any]]:
    """The profile with less and less memory on every device."""
    total = {d.name: sum(p.bytes for p in profile.on_device(d.name)) for d in profile.devices}
    rows = []
    for share in (0.01, 0.02, 0.35, 0.5, 0.75, 1.0):
        for load in (0.3, 0.6, 0.9):
            memory = {name: int(share * size) for name, size in total.items()}
            try:
                rows.append(mapped(profile, memory, sizes, load, f"profile, {share:.0%} of its bytes"))
            except InfeasibleError:
                continue
    return rows


def text(rows: Sequence[dict[str, Any]]) -> str:
    """Worst and median ratios by case."""
    lines = [
        f"{'case':30}{'cases':>7}{'mp-rec worst':>14}{'median':>9}{'ours worst':>12}{'median':>9}"
        f"{'exact s':>9}"
    ]
    for case in dict.fromkeys(r["case"] for r in rows):
        own = [r for r in rows if r["case"] == case]
        line = f"{case:30}{len(own):>7}"
        for name, wide in (("mp-rec", 14), ("ours", 12)):
            ratios = [r[name] for r in own]
            line += f"{min(ratios):>{wide}.4f}{float(np.median(ratios)):>9.4f}"
        lines.append(line + f"{max(r['exact_s'] for r in own):>9.2f}")
    return "\n".join(lines)
