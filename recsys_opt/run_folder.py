"""The run folder: what training leaves for reports, profiling and serving.

config.json       the run's configuration, dataset, model and environment
metrics.jsonl     one JSON object a line: training progress and evaluations, in order
checkpoint/       the last whole checkpoint (a link that training replaces atomically)
    checkpoint.json     step, configuration, dataset and model
    model.safetensors   the weights, and beside them what is needed to go on training
report.html
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recsys_opt.errors import InputError
from recsys_opt.files import read_json, write_json

FORMAT = "recsys_opt.run"
CHECKPOINT_FORMAT = "recsys_opt.checkpoint"
VERSION = 1
CHECKPOINT_PREFIX = ".checkpoint-"


class RunFolder:
    """Paths and readers of a run folder."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config_path = self.path / "config.json"
        self.metrics_path = self.path / "metrics.jsonl"
        self.report_path = self.path / "report.html"
        self.checkpoint_link = self.path / "checkpoint"

    def exists(self) -> bool:
        """Whether a run was begun here."""
        return self.config_path.exists()

    def description(self) -> dict[str, Any]:
        """The content of config.json: "config", "dataset", "model", "environment"."""
        if not self.exists():
            raise InputError(f"{self.path} is not a run folder: it has no {self.config_path.name}")
        return read_json(self.config_path, FORMAT, VERSION)

    def write_description(self, content: Mapping[str, Any]) -> None:
        """Writes config.json."""
        write_json(self.config_path, FORMAT, VERSION, content)

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; half a line at the end (a run being written) is left out."""
        lines = []
        with contextlib.suppress(FileNotFoundError):
            text = self.metrics_path.read_text(encoding="utf-8")
            for number, line in enumerate(text.splitlines(keepends=True), 1):
                if not line.endswith("\n"):
                    break
                try:
                    lines.append(json.loads(line))
                except json.JSONDecodeError as error:
                    raise InputError(f"{self.metrics_path}, line {number}: not JSON: {error}") from None
        return lines

    def checkpoint_folder(self) -> Path | None:
        """The folder of the last whole checkpoint, or None; read all of one checkpoint from this one path."""
        link = self.checkpoint_link
        with contextlib.suppress(FileNotFoundError):
            if link.is_symlink() and link.exists():
                return link.with_name(os.readlink(link))
        if link.is_dir():  # a copy of the run that followed the link
            return link
        # The link is lost, or what it names: a folder is whole when it has checkpoint.json, written last.
        whole = sorted(self.path.glob(f"{CHECKPOINT_PREFIX}*/checkpoint.json"))
        return whole[-1].parent if whole else None

    def checkpoint_document(self) -> tuple[Path, dict[str, Any]] | None:
        """The last whole checkpoint's folder and the content of its checkpoint.json, or None."""
        folder = self.checkpoint_folder()
        if folder is None:
            return None
        return folder, read_json(folder / "checkpoint.json", CHECKPOINT_FORMAT, VERSION)


class MetricsLog:
    """Appends to metrics.jsonl, one flushed line an entry."""

    def __init__(self, run: RunFolder, keep_bytes: int = 0) -> None:
        """Opens the log, cut to its first `keep_bytes`: later lines tell of updates that were lost."""
        self._file = open(run.metrics_path, "ab")  # noqa: SIM115 (closed by `close`)
        size = os.fstat(self._file.fileno()).st_size
        if size < keep_bytes:
            self._file.close()
            raise InputError(
                f"{run.metrics_path} has {size} bytes, but the checkpoint was made when it had {keep_bytes}: "
                "the run folder was changed; start a new run in another folder"
            )
        self._file.truncate(keep_bytes)

    def append(self, entry: Mapping[str, Any]) -> None:
        """Adds a line."""
        self._file.write(json.dumps(entry, allow_nan=False).encode() + b"\n")
        self._file.flush()

    def sync(self) -> int:
        """Makes the lines durable; returns the length in bytes."""
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size  # tell() lags behind where nothing was appended yet

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
