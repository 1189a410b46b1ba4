"""Generated rows as the text files that Criteo publishes, for `data prepare` and what comes before it."""

from __future__ import annotations

import shutil
from pathlib import Path

from recsys_opt.data.synth import SyntheticCriteo
from recsys_opt.errors import InputError, RecsysOptError
from recsys_opt.files import FolderLock, atomic_path
from recsys_opt.progress import Progress, SilentProgress

SLAB_ROWS = 1 << 15
_LINE_BYTES = 270
"""Of a line, about; what must be free before the first is written."""


def write_days(
    source: SyntheticCriteo,
    folder: Path,
    days: int,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Writes all rows, in time order, as day_0 .. day_<days - 1>; the days have as many rows, within one."""
    if not 1 <= days <= min(source.num_rows, 1000):
        raise InputError(
            f"days = {days}; it must be 1 to {min(source.num_rows, 1000)}: a day has one row at least"
        )
    progress = progress or SilentProgress()
    with FolderLock(folder):
        there = sorted(p.name for p in folder.glob("day_*"))
        if there:
            raise InputError(f"{folder} holds {there[0]}; remove it or choose another folder")
        free = shutil.disk_usage(folder).free
        if source.num_rows * _LINE_BYTES > free:
            raise RecsysOptError(
                f"{source.num_rows} rows take about {source.num_rows * _LINE_BYTES} bytes; {folder} has "
                f"{free} bytes free: ask for fewer rows or choose another disk"
            )
        progress.start("generate", source.num_rows, "rows")
        paths = []
        for day in range(days):
            start, stop = (at * source.num_rows // days for at in (day, day + 1))
            path = folder / f"day_{day}"
            with atomic_path(path) as partial, open(partial, "wb") as file:
                for first in range(start, stop, SLAB_ROWS):
                    last = min(first + SLAB_ROWS, stop)
                    file.write(source.text(first, last, threads=threads))
                    progress.advance(last - first)
            paths.append(path)
        progress.finish()
    return paths
