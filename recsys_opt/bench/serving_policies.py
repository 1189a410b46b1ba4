"""Policies held against each other on a profile: loads held, accuracy, bursts, a day, a lost device.

Nothing is tuned to a workload but the size threshold, which hill climbing tunes to each in hindsight. The
paper's metric, correct predictions a second against the tables on the CPU, is given with the accuracy-blind
baseline: the adaptive policy with table paths alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from recsys_opt.progress import Progress, SilentProgress
from recsys_opt.serving.choices import parse_policy, table_pair
from recsys_opt.serving.events import Event
from recsys_opt.serving.held import HeldLoad, held_load
from recsys_opt.serving.profile import Profile
from recsys_opt.serving.simulation import Policy, Setup, Summary, simulate
from recsys_opt.serving.sizes import parse_sizes
from recsys_opt.serving.workload import Arrivals, make_workload, parse_arrivals

SLAS = (0.01, 0.025, 0.1)
OURS, BLIND, THRESHOLD, MP_REC = "adaptive", "tables only", "threshold", "mp-rec"
POLICIES = (OURS, "earliest-finish", "priced", MP_REC, THRESHOLD)
LOADS = (0.5, 0.9)
"""Of the load that the adaptive policy holds."""
PAPER_LOAD = 1000.0
"""Queries a second of MP-Rec's workload, as we read it."""
BURST, DAY = "mmpp:peak=3,share=0.2,dwell=1s", "diurnal:swing=0.8,period=60s"
_SPAN = 60.0
"""Seconds of the runs whose load or devices change."""


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    sizes: str = "lognormal:mean=128"
    slas: tuple[float, ...] = SLAS
    runs: int = 5
    """Of each load held."""
    queries: int = 100_000
    """Of each of these."""
    seed: int = 0


def measure(
    name: str, profile: Profile, settings: Settings, progress: Progress | None = None
) -> list[dict[str, Any]]:
    """Rows of every kind: "held", "load", "change" and "paper"."""
    progress = progress or SilentProgress()
    rows: list[dict[str, Any]] = []
    for sla in settings.slas:
        workload = make_workload(parse_arrivals("poisson"), parse_sizes(settings.sizes), 1.0)
        setup = Setup(profile, workload, sla, queries=2 * settings.queries, seed=settings.seed)
        about = {"profile": name, "sla": sla, "assumption": profile.assumption()}
        entrants = _entrants(setup)
        progress.start(f"{name}, SLA {1e3 * sla:g} ms", len(entrants), "policies")
        held = {}
        for label, (own, policy) in entrants.items():
            held[label] = held_load(own, policy, runs=settings.runs, queries=settings.queries)
            progress.advance(1)
        rows += [{**about, "kind": "held", **row} for row in _held(held)]
        ours = held[OURS].load
        if ours <= 0:
            continue
        for share in LOADS:
            for label in (OURS, MP_REC, THRESHOLD, BLIND):
                if label in entrants:
                    own, policy = entrants[label]
                    found = simulate(own.at(rate=share * ours), policy).summary
                    rows.append({**about, "kind": "load", "of_held": share, **_figures(label, found)})
        for what, changed in _changes(setup, ours):
            found = simulate(changed, parse_policy(OURS)).summary
            rows.append({**about, "kind": "change", "change": what, **_figures(OURS, found)})
        rows += [{**about, "kind": "paper", **row} for row in _paper(entrants, held)]
    return rows


def _entrants(setup: Setup) -> dict[str, tuple[Setup, Policy]]:
    """Each with the profile that it sees."""
    found = {text: (setup, parse_policy(text)) for text in POLICIES}
    on_cpu, elsewhere = table_pair(setup.profile)
    for path in (on_cpu, elsewhere):
        found[f"static:{path}"] = (setup, parse_policy(f"static:{path}"))
    tables = [p.name for p in setup.profile.paths if p.representation == "table"]
    if tables and len(tables) < len(setup.profile.paths):
        blind = setup.at(profile=setup.profile.with_paths(tables))
        found[BLIND] = (blind, replace(parse_policy(OURS), name=BLIND))
    return found


