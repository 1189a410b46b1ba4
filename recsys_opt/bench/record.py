"""Records of measurements: rows plus the machine, date, commit and command that made them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recsys_opt.environment import environment
from recsys_opt.files import read_json, write_json

FORMAT = "recsys_opt.measurement"
VERSION = 1


def write_record(path: Path, name: str, rows: Sequence[Mapping[str, Any]], **extra: Any) -> None:
    """Writes a measurement's rows as JSON, with its environment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        path, FORMAT, VERSION, {"name": name, **environment(), **extra, "rows": [dict(r) for r in rows]}
    )


def read_record(path: Path) -> dict[str, Any]:
    """What `write_record` wrote."""
    return read_json(path, FORMAT, VERSION)
