"""A simulation as a recorded run."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_opt.serving.simulation import Run, Setup
from recsys_opt.serving.trace import State, Trace

Array = NDArray[Any]
_STATES = np.array([State.ANSWERED, State.ANSWERED, State.DROPPED, State.REJECTED], dtype=np.uint8)
"""Of the simulator's outcomes: in time, late, dropped, rejected."""


def trace_of(setup: Setup, run: Run) -> Trace:
    """The trace of a run that was recorded (`simulate(..., record=True)`), warm-up included."""
    queries, batches = run.result.queries, run.result.batch_records
    state = _STATES[queries["outcome"]]
    answered = state == State.ANSWERED
    arrival = queries["arrival"]
    batch = queries["batch"]

    def of_batch(values: Array, unknown: float) -> Array:
        found = np.full(len(arrival), unknown)
        found[answered] = values[batch[answered]]
        return found

    return Trace(
        arrival=arrival - arrival[0] if len(arrival) else arrival,
        size=queries["size"],
        state=state,
        latency=np.where(answered, queries["finish"] - arrival, np.nan),
        path=of_batch(batches["path"], -1),
        wait=of_batch(batches["start"], np.nan) - arrival,
        service=of_batch(batches["seconds"], np.nan),
        batch=batch,
        batch_size=of_batch(batches["size"], 0),
        paths=tuple(p.name for p in setup.profile.paths),
        sla=setup.sla,
        circumstances={
            "simulated": True,
            "policy": run.summary.policy,
            "workload": setup.workload.spec,
            "seed": setup.seed,
            "assumption": setup.profile.assumption(),
        },
    )
