"""A recorded run of a server or a simulation: what was asked, when, and what became of it.

Two ways to write the same content, by the file's name:

`.npz`    numpy arrays, small and quick to read. `about` is JSON as bytes: format, version, paths, sla,
          circumstances; beside it one array for each column.
`.jsonl`  JSON lines, for people and other programs. The first line is `about`, each other line one query
          with a key for each column; what is unknown (NaN, -1) is left out.

Columns, one value for each query, in the order of arrival:

arrival     f64  seconds since the run's beginning
size        i64  samples
state       u8   State: answered, rejected, dropped, failed
latency     f64  seconds from arrival to answer as the asker saw them; NaN where not answered
path        i16  number in `paths` of the path that computed the query's last part; -1: none
wait        f64  seconds from arrival at the scheduler until the last part's batch began; NaN: unknown
service     f64  seconds that this batch took; NaN: unknown
batch       i64  number of this batch, equal for the queries in it; -1: unknown
batch_size  i64  samples in this batch, those of other queries too; 0: unknown

`latency - wait - service` is what the network and the server's own work took.
"""

from __future__ import annotations

import enum
import io
import json
import math
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_opt.errors import InputError
from recsys_opt.files import atomic_path, write_text

Array = NDArray[Any]
FORMAT = "recsys_opt.trace"
VERSION = 1
MAKER = "recsys-opt simulate --record FILE and the load generator write one"
_DTYPES = {
    "arrival": np.float64,
    "size": np.int64,
    "state": np.uint8,
    "latency": np.float64,
    "path": np.int16,
    "wait": np.float64,
    "service": np.float64,
    "batch": np.int64,
    "batch_size": np.int64,
}
_UNKNOWN = {
    "latency": math.nan,
    "path": -1,
    "wait": math.nan,
    "service": math.nan,
    "batch": -1,
    "batch_size": 0,
}


class State(enum.IntEnum):
    """What became of a query."""

    ANSWERED = 0
    REJECTED = 1
    """Not admitted: too many were waiting, or it could not be answered in time."""
    DROPPED = 2
    """Admitted, then given up: it could not be answered in time any more."""
    FAILED = 3
    """Ended with an error."""


