"""What a run of `prepare` has finished, so that a later run goes on from there.

The journal and the intermediate files lie in `<dataset>/.prepare/` until the dataset is whole. The order of
events makes every state that a kill leaves recognisable: a file is made durable under its own name first, the
journal says so afterwards; whatever the journal does not say is thrown away and done again.

    journal.json              settings, parts, and what is done of them
    <part>.values             the part's values in blocks (csrc/criteo/reader.h), until its ids are written
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from recsys_opt.data.sources import Source
from recsys_opt.files import read_json, write_json

FORMAT = "recsys_opt.prepare_journal"
VERSION = 1
FOLDER = ".prepare"


@dataclass(frozen=True)
class FileRecord:
    """One input file and what reading it found."""

    name: str
    part: str
    labelled: bool
    size: int
    mtime_ns: int
    text_bytes: int
    xxh64: str
    """Of the uncompressed text, in hexadecimal: the same for train.txt and train.txt.gz."""
    rows: int
    bad_lines: int
    bad_examples: tuple[str, ...]

    def is_same_file(self, source: Source) -> bool:
        """By name, size and time of change."""
        return (self.name, self.size, self.mtime_ns) == (source.path.name, source.size, source.mtime_ns)

    def to_json(self) -> dict[str, Any]:
        """JSON values only."""
        return {**asdict(self), "bad_examples": list(self.bad_examples)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> FileRecord:
        """The inverse of `to_json`."""
        return cls(**{**document, "bad_examples": tuple(document["bad_examples"])})


class Journal:
    """The journal of one dataset folder; every change is on disk when its method returns."""

    def __init__(self, out: Path, settings: Mapping[str, Any], parts: Sequence[str]) -> None:
        self.folder = out / FOLDER
        self.settings = dict(settings)
        self.parts = list(parts)
        self.files: dict[str, FileRecord] = {}
        """Parts that are read, by name."""
        self.num_embeddings: list[int] | None = None
        """Of each column, once the vocabulary is written."""
        self.mapped: list[str] = []
        """Parts whose ids are written."""

    @classmethod
    def load(cls, out: Path) -> Journal | None:
        """The journal of an unfinished run, if there is one."""
        path = out / FOLDER / "journal.json"
        if not path.exists():
            return None
        document = read_json(path, FORMAT, VERSION)
        journal = cls(out, document["settings"], document["parts"])
        journal.files = {part: FileRecord.from_json(d) for part, d in document["files"].items()}
        journal.num_embeddings = document["num_embeddings"]
        journal.mapped = document["mapped"]
        return journal

    def values_path(self, part: str) -> Path:
        """A part's value blocks."""
        return self.folder / f"{part}.values"

    def begin(self) -> None:
        """Makes the folder, with an empty journal."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write()

    def file_read(self, record: FileRecord) -> None:
        """Notes that a part's dense columns, labels and values (or hashed ids) are written."""
        self.files = {**self.files, record.part: record}
        self._write()

    def same_content(self, source: Source) -> None:
        """Notes another name or time of change of a file whose text is unchanged."""
        record = self.files[source.part]
        self.files[source.part] = replace(
            record, name=source.path.name, size=source.size, mtime_ns=source.mtime_ns
        )
        self._write()

    def vocabulary_written(self, num_embeddings: list[int]) -> None:
        """Notes that vocabulary.npy is written."""
        self.num_embeddings = num_embeddings
        self._write()

    def part_mapped(self, part: str) -> None:
        """Notes that a part's ids are written."""
        self.mapped.append(part)
        self._write()

    def remove_strangers(self, kept: Iterable[Path]) -> None:
        """Removes what an interrupted run left in the folder besides `kept`."""
        wanted = {self.folder / "journal.json", *kept}
        for path in self.folder.iterdir():
            if path not in wanted:
                path.unlink()

    def remove(self) -> None:
        """Ends the run: removes the journal and every intermediate file."""
        shutil.rmtree(self.folder)

    def _write(self) -> None:
        write_json(
            self.folder / "journal.json",
            FORMAT,
            VERSION,
            {
                "settings": self.settings,
                "parts": self.parts,
                "files": {part: record.to_json() for part, record in self.files.items()},
                "num_embeddings": self.num_embeddings,
                "mapped": self.mapped,
            },
        )
