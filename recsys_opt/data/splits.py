"""Splits by time order: ranges of rows of the labelled parts laid end to end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from recsys_opt.errors import InputError

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """Shares of the rows, or the last day."""

    shares: tuple[int, int, int] | None
    """Train, validation, test, in any unit; None: all parts but the last train, and of the last the first
    half (the larger one) validates, the rest tests, as torchrec halves it."""

    @classmethod
    def parse(cls, text: str) -> Split:
        """From "80/10/10" or "last-day"."""
        if text == "last-day":
            return cls(None)
        try:
            shares = tuple(int(share) for share in text.split("/"))
        except ValueError:
            shares = ()
        if len(shares) != len(SPLITS) or min(shares) < 0 or shares[0] == 0:
            raise InputError(
                f"the split is {text!r}; it must be like 80/10/10 (train/validation/test) or last-day"
            )
        return cls((shares[0], shares[1], shares[2]))

    def __str__(self) -> str:
        return "last-day" if self.shares is None else "/".join(map(str, self.shares))

    def ranges(self, rows: Sequence[int]) -> dict[str, tuple[int, int]]:
        """[start, stop) of each split, given the rows of the labelled parts."""
        total = sum(rows)
        if self.shares is None:
            if len(rows) < 2:
                raise InputError("a last-day split needs at least two days; use --split 80/10/10")
            first = total - rows[-1]
            second = first + (rows[-1] + 1) // 2
        else:
            first = total * self.shares[0] // sum(self.shares)
            second = total * (self.shares[0] + self.shares[1]) // sum(self.shares)
        bounds = (0, first, second, total)
        return {name: (bounds[i], bounds[i + 1]) for i, name in enumerate(SPLITS)}
