"""What must hold after a soak, and whether it did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from recsys_opt.bench.soak_rude import Tally
from recsys_opt.bench.soak_watch import Growth, Watch

if TYPE_CHECKING:
    from recsys_opt.bench.soak import Load

MOST_GROWN_BYTES = 8e6
MOST_GROWN_SHARE = 0.05
"""A process whose memory grew by no more than the larger of both, after its first quarter, is flat."""
MOST_GROWN_FILES = 16
WORKER_LIFE_S = 30.0
"""Workers that lived so long are looked at."""
_ADMITTED = ("answered", "rejected", "dropped", "failed", "gone")
"""The server's words for what becomes of a well-formed query."""
_SHOWN = 5


@dataclass(frozen=True)
class Counts:
    """Of a soak's clients and of its server."""

    load: Load
    rude: Tally
    server: Mapping[str, int]
    """Queries by what became of them, as the server counted them in the same time."""
    kills: int
    restarts: int
    reloads: Mapping[str, int]
    """By what became of them."""
    workers: tuple[int, int]
    """Before; children of the server afterwards."""
    files: tuple[int, int]
    """The server's file descriptors without clients, before and afterwards."""


def verdict(counts: Counts, watch: Watch) -> dict[str, Any]:
    """Figures, and the checks that did not hold, "faults"; JSON values only. Latency is not judged."""
    load, rude, server = counts.load, counts.rude, counts.server
    answered = load.outcomes["answered"] + rude.admissible["answered"]
    lost = {what: n for what, n in load.outcomes.items() if what.startswith("lost")}
    clients = load.sent + sum(rude.admissible.values()) + rude.abandoned
    admitted = sum(server[name] for name in _ADMITTED)
    unsure = rude.abandoned + rude.cancelled
    done_reloads, workers = counts.reloads.get("done", 0), watch.workers(WORKER_LIFE_S)
    memory, files = watch.memory(), watch.files()
    checks = [
        (load.sent > 0 and rude.sent > 0, "there was no load"),
        (load.over == {1: load.sent}, f"queries over other than once: {dict(load.over)}, {lost}"),
        (load.unasked == 0, f"answers came {load.unasked} times to what was not asked"),
        (not load.wrong, f"{len(load.wrong)} answers are not their queries': {load.wrong[:_SHOWN]}"),
        (
            clients <= admitted <= clients + rude.cancelled,
            f"clients sent {clients} well-formed queries (and {rude.cancelled} perhaps), the server counts "
            f"{admitted}",
        ),
        (
            answered <= server["answered"] <= answered + unsure,
            f"clients have {answered} answers (and {unsure} perhaps), the server counts {server['answered']}",
        ),
        (load.outcomes["failed"] == 0, f"{load.outcomes['failed']} queries of the load failed"),
        (
            not rude.unexpected,
            f"{len(rude.unexpected)} rude clients were answered otherwise: {rude.unexpected[:_SHOWN]}",
        ),
        (counts.reloads == ({"done": done_reloads} if done_reloads else {}), f"reloads: {counts.reloads}"),
        (counts.restarts == counts.kills, f"{counts.kills} workers killed, {counts.restarts} started again"),
        (
            counts.workers[0] == counts.workers[1],
            f"{counts.workers[0]} workers before, {counts.workers[1]} processes afterwards",
        ),
        (
            counts.files[1] <= counts.files[0],
            f"{counts.files[0]} file descriptors before, {counts.files[1]} afterwards",
        ),
        (_flat(memory), f"the server's memory grew: {memory}"),
        (
            files is None or files.grown <= MOST_GROWN_FILES,
            f"the server's file descriptors, sockets aside, became more: {files}",
        ),
        (all(map(_flat, workers)), f"a worker's memory grew: {[g for g in workers if not _flat(g)]}"),
    ]
    return {
        "faults": [message for holds, message in checks if not holds],
        "checks": len(checks),
        "load": {
            "sent": load.sent,
            "outcomes": dict(sorted(load.outcomes.items())),
            "over_once": load.over[1],
            "wrong_answers": len(load.wrong),
            "plans_begun_anew": load.replanned,
            "held_back": load.held_back,
            "latency_ms_not_judged": _percentiles(load.latencies),
        },
        "rude": {
            "sent": rude.sent,
            "replies": {kind: dict(replies) for kind, replies in sorted(rude.replies.items())},
            "unexpected": len(rude.unexpected),
            "after_stall": rude.after_stall,
            "well_formed": dict(rude.admissible),
            "abandoned": rude.abandoned,
            "cancelled": rude.cancelled,
        },
        "server": dict(server),
        "kills": counts.kills,
        "restarts": counts.restarts,
        "reloads": dict(counts.reloads),
        "files_before_and_after": list(counts.files),
        "server_memory_mb": memory.row(1e6) if memory else None,
        "server_files": files.row(1.0) if files else None,
        "worker_memory_mb": _of_workers(workers),
        "watch": watch.row(),
    }


def _flat(growth: Growth | None) -> bool:
    return growth is None or growth.grown <= max(MOST_GROWN_BYTES, MOST_GROWN_SHARE * growth.first)


def _of_workers(growths: list[Growth]) -> dict[str, Any] | None:
    """Over the workers' lives; slopes weighted by their lengths."""
    if not growths:
        return None
    spans = np.array([g.span_s for g in growths])
    slopes = np.array([g.slope_per_h for g in growths]) / 1e6
    return {
        "lives": len(growths),
        "memory": round(float(np.mean([g.last for g in growths])) / 1e6, 3),
        "most_grown": round(max(g.grown for g in growths) / 1e6, 3),
        "slope_per_h": round(float(np.average(slopes, weights=spans)), 3),
        "slope_of_longest_per_h": round(float(slopes[spans.argmax()]), 3),
        "longest_s": round(float(spans.max()), 1),
    }


def _percentiles(seconds: list[float]) -> dict[str, float] | None:
    if not seconds:
        return None
    return {f"p{q:g}": round(1e3 * float(np.percentile(seconds, q)), 3) for q in (50, 95, 99, 99.9)}
