"""What a run of `recsys-opt stats` has counted, so that a run after a kill goes on from there.

It lies in `.<name of the file>.counting/` beside the file until that is written. A state file is made durable
under a name of its own first, the journal names it afterwards; what the journal does not name is thrown away.

    journal.json     what is counted and how; groups of tables that are done; samples of the next that are
    group_<g>.npz    statistics of a group of tables (`recsys_opt.data.access_file`)
    state_<n>.npz    counters of the group in work
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_opt.data.access_statistics import AccessStatistics
from recsys_opt.data.access_table import TableStatistics
from recsys_opt.errors import InputError
from recsys_opt.files import FolderLock, atomic_path, read_json, write_json

FORMAT = "recsys_opt.stats_journal"
VERSION = 1


class AccessJournal:
    """The journal of one statistics file; use as a context manager: one writer."""

    def __init__(self, out: Path, settings: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """`overwrite` starts an unfinished run over."""
        self.folder = out.with_name(f".{out.name}.counting")
        self._out = out
        self._settings = json.loads(json.dumps(settings))
        self._overwrite = overwrite
        self._lock = FolderLock(self.folder)
        self.groups_done = 0
        self.position = 0
        """Samples of the group in work that the state holds."""
        self.resumed = False
        self._states = 0

    def __enter__(self) -> AccessJournal:
        try:
            self._out.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write to the folder {self._out.parent}: {error.strerror}") from error
        self._lock.__enter__()
        try:
            self._open()
        except BaseException:
            self._lock.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        if not self.groups_done and not self.position:  # nothing to go on from
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.__exit__(*exc)

    def _open(self) -> None:
        path = self.folder / "journal.json"
        if path.exists() and not self._overwrite:
            document = read_json(path, FORMAT, VERSION)
            differs = [k for k, v in self._settings.items() if document["settings"].get(k) != v]
            if differs:
                raise InputError(
                    f"{self.folder} holds an unfinished run with other {', '.join(differs)}; repeat the "
                    "command that was interrupted to go on, or start over with --overwrite"
                )
            self.groups_done, self.position = document["groups_done"], document["position"]
            self._states = document["states"]
            self.resumed = bool(self.groups_done or self.position)
        self._remove_strangers()
        self._write()

    def save_state(self, position: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Makes the counters of the group in work durable."""
        self._states += 1
        with atomic_path(self._state_path()) as partial, open(partial, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stubs take the names for options
        self.position = position
        self._write()
        self._remove_strangers()

    def load_state(self) -> Mapping[str, NDArray[Any]]:
        """What `save_state` was last given."""
        try:
            return dict(np.load(self._state_path(), allow_pickle=False))
        except (OSError, ValueError, EOFError) as error:
            raise InputError(
                f"{self._state_path()} cannot be read ({error}); start over with --overwrite"
            ) from None

    def group_done(self, statistics: AccessStatistics) -> None:
        """Makes the statistics of the group in work durable."""
        statistics.save(self._group_path(self.groups_done))
        self.groups_done += 1
        self.position = 0
        self._write()
        self._remove_strangers()

    def tables(self) -> list[TableStatistics]:
        """Of all groups that are done."""
        found: list[TableStatistics] = []
        for group in range(self.groups_done):
            found += AccessStatistics.load(self._group_path(group)).tables.values()
        return found

    def remove(self) -> None:
        """Ends the run: removes the folder."""
        shutil.rmtree(self.folder)

    def _state_path(self) -> Path:
        return self.folder / f"state_{self._states}.npz"

    def _group_path(self, group: int) -> Path:
        return self.folder / f"group_{group}.npz"

    def _write(self) -> None:
        write_json(
            self.folder / "journal.json",
            FORMAT,
            VERSION,
            {
                "settings": self._settings,
                "groups_done": self.groups_done,
                "position": self.position,
                "states": self._states,
            },
        )

    def _remove_strangers(self) -> None:
        wanted = {self.folder / "journal.json", self.folder / ".lock"}
        wanted |= {self._group_path(g) for g in range(self.groups_done)}
        if self.position:
            wanted.add(self._state_path())
        for path in self.folder.iterdir():
            if path not in wanted:
                path.unlink()
