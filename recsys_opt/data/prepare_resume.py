"""What a run of `prepare` finds in its folder, and what follows: start, go on, nothing to do, or refuse."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from recsys_opt.data.criteo import HashedIds, VocabularyIds
from recsys_opt.data.dataset import FILE_NAME, Dataset, DatasetInfo
from recsys_opt.data.prepare_journal import FOLDER, FileRecord, Journal
from recsys_opt.data.prepare_parts import content_hash
from recsys_opt.data.sources import Kind, Source
from recsys_opt.data.splits import Split
from recsys_opt.errors import InputError
from recsys_opt.files import fsync_dir

Decision = Literal["fresh", "resumed", "split", "unchanged"]

# Changes when the same text and settings give other arrays.
ALGORITHM = 1
_OURS = re.compile(
    r"\.?((train|test|day_\d+)_(dense|sparse|labels)\.npy|vocabulary\.npy|dataset\.json)(\.partial)?"
)


def settings_of(
    kind: Kind, ids: VocabularyIds | HashedIds, dense_transform: str, bad_lines: str
) -> dict[str, Any]:
    """All that decides what the arrays hold, besides the text."""
    return {
        "algorithm": ALGORITHM,
        "kind": kind,
        "ids": ids.to_json(),
        "dense_transform": dense_transform,
        "bad_lines": bad_lines,
    }


def decide(
    out: Path, settings: Mapping[str, Any], sources: Sequence[Source], split: Split, *, overwrite: bool
) -> tuple[Decision, Journal | None]:
    """The decision, and the journal to work from: None where the arrays are whole already.

    Other settings or input than the run before had are refused, unless `overwrite` says to start over; that
    starts an unfinished run over in any case.
    """
    if (out / FILE_NAME).exists():
        # dataset.json is the last thing written and the first removed: the arrays are whole.
        shutil.rmtree(out / FOLDER, ignore_errors=True)
        info, differs = _whole_dataset(out, settings, sources)
        if info is not None and not differs:
            ranges = split.ranges([p.rows for p in info.parts if p.labelled])
            if ranges == info.splits:
                return "unchanged", None
            if overwrite:
                return "split", None
            differs = [f"its splits are {dict(info.splits)}, now asked for: {ranges}"]
        if not overwrite:
            raise InputError(
                f"{out} holds a dataset already, and {'; '.join(differs)}. Choose another folder, or replace "
                "it with --overwrite"
            )
    elif not overwrite and (journal := Journal.load(out)) is not None:
        differs = _differences(journal.settings, settings, journal.parts, journal.files, sources)
        if not differs:
            for source in sources:
                record = journal.files.get(source.part)
                if record is not None and not record.is_same_file(source):
                    journal.same_content(source)
            return "resumed", journal
        raise InputError(
            f"{out} holds an unfinished run of data prepare, and {'; '.join(differs)}. Repeat the "
            "command that was interrupted to go on, or start over with --overwrite"
        )
    elif not overwrite and (strangers := _ours(out)):
        raise InputError(
            f"{out} holds {strangers[0].name} of something else; choose another folder, or replace it with "
            "--overwrite"
        )
    remove_dataset(out)
    journal = Journal(out, settings, [source.part for source in sources])
    journal.begin()
    return "fresh", journal


def _whole_dataset(
    out: Path, settings: Mapping[str, Any], sources: Sequence[Source]
) -> tuple[DatasetInfo | None, list[str]]:
    """What the dataset in `out` says of itself (None: it does not open), and how it differs from the wish."""
    try:
        info = Dataset(out).info
    except InputError as error:
        return None, [f"it does not open: {error}"]
    before = info.source.get("settings")
    if not isinstance(before, dict):
        return info, [f"it was not made by data prepare (its name is {info.name})"]
    records = {f["part"]: FileRecord.from_json(f) for f in info.source["files"]}
    return info, _differences(before, settings, [p.name for p in info.parts], records, sources)


def remove_dataset(out: Path) -> None:
    """Removes a dataset, whole or not, and nothing else; from the first moment on it no longer opens."""
    (out / FILE_NAME).unlink(missing_ok=True)
    fsync_dir(out)
    for path in _ours(out):
        path.unlink()
    shutil.rmtree(out / FOLDER, ignore_errors=True)


def _ours(out: Path) -> list[Path]:
    return sorted(path for path in out.iterdir() if _OURS.fullmatch(path.name))


def _differences(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    parts_before: Sequence[str],
    records: Mapping[str, FileRecord],
    sources: Sequence[Source],
) -> list[str]:
    differs = [
        f"its {key} is {_short(before.get(key))}, now asked for: {_short(now[key])}"
        for key in now
        if before.get(key) != now[key]
    ]
    parts = [source.part for source in sources]
    if sorted(parts_before) != sorted(parts):
        differs.append(f"its parts are {', '.join(parts_before)}, now given: {', '.join(parts)}")
    if not differs:
        for source in sources:
            record = records.get(source.part)
            if record is None or record.is_same_file(source):
                continue
            if content_hash(source) != record.xxh64:
                differs.append(f"{source.path} holds another text than the {record.name} it was made from")
    return differs


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 120 else text[:117] + "..."
