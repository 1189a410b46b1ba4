"""Criteo text to a dataset folder: `recsys-opt data prepare`.

The text is parsed once. With hashed ids that is all. With a vocabulary, the parsed values are kept in an
intermediate file of 108 bytes a row while they are counted, and turned into ids when all parts are counted:
reading them back is much faster than parsing (and decompressing) the text again, and each part's values are
removed as its ids are written, so that the disk never holds more than the result and one part's values.
Memory holds the count tables (8 bytes a slot, 10 to 19 a distinct value) and a few MiB a thread.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from recsys_opt import _criteo
from recsys_opt.data.criteo import DENSE_COLUMNS, FIRST_ID, SPARSE_COLUMNS, HashedIds, VocabularyIds
from recsys_opt.data.dataset import Dataset, DatasetInfo, Part, SparseColumn, write_dataset_info
from recsys_opt.data.prepare_journal import FileRecord, Journal
from recsys_opt.data.prepare_parts import (
    count_part,
    load_vocabulary,
    map_part,
    read_part,
    run_metered,
    write_vocabulary,
)
from recsys_opt.data.prepare_resume import Decision, decide, settings_of
from recsys_opt.data.sources import Kind, Source, find_sources
from recsys_opt.data.splits import Split
from recsys_opt.errors import InputError
from recsys_opt.files import FolderLock
from recsys_opt.progress import Progress, SilentProgress

MAX_THREADS = 1024


@dataclass(frozen=True)
class PrepareOptions:
    """How to prepare."""

    kind: Kind | None = None
    """None: told by the names of the files."""
    ids: VocabularyIds | HashedIds = field(default_factory=VocabularyIds)
    dense_transform: Literal["dlrm", "torchrec"] = "dlrm"
    split: Split | None = None
    """None: 80/10/10 for Kaggle or a single day, last-day for Terabyte."""
    bad_lines: Literal["error", "skip"] = "error"
    threads: int = 0
    """0: as many as there are cores."""
    overwrite: bool = False


@dataclass(frozen=True)
class Prepared:
    """What `prepare` did."""

    info: DatasetInfo
    files: tuple[FileRecord, ...]
    decision: Decision
    """"fresh", "resumed", "split" (only the splits changed) or "unchanged" (nothing to do)."""
    seconds: float

    @property
    def rows(self) -> int:
        """Of all parts."""
        return sum(f.rows for f in self.files)

    @property
    def bad_lines(self) -> int:
        """Lines left out."""
        return sum(f.bad_lines for f in self.files)


def prepare(
    paths: Sequence[Path | str],
    out: Path | str,
    options: PrepareOptions | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Makes the dataset folder `out` from Criteo files or a folder; goes on where a killed run stopped."""
    options = options or PrepareOptions()
    out = Path(out)
    began = time.perf_counter()
    if not 0 <= options.threads <= MAX_THREADS:
        raise InputError(f"threads = {options.threads}; it must be 1 to {MAX_THREADS}, or 0 for all cores")
    kind, sources = find_sources([Path(p) for p in paths], options.kind)
    settings = settings_of(kind, options.ids, options.dense_transform, options.bad_lines)
    labelled = sum(source.labelled for source in sources)
    split = options.split or Split.parse("last-day" if kind == "terabyte" and labelled > 1 else "80/10/10")
    split.ranges([1] * labelled)  # refuses what it cannot do before any work is done
    with FolderLock(out):
        decision, journal = decide(out, settings, sources, split, overwrite=options.overwrite)
        if journal is not None:
            info = _Run(out, kind, sources, options, journal, progress or SilentProgress()).run(split)
        else:
            info = Dataset(out).info
            if decision == "split":
                info = replace(info, splits=split.ranges([p.rows for p in info.parts if p.labelled]))
                write_dataset_info(out, info)
    files = tuple(FileRecord.from_json(f) for f in info.source["files"])
    return Prepared(info, files, decision, time.perf_counter() - began)


