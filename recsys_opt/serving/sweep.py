"""Many simulations: a grid of loads and SLAs, and what a page draws of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from recsys_opt.errors import InputError
from recsys_opt.serving.bound import held_bound
from recsys_opt.serving.simulation import Policy, Run, Setup, Summary, simulate
from recsys_opt.serving.spec import seconds

POINTS = 12
"""Of a range, unless it says how many."""
TIMELINE_BINS = 120
_SIZE_CLASSES = 32


def parse_sweep(text: str) -> dict[str, tuple[float, ...]]:
    """Loads and SLAs from a text: "load=100:5000:log,sla=10ms,25ms"; see `recsys-opt simulate --help`."""
    found: dict[str, list[float]] = {}
    name = ""
    for part in text.split(","):
        before, equals, value = part.partition("=")
        if equals:
            name = before.strip()
            if name not in ("load", "sla"):
                raise InputError(f"sweep {text!r}: {name!r}; a sweep is over load and sla")
            if name in found:
                raise InputError(f"sweep {text!r}: {name} is given twice; list its values behind one {name}=")
            found[name] = []
        elif not name:
            raise InputError(f"sweep {text!r}: {part!r} has no name; write load=100:5000:log,sla=10ms,25ms")
        else:
            value = part
        found[name] += _range(text, name, value.strip())
    return {key: tuple(values) for key, values in found.items()}


def _range(text: str, name: str, value: str) -> list[float]:
    parts = value.split(":")
    logarithmic, points = False, POINTS
    for option in parts[2:]:
        if option in ("log", "lin"):
            logarithmic = option == "log"
        elif option.isdigit() and 2 <= int(option) <= 1000:
            points = int(option)
        else:
            raise InputError(
                f"sweep {text!r}: {option!r}; a range is FROM:TO, with :log and :POINTS (2 .. 1000)"
            )
    ends = [_value(text, name, part) for part in parts[:2]]
    if len(ends) == 1:
        return ends
    if ends[0] >= ends[1]:
        raise InputError(f"sweep {text!r}: {value}; a range goes from the smaller to the larger value")
    low, high = ends
    spaced = np.geomspace(low, high, points) if logarithmic else np.linspace(low, high, points)
    return [float(f"{v:.6g}") for v in spaced]


def _value(text: str, name: str, value: str) -> float:
    try:
        found = seconds(value) if name == "sla" else float(value)
    except InputError as error:
        raise InputError(f"sweep {text!r}: {name} = {error}") from None
    except ValueError:
        raise InputError(f"sweep {text!r}: {name} = {value!r}; it must be a number") from None
    if not (math.isfinite(found) and found > 0):
        raise InputError(f"sweep {text!r}: {name} = {value}; it must be above 0")
    return found


def sweep(
    setup: Setup,
    policies: Sequence[Policy],
    over: dict[str, tuple[float, ...]],
    *,
    done: Callable[[], object] = lambda: None,
) -> list[Summary]:
    """Each policy at each load and SLA, with the same random numbers."""
    slas = over.get("sla", (setup.sla,))
    loads = over.get("load") or (setup.workload.rate,)
    found = []
    for sla, load, policy in itertools.product(slas, loads, policies):
        found.append(simulate(setup.at(sla=sla, rate=load), policy).summary)
        done()
    return found


def loads_to_show(setup: Setup, points: int = 16) -> tuple[float, ...]:
    """Loads from far below to a little above what any policy can hold."""
    top = 1.15 * held_bound(setup.profile, setup.workload.sizes, setup.sla)
    if top <= 0:
        raise InputError(
            f"no path of the profile answers anything inside an SLA of {setup.sla:g} s; give a longer one"
        )
    return tuple(float(f"{v:.4g}") for v in np.geomspace(top / 100, top, points))


def bin_width(setup: Setup) -> float:
    """Seconds of a timeline's bins."""
    span = setup.queries / setup.workload.rate
    return max(span / TIMELINE_BINS, 1e-6)


def timeline(run: Run, bin_seconds: float) -> dict[str, Any]:
    """By bin, JSON values: what arrived, waited, was computed by each path, and became of the queries."""
    counted = run.result.timeline
    outcomes = ("in_time", "late", "dropped", "rejected")
    return {
        "bin_seconds": bin_seconds,
        "arrived": counted["arrived"].tolist(),
        "waiting_samples": counted["waiting_samples"].tolist(),
        "outcomes": {name: counted["outcomes"][:, at].tolist() for at, name in enumerate(outcomes)},
        "path_samples": {
            name: counted["path_samples"][:, at].tolist() for at, name in enumerate(run.summary.path_samples)
        },
    }


def size_choices(run: Run) -> dict[str, Any]:
    """For queries of 2^i .. 2^(i + 1) - 1 samples: the share of their samples that each path computed."""
    samples = run.result.class_samples
    used = np.flatnonzero(samples.sum(axis=0))
    shares = samples[:, used] / samples[:, used].sum(axis=0)
    outcomes = run.result.class_outcomes[:, used]
    return {
        "from": [int(2**i) for i in used],
        "path_shares": {name: shares[at].tolist() for at, name in enumerate(run.summary.path_samples)},
        "in_time": (outcomes[0] / np.maximum(outcomes.sum(axis=0), 1)).tolist(),
    }
