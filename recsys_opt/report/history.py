"""What a report reads from a run folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recsys_opt.report.svg import Level, Series
from recsys_opt.run_folder import RunFolder


@dataclass(frozen=True)
class History:
    """A run's description and metric lines."""

    name: str
    description: dict[str, Any]
    lines: list[dict[str, Any]]

    @classmethod
    def read(cls, run: Path, name: str | None = None) -> History:
        """Reads a run folder."""
        folder = RunFolder(run)
        return cls(name or run.resolve().name, folder.description(), folder.metrics())

    def train(self) -> list[dict[str, Any]]:
        """Lines on training progress."""
        return [line for line in self.lines if line["kind"] == "train"]

    def evaluations(self, split: str) -> list[dict[str, Any]]:
        """Lines of evaluations on a split."""
        return [line for line in self.lines if line["kind"] == "evaluation" and line["split"] == split]

    def final(self, split: str) -> dict[str, Any] | None:
        """The last evaluation on a split."""
        found = self.evaluations(split)
        return found[-1] if found else None

    def curve(self, field: str, colour: int, *, split: str | None = None, name: str = "") -> Series:
        """A field over the rows trained on: of training, or of a split's evaluations."""
        if split is None:
            lines = self.train()
            return Series(name or "training", [e["rows"] for e in lines], [e[field] for e in lines], colour)
        lines = self.evaluations(split)
        per_epoch = self.rows_per_epoch()
        x = [e["epoch"] * per_epoch for e in lines]
        return Series(name or split, x, [e[field] for e in lines], colour, markers=True)

    def rows_per_epoch(self) -> float:
        """Rows of one pass over the training split."""
        lines = self.train()
        return lines[-1]["rows"] / lines[-1]["epoch"] if lines else 1.0

    def samples_per_s(self) -> float | None:
        """Training speed over the whole run, without evaluations and checkpoints."""
        rows = seconds = before = 0.0
        for line in self.train():
            count, before = line["rows"] - before, line["rows"]
            rows += count
            seconds += count / line["samples_per_s"]
        return rows / seconds if seconds else None

    def tables(self) -> list[dict[str, Any]]:
        """The tables, each with storage_bytes and dense_bytes."""
        tables: list[dict[str, Any]] = self.description["model"]["tables"]
        return tables

    def storage_bytes(self) -> int:
        """Bytes of all tables as represented."""
        return sum(t["storage_bytes"] for t in self.tables())

    def dense_bytes(self) -> int:
        """Bytes of all tables as plain fp32 rows."""
        return sum(t["dense_bytes"] for t in self.tables())

    def bayes(self, field: str) -> list[Level]:
        """The best possible value on the validation or test rows, for generated data."""
        known = self.description["dataset"].get("bayes") or {}
        for split in ("test", "validation"):
            if field in known.get(split, {}):
                return [Level(f"best possible ({known[split][field]:.4f})", known[split][field])]
        return []


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found.update(flat(value, f"{prefix}{key}."))
        else:
            found[prefix + key] = value
    return found
