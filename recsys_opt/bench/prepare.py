"""How fast `data prepare` is and how much memory it takes, on many rows made from few."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recsys_opt.bench.criteo_text import replicate, write_rows
from recsys_opt.integrations.dataframes import available
from recsys_opt.progress import Progress

_INVENTED_ROWS = 100_000


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    base: Path | None = None
    """Rows to make the text from; None: invented ones."""
    rows: int = 4_500_000
    peer_rows: int = 500_000
    """Rows of the text that pandas and polars get: they hold all of it in memory."""
    threads: tuple[int, ...] = (1, 2)
    repeats: int = 3
    work: Path | None = None
    """Where the text and the results go (about 3 KB a row in all); None: the system's temporary folder."""


def run(settings: Settings, progress: Progress) -> list[dict[str, Any]]:
    """Each candidate in a process of its own, in turns; the median of its repeats by CPU time."""
    with tempfile.TemporaryDirectory(dir=settings.work) as folder:
        text = Path(folder) / "train.txt"
        few = Path(folder) / "few.txt"
        progress.start("making the text", None, "rows")
        base = settings.base or write_rows(Path(folder) / "base.txt", _INVENTED_ROWS, seed=1)
        distinct = replicate(base, text, settings.rows)
        few_distinct = replicate(base, few, settings.peer_rows)
        candidates = [
            (f"prepare, {method}", threads, text, settings.rows, distinct)
            for method in ("vocabulary", "hash")
            for threads in settings.threads
        ]
        candidates.append(("prepare, vocabulary", 1, few, settings.peer_rows, few_distinct))
        peers = [name for name, there in available().items() if there]
        candidates += [(name, 0, few, settings.peer_rows, few_distinct) for name in peers]
        results: list[list[dict[str, float]]] = [[] for _ in candidates]
        progress.start("measuring", settings.repeats * len(candidates), "runs")
        for _ in range(settings.repeats):
            for (name, threads, path, _, _), found in zip(candidates, results, strict=True):
                found.append(_in_a_process(name, threads, path, Path(folder) / "out"))
                progress.advance(1)
        progress.finish()
        return [
            _row(name, threads, path.stat().st_size, rows, n, found)
            for (name, threads, path, rows, n), found in zip(candidates, results, strict=True)
        ]


def _in_a_process(name: str, threads: int, path: Path, out: Path) -> dict[str, float]:
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "recsys_opt.bench.prepare_once", name, str(threads), str(path), str(out)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    shutil.rmtree(out, ignore_errors=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def _row(
    name: str, threads: int, text_bytes: int, rows: int, distinct: int, found: list[dict[str, float]]
) -> dict[str, Any]:
    cpu = [f["user_s"] + f["sys_s"] for f in found]
    median = found[cpu.index(statistics.median_low(cpu))]
    return {
        "candidate": name,
        "threads": threads or None,
        "rows": rows,
        "text_bytes": text_bytes,
        "distinct_values": distinct,
        "rows_per_cpu_s": round(rows / statistics.median_low(cpu)),
        "rows_per_cpu_s_best": round(rows / min(cpu)),
        "rows_per_cpu_s_worst": round(rows / max(cpu)),
        "user_s": round(median["user_s"], 3),
        "sys_s": round(median["sys_s"], 3),
        "wall_s": round(median["wall_s"], 3),
        "peak_rss_bytes": round(max(f["peak_rss_bytes"] for f in found)),
        "repeats": len(found),
    }
