"""Files that appear whole, carry a format and a version, and have one writer.

Every stage of recsys_opt hands over to the next through files; this module holds the three rules they share.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from recsys_opt.errors import InputError, RecsysOptError


def fsync_dir(path: Path) -> None:
    """Makes the names in a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def check_target(path: Path) -> None:
    """Raises where `atomic_path` could not write, or should not: to be asked before long work too."""
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the name of a file in it")
    if path.exists() and not path.is_file():  # a device would be replaced, not written to
        raise InputError(f"{path} is no ordinary file; give the name of one (--json prints on stdout)")
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise InputError(f"cannot write {path}: {folder} is no folder; choose another place")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"cannot write {path}: no permission to write in {folder}; choose another place")


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; on success it is fsynced and renamed to `path`, else removed. Makes the
    folders above it.

    The temporary name starts with "." and ends in ".partial", so that leftovers of a killed process are
    recognisable. One writer at a time is assumed (see `FolderLock`).
    """
    check_target(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with open(partial, "rb+") as f:
            os.fsync(f.fileno())
        os.replace(partial, path)
        fsync_dir(path.parent)
    except OSError as error:
        partial.unlink(missing_ok=True)
        if error.errno is None:
            raise
        raise RecsysOptError(
            f"cannot write {path}: {error.strerror}; make room, or choose another place"
        ) from error
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Writes a whole text file atomically."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(
    path: Path,
    format_name: str,
    version: int,
    content: Mapping[str, Any],
    *,
    numbers_on_a_line: bool = False,
) -> None:
    """Writes `content` as JSON that says its format and version, atomically.

    numbers_on_a_line  a list of nothing but numbers takes one line, however long, not one for each number
    """
    text = json.dumps({"format": format_name, "version": version, **content}, indent=2, allow_nan=False)
    if numbers_on_a_line:
        text = _NUMBERS.sub(lambda found: " ".join(found[0].split()), text)
    write_text(path, text + "\n")


_NUMBERS = re.compile(r"(?<=: )\[[-+.eE0-9,\s]+\](?=,?\n)")
"""A list of numbers, which no text of JSON holds: a line break inside a text is written \\n."""

_KINDS = {
    "recsys_opt.access_statistics": ("access statistics", "recsys-opt stats DATA --out stats.npz"),
    "recsys_opt.dataset": ("a dataset", "recsys-opt data prepare or data synth"),
    "recsys_opt.hardware": ("hardware", "recsys-opt bench hardware"),
    "recsys_opt.measurement": ("a record of measurements", "recsys-opt bench"),
    "recsys_opt.plan": ("a plan", "recsys-opt plan STATS --out plan.json"),
    "recsys_opt.plan_pieces": ("a plan for other programs", "recsys-opt plan export json"),
    "recsys_opt.profile": ("a profile of paths", "recsys-opt profile RUN... --out profile.json"),
    "recsys_opt.run": ("a training run", "recsys-opt train DATA --out RUN"),
    "recsys_opt.statistics": ("a profile of generated data", "recsys-opt data calibrate"),
    "recsys_opt.tables": ("a trace's tables", "recsys-opt data tables --out TRACE"),
    "recsys_opt.torchrec_plan": ("a plan for TorchRec", "recsys-opt plan export torchrec"),
}
"""Format -> (what such a file holds, the command that writes one), for messages."""


def read_json(path: Path, format_name: str, version: int) -> dict[str, Any]:
    """Reads a file of `write_json`; refuses another format or version, naming the one it wants."""
    kind, maker = _KINDS.get(format_name, (f"a {format_name} file", ""))
    make = f"{maker} writes one" if maker else "name the file that was meant"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; {make}") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; name the file in it that holds {kind}") from None
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror}; mend that, or name another file that holds {kind}"
        ) from None
    if content.startswith(b"PK"):
        raise InputError(f"{path} holds numpy arrays, such as access statistics, not {kind}; {make}")
    try:
        document: Any = json.loads(content.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        why = "it is empty" if not content.strip() else str(error)
        raise InputError(f"{path} is not whole, readable JSON ({why}), so not {kind}; {make}") from None
    found = document.get("format") if isinstance(document, dict) else None
    if found != format_name:
        is_, _ = _KINDS.get(
            str(found), (f"of the format {found!r}" if found else "JSON of another program", "")
        )
        raise InputError(f"{path} is {is_}, not {kind} (format {format_name}); {make}")
    if document.get("version") != version:
        raise InputError(
            f"{path} has version {document.get('version')!r} of {format_name}; this recsys_opt reads version "
            f"{version}: use the recsys_opt that wrote it, or make it again"
            + (f" ({maker})" if maker else "")
        )
    return dict(document)


def _refuse_constant(text: str) -> float:
    raise ValueError(f"it holds {text}, which is no number")


class FolderLock:
    """One writer per folder: a second process that wants the same folder is refused at once.

    The lock is the kernel's (flock on `.lock`), so a killed writer leaves no stale lock behind.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / ".lock"
        self._fd: int | None = None

    def __enter__(self) -> FolderLock:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise InputError(
                f"cannot write to the folder {self._path.parent}: {error.strerror}; choose another folder"
            ) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(fd, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(fd)
            raise InputError(
                f"{self._path.parent} is being written by another process (pid {owner}); "
                "wait for it to end, or choose another folder"
            ) from None
        os.ftruncate(fd, 0)
        os.write(fd, str(os.getpid()).encode())
        self._fd = fd
        return self

    def __exit__(self, *exc: object) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
