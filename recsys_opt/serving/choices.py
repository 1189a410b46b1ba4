"""Policies by name for simulations: "adaptive", "static:table@cpu", "threshold", or a class in a file."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

from recsys_opt import _serving
from recsys_opt.errors import InputError
from recsys_opt.serving.held import HeldLoad, held_load
from recsys_opt.serving.profile import Profile
from recsys_opt.serving.simulation import Policy, Setup
from recsys_opt.serving.spec import Parameters

POLICIES = {
    "adaptive": "late binding, coalescing and dropping, at the price of the backlog; admit=0 rejects none "
    "at arrival",
    "earliest-finish": "the path that would be done first",
    "priced": "accuracy against the time that is left, bound at arrival",
    "mp-rec": "the most accurate path that is expected to be in time (MP-Rec, as we read it)",
    "threshold": "small queries on one table path, large ones on another (DeepRecSys); the size is tuned "
    "to the workload by hill climbing, unless given: small=PATH,large=PATH,size=N",
    "static": "one path for all: path=PATH",
}
"""Name -> what it does and its options."""
_TUNING_QUERIES = 20_000
_LEAST_STEP = 1.05


def parse_policy(text: str) -> Policy:
    """A policy from a text, its options behind a colon."""
    name, _, rest = text.partition(":")
    if name not in POLICIES:
        raise InputError(
            f"policy {text!r}: {name!r} is no policy; it must be one of {', '.join(POLICIES)}, or a class of "
            "your own (--python-policy FILE:CLASS)"
        )
    given = Parameters.parse(f"policy {text!r}", rest, first="path" if name == "static" else None)
    if name == "static":
        path = given.text("path")
        given.no_more()
        return static(path)
    if name == "threshold":
        if not given.has("size"):
            given.no_more()
            return tuned_threshold()
        small, large = given.text("small"), given.text("large")
        size = given.whole("size", least=1, most=1 << 30)
        given.no_more()
        return threshold(small, large, size)
    if name == "adaptive":
        admit = bool(given.whole("admit", 1, least=0, most=1))
        given.no_more()
        return Policy(
            name if admit else "adaptive:admit=0",
            lambda fleet, setup: _serving.make_policy("adaptive", fleet, setup.sla, admit=admit),
        )
    given.no_more()
    return Policy(name, lambda fleet, setup: _serving.make_policy(name, fleet, setup.sla))


def static(path: str) -> Policy:
    """One path for all queries."""

    def make(fleet: _serving.Fleet, setup: Setup) -> _serving.Policy:
        setup.profile.path(path)  # says which there are
        return _serving.make_policy("static", fleet, setup.sla, path=path)

    return Policy(f"static:{path}", make)


def threshold(small: str, large: str, size: int) -> Policy:
    """Queries of at least `size` samples on one path, the others on another."""

    def make(fleet: _serving.Fleet, setup: Setup) -> _serving.Policy:
        for path in (small, large):
            setup.profile.path(path)
        return _serving.make_policy("threshold", fleet, setup.sla, small=small, large=large, size=size)

    return Policy(f"threshold:small={small},large={large},size={size}", make)


def tuned_threshold() -> Policy:
    """The size threshold between two devices' table paths that holds the most load, in hindsight."""
    found: dict[tuple[float, str], Policy] = {}

    def make(fleet: _serving.Fleet, setup: Setup) -> _serving.Policy:
        key = (setup.sla, setup.workload.sizes.spec)
        if key not in found:
            found[key] = tune_threshold(setup)[0]
        return found[key].make(fleet, setup)

    return Policy("threshold", make)


def tune_threshold(setup: Setup) -> tuple[Policy, HeldLoad]:
    """Climbs from the mean size in ever smaller steps while the load held grows (DeepRecSys, ISCA 2020)."""
    small, large = table_pair(setup.profile)
    known: dict[int, HeldLoad] = {}

    def held(size: int) -> float:
        if size not in known:
            known[size] = held_load(setup, threshold(small, large, size), runs=2, queries=_TUNING_QUERIES)
        return known[size].load

    best, step = max(1, round(setup.workload.sizes.mean)), 4.0
    while step > _LEAST_STEP:
        around = [max(1, round(best * step)), max(1, round(best / step))]
        better = max(around, key=held)
        if held(better) > held(best):
            best = better
        else:
            step = step**0.5
    return threshold(small, large, best), known[best]


def table_pair(profile: Profile) -> tuple[str, str]:
    """The paths of a threshold: the fastest table path for the largest batches, and another device's for one.

    Where no two devices have a table path, other representations' paths serve.
    """
    tables = [p for p in profile.paths if p.representation == "table"]
    if len({p.device for p in tables}) < 2:
        tables = list(profile.paths)
    large = min(tables, key=lambda p: p.expected(p.max_size) / p.max_size)
    others = (
        [p for p in tables if p.device != large.device] or [p for p in tables if p is not large] or [large]
    )
    return min(others, key=lambda p: p.expected(1)).name, large.name


def python_policy(text: str) -> Policy:
    """A policy written in Python, "file.py:Class": a subclass of `recsys_opt._serving.Policy`.

    Its class is called with the fleet and the SLA in seconds.
    """
    file, colon, name = text.rpartition(":")
    path = Path(file)
    if not colon or not name.isidentifier():
        raise InputError(f"{text!r} names no class of a file; write FILE.py:CLASS")
    if not path.is_file():
        raise InputError(f"{path} does not exist, or is no file; write FILE.py:CLASS")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is no Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"{path} fails: {type(error).__name__}: {error}; mend it") from error
    found = getattr(module, name, None)
    if not (isinstance(found, type) and issubclass(found, _serving.Policy)):
        raise InputError(f"{path} has no class {name} that is a recsys_opt._serving.Policy")
    make: Callable[[_serving.Fleet, float], _serving.Policy] = found
    return Policy(name, lambda fleet, setup: make(fleet, setup.sla))
