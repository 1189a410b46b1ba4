"""Records of measurements: rows plus the machine, date, commit and command that made them.

`core_wait_s` says how quiet the machine was: seconds that the measurement's threads waited for a core.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recsys_opt.environment import core_wait_s, environment
from recsys_opt.files import read_json, write_json, write_text

FORMAT = "recsys_opt.measurement"
VERSION = 1


def write_record(path: Path, name: str, rows: Sequence[Mapping[str, Any]], **extra: Any) -> None:
    """Writes a measurement's rows as JSON, with its environment."""
    circumstances = {**environment(), "core_wait_s": core_wait_s(), **extra}
    write_json(path, FORMAT, VERSION, {"name": name, **circumstances, "rows": [dict(r) for r in rows]})


def read_record(path: Path) -> dict[str, Any]:
    """What `write_record` wrote."""
    return read_json(path, FORMAT, VERSION)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a measurement's rows as CSV, its environment above them in lines that begin with "#".

    Columns are those of all rows, in the order in which they first occur; pandas reads it with comment="#".
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    for key, value in {**environment(), "core_wait_s": core_wait_s()}.items():
        text.write(f"# {key}: {value}\n")
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
