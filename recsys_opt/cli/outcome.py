"""What a verb hands back to the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """A verb's result, for a person and for a machine."""

    text: str
    """For a person, printed on stdout."""
    result: Mapping[str, Any]
    """For a machine, printed with --json."""
    exit_code: int = 0