def _held(held: dict[str, HeldLoad]) -> list[dict[str, Any]]:
    def ratio(load: float, other: str) -> float | None:
        return load / held[other].load if held[other].load > 0 else None

    return [
        {
            "policy": label,
            "load": found.load,
            "within": found.within,
            "bound": found.bound,
            "of_bound": found.ratio,
            "times_threshold": ratio(found.load, THRESHOLD),
            "times_mp_rec": ratio(found.load, MP_REC),
        }
        for label, found in held.items()
    ]


def _changes(setup: Setup, held: float) -> list[tuple[str, Setup]]:
    """Loads and devices that change, about half of the load held on the whole."""
    gpu = setup.profile.path(table_pair(setup.profile)[1]).device

    def of(arrivals: Arrivals, rate: float, events: Sequence[Event] = ()) -> Setup:
        workload = make_workload(arrivals, setup.workload.sizes, rate)
        queries = min(2_000_000, max(1000, round(_SPAN * rate)))
        return setup.at(workload=workload, queries=queries, events=tuple(events), warmup=None)

    half = 0.5 * held
    span = min(_SPAN, 2_000_000 / half)
    lost = (Event(span / 3, gpu, float("inf")), Event(2 * span / 3, gpu, 1.0))
    slow = (Event(span / 3, gpu, 2.0), Event(2 * span / 3, gpu, 1.0))
    return [
        (BURST, of(parse_arrivals(BURST), half)),
        (DAY, of(parse_arrivals(DAY), half)),
        (f"{gpu} lost for a third", of(parse_arrivals("poisson"), half, lost)),
        (f"{gpu} twice as slow for a third", of(parse_arrivals("poisson"), half, slow)),
    ]


def _paper(entrants: dict[str, tuple[Setup, Policy]], held: dict[str, HeldLoad]) -> list[dict[str, Any]]:
    """Correct predictions a second, over the most that the tables on the CPU reach at any load.

    At MP-Rec's load, as we read it, and at the load that each policy holds.
    """
    on_cpu = next(label for label in entrants if label.startswith("static:"))
    most = _most_correct(*entrants[on_cpu], held[on_cpu].bound)
    rows = []
    for label, (setup, policy) in entrants.items():
        there = simulate(setup.at(rate=PAPER_LOAD), policy).summary.correct_per_s
        load = held[label].load
        own = simulate(setup.at(rate=load), policy).summary.correct_per_s if load > 0 else None
        rows.append(
            {
                "policy": label,
                "load": PAPER_LOAD,
                "correct_per_s": there,
                "times_table_on_cpu": there / most if most else None,
                "correct_per_s_at_held": own,
                "times_table_on_cpu_at_held": own / most if most and own is not None else None,
                "most_correct_per_s_of_table_on_cpu": most,
            }
        )
    return rows


def _most_correct(setup: Setup, policy: Policy, bound: float) -> float:
    """The most correct predictions a second that a policy reaches at any load, by steps of a fifth."""
    most, load = 0.0, bound
    while load > bound / 2000:
        found = simulate(setup.at(rate=load), policy).summary.correct_per_s
        if found < most / 2:  # past the peak, downwards
            break
        most, load = max(most, found), load / 1.2
    return most


def _figures(label: str, found: Summary) -> dict[str, Any]:
    captured, most = found.gain_captured, found.bound_gain
    return {
        "policy": label,
        "load": found.load,
        "p50": found.p50,
        "p99": found.p99,
        "in_time": found.in_time,
        "rejected": found.rejected,
        "late_of_admitted": found.late_of_admitted,
        "accuracy": found.accuracy,
        "gain_captured": captured,
        "bound_gain": most,
        "of_bound_gain": captured / most if captured is not None and most else None,
        "correct_per_s": found.correct_per_s,
        "of_bound": found.bound_ratio,
    }