class _Run:
    """One run: the steps that the journal does not have yet."""

    def __init__(
        self,
        out: Path,
        kind: Kind,
        sources: Sequence[Source],
        options: PrepareOptions,
        journal: Journal,
        progress: Progress,
    ) -> None:
        self._out = out
        self._kind = kind
        self._sources = sources
        self._options = options
        self._journal = journal
        self._journal_lock = threading.Lock()
        self._progress = progress
        self._threads = options.threads or len(os.sched_getaffinity(0))
        self._meter = _criteo.Meter()

    def run(self, split: Split) -> DatasetInfo:
        journal = self._journal
        read = [s.part for s in self._sources if s.part in journal.files]
        journal.remove_strangers(journal.values_path(p) for p in read if p not in journal.mapped)
        if isinstance(self._options.ids, HashedIds):
            self._read(None)
            num_embeddings = list(self._options.ids.cardinalities)
        else:
            num_embeddings = self._run_vocabulary(self._options.ids, read)
        info = self._describe(num_embeddings, split)
        write_dataset_info(self._out, info)
        journal.remove()
        self._progress.finish()
        return info

    def _run_vocabulary(self, ids: VocabularyIds, read: Sequence[str]) -> list[int]:
        journal = self._journal
        if journal.num_embeddings is None:
            counts = _criteo.Counts()
            self._count_again(read, counts)
            self._read(counts)
            self._progress.start("ranking ids", None, "values")
            ranked = write_vocabulary(self._out, counts, ids.min_count, self._threads)
            num_embeddings = [FIRST_ID + len(values) for values in ranked]
            journal.vocabulary_written(num_embeddings)
            self._progress.advance(sum(len(values) for values in ranked))
        else:
            num_embeddings = journal.num_embeddings
            ranked = load_vocabulary(self._out, num_embeddings)
        vocabulary = _criteo.Vocabulary(ranked, self._threads)
        del ranked
        left = [f for f in journal.files.values() if f.part not in journal.mapped]
        self._progress.start("writing ids", sum(f.rows for f in left), "rows")
        for record in left:
            values = journal.values_path(record.part)
            mapping = partial(
                map_part, record.part, record.rows, values, self._out, vocabulary, self._threads, self._meter
            )
            self._metered([mapping])
            journal.part_mapped(record.part)
            values.unlink()
        return num_embeddings

    def _count_again(self, read: Sequence[str], counts: _criteo.Counts) -> None:
        """The parts that an interrupted run has read need no parsing, only counting."""
        records = [self._journal.files[part] for part in read if self._journal.files[part].labelled]
        if not records:
            return
        self._progress.start("counting what was read before", sum(r.rows for r in records), "rows")
        for record in records:
            values = self._journal.values_path(record.part)
            self._metered([partial(count_part, values, counts, self._threads, self._meter)])

    def _read(self, counts: _criteo.Counts | None) -> None:
        """Reads the parts not read yet: compressed files side by side, a plain file by all threads."""
        left = [s for s in self._sources if s.part not in self._journal.files]
        self._progress.start("reading", sum(s.size for s in left), "B")
        compressed = [s for s in left if s.compression != "none"]
        if compressed:
            # Decompression, one thread a file, is the slower half: one parsing thread keeps up with it.
            self._metered([self._reading(s, counts, 1) for s in compressed], self._threads)
        for source in left:
            if source.compression == "none":
                self._metered([self._reading(source, counts, self._threads)])

    def _reading(self, source: Source, counts: _criteo.Counts | None, threads: int) -> Callable[[], None]:
        ids = self._options.ids

        def read() -> None:
            record = read_part(
                source,
                self._out,
                None if isinstance(ids, HashedIds) else self._journal.values_path(source.part),
                dense_transform=self._options.dense_transform,
                skip_bad=self._options.bad_lines == "skip",
                cardinalities=ids.cardinalities if isinstance(ids, HashedIds) else (),
                counts=counts,
                meter=self._meter,
                threads=threads,
            )
            with self._journal_lock:
                self._journal.file_read(record)

        return read

    def _metered(self, steps: Sequence[Callable[[], None]], workers: int = 1) -> None:
        run_metered(steps, workers, self._meter, self._progress)

    def _describe(self, num_embeddings: Sequence[int], split: Split) -> DatasetInfo:
        records = [self._journal.files[source.part] for source in self._sources]
        settings = self._journal.settings
        text = [[r.part, r.labelled, r.text_bytes, r.xxh64] for r in records]
        identity = json.dumps({"settings": settings, "text": text}, sort_keys=True)
        return DatasetInfo(
            name=f"criteo_{self._kind}",
            dense_columns=DENSE_COLUMNS,
            sparse_columns=tuple(
                SparseColumn(name, n) for name, n in zip(SPARSE_COLUMNS, num_embeddings, strict=True)
            ),
            parts=tuple(Part(r.part, r.rows, r.labelled) for r in records),
            splits=split.ranges([r.rows for r in records if r.labelled]),
            ids=self._options.ids.to_json(),
            dense_transform=self._options.dense_transform,
            source={"settings": settings, "files": [r.to_json() for r in records]},
            input_hash=hashlib.sha256(identity.encode()).hexdigest(),
        )
