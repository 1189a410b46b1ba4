"""How long-running library code reports progress, without knowing who is looking.

Library functions take a `Progress` and call it; the command line passes one that draws on stderr, everybody
else gets the silent default.
"""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """A running count of work done."""

    def start(self, description: str, total: float | None, unit: str) -> None:
        """Begins a stage of `total` units (None: unknown); ends the stage before it."""

    def advance(self, amount: float, **fields: str) -> None:
        """Adds `amount` units; `fields` are short texts to show beside the bar (loss, AUC)."""

    def finish(self) -> None:
        """Ends the last stage."""


class SilentProgress:
    """Reports to nobody."""

    def start(self, description: str, total: float | None, unit: str) -> None:
        """Does nothing."""

    def advance(self, amount: float, **fields: str) -> None:
        """Does nothing."""

    def finish(self) -> None:
        """Does nothing."""