@dataclass(frozen=True, eq=False)
class Trace:
    """The columns above; those that are left out are unknown."""

    arrival: Array
    size: Array
    state: Array
    latency: Array
    path: Array = field(default_factory=lambda: np.zeros(0))
    wait: Array = field(default_factory=lambda: np.zeros(0))
    service: Array = field(default_factory=lambda: np.zeros(0))
    batch: Array = field(default_factory=lambda: np.zeros(0))
    batch_size: Array = field(default_factory=lambda: np.zeros(0))
    paths: tuple[str, ...] = ()
    sla: float | None = None
    """Seconds in which each query was to be answered."""
    circumstances: Mapping[str, Any] = field(default_factory=dict)
    """Where, when and by which command: `recsys_opt.environment.environment()` and the like."""

    def __post_init__(self) -> None:
        count = len(self.arrival)
        for name, dtype in _DTYPES.items():
            given = np.asarray(getattr(self, name))
            if name in _UNKNOWN and not len(given):
                given = np.full(count, _UNKNOWN[name])
            if given.shape != (count,):
                raise InputError(f"{name} has the shape {given.shape}; {count} queries need ({count},)")
            with np.errstate(invalid="ignore"):
                found = np.ascontiguousarray(given, dtype=dtype)
            if np.issubdtype(dtype, np.integer) and np.any(found != given):
                at = int(np.argmax(found != given))
                raise InputError(f"{name}[{at}] = {given[at]}; it must be a whole number ({found.dtype})")
            object.__setattr__(self, name, found)
        self._check()
        if np.any(np.diff(self.arrival) < 0):  # answers come in another order
            order = np.argsort(self.arrival, kind="stable")
            for name in _DTYPES:
                object.__setattr__(self, name, getattr(self, name)[order])

    def __len__(self) -> int:
        return len(self.arrival)

    @property
    def answered(self) -> Array:
        """Which queries were answered."""
        return np.asarray(self.state == State.ANSWERED)

    def _check(self) -> None:
        self._refuse("arrival", ~np.isfinite(self.arrival), "a number of seconds")
        self._refuse("size", self.size < 1, "at least 1 sample")
        self._refuse(
            "state", self.state > max(State), f"one of {', '.join(f'{s:d} {s.name}' for s in State)}"
        )
        answered = self.answered
        self._refuse("latency", answered & ~(self.latency >= 0), "0 s or more where a query was answered")
        self._refuse(
            "path",
            (self.path < -1) | (self.path >= len(self.paths)),
            f"the number of one of the {len(self.paths)} paths, or -1",
        )
        for name in ("wait", "service"):
            self._refuse(name, getattr(self, name) < 0, "0 s or more")
        if self.sla is not None and not (math.isfinite(self.sla) and self.sla > 0):
            raise InputError(f"sla = {self.sla}; it must be a positive number of seconds, or None")

    def _refuse(self, name: str, wrong: Array, wanted: str) -> None:
        if wrong.any():
            at = int(np.argmax(wrong))
            raise InputError(f"{name}[{at}] = {getattr(self, name)[at]}; it must be {wanted}")

    def about(self) -> dict[str, Any]:
        """The description that stands before the columns."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "queries": len(self),
            "paths": list(self.paths),
            "sla": self.sla,
            "circumstances": dict(self.circumstances),
        }


def write_trace(path: Path, trace: Trace) -> None:
    """Writes a trace whole, as `.npz` or `.jsonl` by the name."""
    path = Path(path)
    about = json.dumps(trace.about(), allow_nan=False)
    if path.suffix == ".jsonl":
        write_text(path, "".join([about + "\n", *_lines(trace)]))
        return
    if path.suffix != ".npz":
        raise InputError(f"{path} ends neither in .npz nor in .jsonl; these are the two forms of a trace")
    with atomic_path(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        _put(archive, "about", np.frombuffer(about.encode(), dtype=np.uint8))
        for name in _DTYPES:
            _put(archive, name, getattr(trace, name))


def read_trace(path: Path) -> Trace:
    """Reads what `write_trace` wrote."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist, or is no file; {MAKER}")
    about, columns = _read_lines(path) if path.suffix == ".jsonl" else _read_arrays(path)
    names = {f.name for f in fields(Trace)} & columns.keys()
    missing = [n for n in _DTYPES if n not in names and n not in _UNKNOWN]
    if missing:
        raise InputError(f"{path} has no column {missing[0]!r}; {MAKER}")
    paths, sla, circumstances = about.get("paths"), about.get("sla"), about.get("circumstances")
    if not (
        isinstance(paths, list)
        and all(isinstance(p, str) for p in paths)
        and isinstance(circumstances, dict)
        and (sla is None or (isinstance(sla, (int, float)) and not isinstance(sla, bool)))
    ):
        raise InputError(f"{path}: its description's paths, sla or circumstances are not a trace's; {MAKER}")
    try:
        return Trace(
            **{n: columns[n] for n in names}, paths=tuple(paths), sla=sla, circumstances=circumstances
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _put(archive: zipfile.ZipFile, name: str, array: Array) -> None:
    text = io.BytesIO()
    np.lib.format.write_array(text, array, allow_pickle=False)
    archive.writestr(zipfile.ZipInfo(f"{name}.npy"), text.getvalue(), zipfile.ZIP_DEFLATED)


def _lines(trace: Trace) -> Iterable[str]:
    columns = {name: getattr(trace, name).tolist() for name in _DTYPES}
    for values in zip(*columns.values(), strict=True):
        known = {
            name: value
            for name, value in zip(columns, values, strict=True)
            if value == value and (name not in _UNKNOWN or value != _UNKNOWN[name])
        }
        known["state"] = State(known["state"]).name.lower()
        yield json.dumps(known, allow_nan=False) + "\n"


def _read_arrays(path: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    if path.is_file() and not zipfile.is_zipfile(path):  # numpy would advise to load it as a pickle
        raise InputError(f"{path} is no readable trace (no .npz file, or not a whole one); {MAKER}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            columns = {name: archive[name] for name in archive.files}
        about: Any = json.loads(columns.pop("about").tobytes().decode())
    except (OSError, ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is no readable trace ({error}); {MAKER}") from None
    for name, column in columns.items():
        if name in _DTYPES and column.dtype.kind not in "iuf":
            raise InputError(f"{path}: {name} holds {column.dtype}, not numbers; {MAKER}")
    return _checked(about, path), columns


def _read_lines(path: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    rows: list[Any] = []
    about: Any = None
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            try:
                value = json.loads(line)
            except ValueError as error:
                raise InputError(f"{path}, line {number} is no JSON ({error}); {MAKER}") from None
            if number == 1:
                about = _checked(value, path)
            elif not isinstance(value, dict):
                raise InputError(f"{path}, line {number} is no JSON object; {MAKER}")
            else:
                rows.append(_row(value, f"{path}, line {number}"))
    checked = _checked(about, path)
    if checked.get("queries") not in (None, len(rows)):
        raise InputError(f"{path} has {len(rows)} of {checked['queries']} queries: it was cut short")
    return checked, {
        name: np.array([row.get(name, _UNKNOWN.get(name)) for row in rows], dtype=dtype)
        for name, dtype in _DTYPES.items()
    }


def _row(value: dict[str, Any], where: str) -> dict[str, float]:
    row = {"state": "answered", **value}
    names = {state.name.lower(): int(state) for state in State}
    if row["state"] not in names:
        raise InputError(f"{where}: state = {row['state']!r}; it must be one of {', '.join(names)}")
    row["state"] = names[row["state"]]
    for name in _DTYPES:
        found = row.get(name, _UNKNOWN.get(name))
        if not isinstance(found, (int, float)) or isinstance(found, bool):
            raise InputError(f"{where}: {name} = {found!r}; it must be a number")
    return row


def _checked(about: Any, path: Path) -> dict[str, Any]:
    found = about.get("format") if isinstance(about, dict) else None
    if found != FORMAT:
        raise InputError(f"{path} is of the format {found!r}, not {FORMAT}; {MAKER}")
    if about.get("version") != VERSION:
        raise InputError(
            f"{path} has version {about.get('version')!r} of {FORMAT}; this recsys_opt reads version "
            f"{VERSION}: use the recsys_opt that wrote it, or record again"
        )
    return dict(about)
