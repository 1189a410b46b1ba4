"""The steps of `prepare`: reading a part's text, ranking the values, writing a part's ids."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from recsys_opt import _criteo
from recsys_opt.data.criteo import FIRST_ID, SPARSE_COLUMNS
from recsys_opt.data.dataset import array_path
from recsys_opt.data.prepare_journal import FileRecord
from recsys_opt.data.sources import Source
from recsys_opt.data.streams import text_blocks
from recsys_opt.errors import InputError, RecsysOptError
from recsys_opt.files import atomic_path
from recsys_opt.progress import Progress

CHUNK_BYTES = 1 << 20
VOCABULARY_FILE = "vocabulary.npy"
_POLL_S = 0.1
_T = TypeVar("_T")


class CancelledError(RecsysOptError):
    """Another step failed, or the user interrupted."""


def run_metered(
    steps: Iterable[Callable[[], _T]], workers: int, meter: _criteo.Meter, progress: Progress
) -> list[_T]:
    """Runs `steps` on threads, reporting what `meter` counts; the first fault, or Ctrl-C, stops them all."""
    shown = meter.done
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(step) for step in steps]
        pending: set[Future[_T]] = set(futures)
        try:
            while pending:
                done, pending = wait(pending, timeout=_POLL_S, return_when=FIRST_COMPLETED)
                now = meter.done
                progress.advance(now - shown)
                shown = now
                for future in done:
                    future.result()
        except BaseException:
            meter.cancel()
            for future in futures:
                future.cancel()
            raise
    return [future.result() for future in futures]


def read_part(
    source: Source,
    out: Path,
    values_path: Path | None,
    *,
    dense_transform: str,
    skip_bad: bool,
    cardinalities: Sequence[int],
    counts: _criteo.Counts | None,
    meter: _criteo.Meter,
    threads: int,
) -> FileRecord:
    """Writes a part's dense columns and labels, and its ids (hashed) or its values (to `values_path`)."""
    if meter.cancelled:
        raise CancelledError("cancelled")
    with contextlib.ExitStack() as files:
        dense = files.enter_context(atomic_path(array_path(out, source.part, "dense")))
        labels = (
            files.enter_context(atomic_path(array_path(out, source.part, "labels")))
            if source.labelled
            else None
        )
        sparse = files.enter_context(atomic_path(values_path or array_path(out, source.part, "sparse")))
        reader = _criteo.PartReader(
            labelled=source.labelled,
            dense_transform=dense_transform,
            skip_bad=skip_bad,
            cardinalities=list(cardinalities),
            dense_path=str(dense),
            labels_path=str(labels or ""),
            sparse_path=str(sparse),
            counts=counts if source.labelled else None,
            meter=meter,
            threads=threads,
            chunk_bytes=CHUNK_BYTES,
        )
        try:
            if source.compression == "none":
                reader.read_file(str(source.path))
            else:
                for block in text_blocks(source.path, meter.advance):
                    if not reader.feed(block):
                        break
            result = reader.finish()
        except OSError as error:
            raise _file_fault(error, source.path) from error
        if meter.cancelled:
            raise CancelledError("cancelled")
        examples = tuple(f"{source.path}, line {bad.line}: {bad.found}" for bad in result.bad)
        if examples and not skip_bad:
            raise InputError(
                f"{examples[0]}; correct the file, or leave such lines out with --bad-lines skip --overwrite"
            )
        if result.rows == 0:
            raise InputError(
                f"{source.path} has no rows"
                + (
                    f": all its {result.lines} lines are bad, the first one being {examples[0]}"
                    if examples
                    else ""
                )
            )
    return FileRecord(
        name=source.path.name,
        part=source.part,
        labelled=source.labelled,
        size=source.size,
        mtime_ns=source.mtime_ns,
        text_bytes=result.bytes,
        xxh64=f"{result.hash:016x}",
        rows=result.rows,
        bad_lines=result.bad_lines,
        bad_examples=examples,
    )


def count_part(values_path: Path, counts: _criteo.Counts, threads: int, meter: _criteo.Meter) -> None:
    """Counts the values of a part that is read already."""
    try:
        counts.add_blocks(str(values_path), threads, meter)
    except (OSError, RuntimeError) as error:
        raise damaged_values(error) from error


def damaged_values(error: Exception) -> RecsysOptError:
    """An intermediate file is not what this package wrote."""
    return RecsysOptError(f"an intermediate file cannot be read: {error}; start over with --overwrite")


def _file_fault(error: OSError, source: Path) -> RecsysOptError:
    if error.filename == str(source):
        return InputError(f"cannot read {source}: {error.strerror}")
    return RecsysOptError(
        f"cannot write {error.filename}: {error.strerror}; mend that, then repeat the command to go on"
    )


def content_hash(source: Source) -> str:
    """XXH64 of a file's text, as in `FileRecord`."""
    digest = _criteo.Xxh64()
    for block in text_blocks(source.path):
        digest.update(block)
    return f"{digest.digest():016x}"


def write_vocabulary(
    out: Path, counts: _criteo.Counts, min_count: int, threads: int
) -> list[NDArray[np.uint32]]:
    """Ranks the counted values and writes vocabulary.npy, all columns end to end; empties `counts`."""
    ranked: list[NDArray[np.uint32]] = [np.empty(0, np.uint32)] * len(SPARSE_COLUMNS)
    columns = iter(range(len(SPARSE_COLUMNS)))
    lock = threading.Lock()

    def rank() -> None:
        while True:
            with lock:
                column = next(columns, None)
            if column is None:
                return
            ranked[column] = counts.take_ranked(column, min_count)

    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(rank) for _ in range(threads)]:
            future.result()
    with atomic_path(out / VOCABULARY_FILE) as partial, open(partial, "wb") as f:
        header = {"descr": "<u4", "fortran_order": False, "shape": (sum(r.size for r in ranked),)}
        np.lib.format.write_array_header_1_0(f, header)
        for values in ranked:
            f.write(values.data)
    return ranked


def load_vocabulary(out: Path, num_embeddings: Sequence[int]) -> list[NDArray[np.uint32]]:
    """The ranked values of each column, memory-mapped from vocabulary.npy."""
    sizes = [n - FIRST_ID for n in num_embeddings]
    path = out / VOCABULARY_FILE
    try:
        values: NDArray[np.uint32] = np.load(path, mmap_mode="r" if any(sizes) else None)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} cannot be read: {error}; start over with --overwrite") from None
    if values.dtype != np.uint32 or values.shape != (sum(sizes),):
        raise InputError(f"{path} is not the vocabulary of this dataset; start over with --overwrite")
    stops = np.cumsum(sizes)
    return [values[stop - size : stop] for size, stop in zip(sizes, stops, strict=True)]


def map_part(
    part: str,
    rows: int,
    values_path: Path,
    out: Path,
    vocabulary: _criteo.Vocabulary,
    threads: int,
    meter: _criteo.Meter,
) -> None:
    """Turns a part's values into ids."""
    with atomic_path(array_path(out, part, "sparse")) as partial:
        try:
            vocabulary.map_blocks(str(values_path), str(partial), rows, threads, meter)
        except OSError as error:
            raise _file_fault(error, values_path) from error
        except RuntimeError as error:
            raise damaged_values(error) from error
        if meter.cancelled:
            raise CancelledError("cancelled")
