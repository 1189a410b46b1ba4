"""Progress on stderr: a bar with rate and time left on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

LOG_INTERVAL_S = 10.0


def short_count(value: float) -> str:
    """1234567 -> "1.23M"."""
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{suffix}"
    return f"{value:.3g}"


def short_time(seconds: float) -> str:
    """3725 -> "1:02:05"."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{short_count(speed)} {task.fields['unit']}/s")


class _Fields(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("  ".join(f"{k} {v}" for k, v in task.fields["shown"].items()))


class ConsoleProgress:
    """Implements `recsys_opt.progress.Progress` on stderr; use as a context manager."""

    def __init__(self) -> None:
        self._console = Console(file=sys.stderr)
        self._live = self._console.is_terminal
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn() if not self._live else TextColumn("{task.percentage:>3.0f}%"),
            _Rate(),
            _Fields(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._live,
            refresh_per_second=4,
        )
        self._task: TaskID | None = None
        self._description, self._unit, self._total = "", "", None  # type: tuple[str, str, float | None]
        self._done, self._began, self._said = 0.0, 0.0, 0.0
        self._shown: dict[str, str] = {}

    def __enter__(self) -> ConsoleProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
        self._bar.stop()

    def start(self, description: str, total: float | None, unit: str) -> None:
        """Begins a stage."""
        self.finish()
        self._description, self._unit, self._total = description, unit, total
        self._done, self._shown = 0.0, {}
        self._began = self._said = time.monotonic()
        if self._live:
            self._task = self._bar.add_task(description, total=total, unit=unit, shown={})

    def advance(self, amount: float, **fields: str) -> None:
        """Adds `amount` units."""
        self._done += amount
        self._shown.update(fields)
        if self._task is not None:
            self._bar.update(self._task, advance=amount, shown=self._shown)
        elif time.monotonic() - self._said >= LOG_INTERVAL_S:
            self._said = time.monotonic()
            self._say(final=False)

    def finish(self) -> None:
        """Ends the stage."""
        if self._task is not None:
            self._bar.update(self._task, total=self._done, completed=self._done)
            self._bar.stop_task(self._task)
        elif self._description:
            self._say(final=True)
        self._task, self._description = None, ""

    def _say(self, *, final: bool) -> None:
        elapsed = max(time.monotonic() - self._began, 1e-9)
        rate = self._done / elapsed
        parts = [f"{self._description}: {short_count(self._done)} {self._unit}"]
        if self._total and not final:
            parts.append(f"of {short_count(self._total)}")
        parts.append(f"in {short_time(elapsed)}, {short_count(rate)} {self._unit}/s")
        if self._total and not final and rate > 0:
            parts.append(f", {short_time(max(self._total - self._done, 0) / rate)} left")
        fields = "  ".join(f"{k} {v}" for k, v in self._shown.items())
        print(
            " ".join(parts).replace(" ,", ",") + (f"  {fields}" if fields else ""),
            file=sys.stderr,
            flush=True,
        )
