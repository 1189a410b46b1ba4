"""Derived statistics of a Criteo data set: what the generator knows about real rows.

Frequencies, quantiles and a few coefficients; no id, no hash of an id and no row: ids are known by their rank
alone. `recsys_opt.data.calibration` measures them, `recsys_opt.data.synth_model` draws from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from recsys_opt.data.descriptor import datasets_dir
from recsys_opt.errors import InputError
from recsys_opt.files import read_json, write_json

FORMAT = "recsys_opt.statistics"
VERSION = 1
FILE_NAME = "statistics.json"


@dataclass(frozen=True)
class Dependence:
    """A categorical column that follows another."""

    parent: str
    strength: float
    """Share of rows in which the id is a function of the parent's id; elsewhere it is drawn by itself."""


@dataclass(frozen=True)
class SparseStatistics:
    """A categorical column; "missing" is not counted among its ids."""

    name: str
    num_embeddings: int
    """Published cardinality; where the column can be missing, "missing" is one of them, id 0."""
    never_missing: bool
    """Ids start at 0, as no id stands for "missing"."""
    head: tuple[int, ...]
    """Occurrences of the frequent ids, falling."""
    tail: tuple[tuple[int, float], ...]
    """(ids, expected occurrences of each) of the rest, falling; head and tail hold all ids."""
    dependence: Dependence | None = None
    trend: float = 0.0
    """How far frequent ids exchange popularity over the period, 0 to 1."""
    fleeting: float = 0.0
    """Share of the rare ids' draws that keep to ids of the moment."""
    effect: float = 0.0
    """Standard deviation of the ids' own effect on the label's logit."""
    interaction: bool = False
    """Whether ids interact with those of other such columns."""

    def __post_init__(self) -> None:
        ids = len(self.head) + sum(n for n, _ in self.tail)
        if ids + (not self.never_missing) != self.num_embeddings:
            raise InputError(f"{self.name}: head and tail hold {ids} ids of {self.num_embeddings} embeddings")


@dataclass(frozen=True)
class DenseStatistics:
    """An integer column."""

    name: str
    quantiles: tuple[int, ...]
    """At 0, 1/steps .. 1 of the present values."""
    loadings: tuple[float, ...]
    """Of the common factors that the integer columns share (normal scale)."""
    tied_to: str | None
    """A categorical column whose id moves this column, and how much."""
    tie: float
    effect_edges: tuple[int, ...]
    """Value v belongs to the last edge <= v (or the first)."""
    effects: tuple[float, ...]
    """On the label's logit, one per edge; missing counts as 0."""

    def __post_init__(self) -> None:
        if len(self.quantiles) < 2 or list(self.quantiles) != sorted(self.quantiles):
            raise InputError(f"{self.name}: quantiles must be two or more, rising")
        if len(self.effects) != len(self.effect_edges) or not self.effects:
            raise InputError(f"{self.name}: {len(self.effects)} effects for {len(self.effect_edges)} edges")


@dataclass(frozen=True)
class Statistics:
    """All that the generator needs to know."""

    name: str
    rows: int
    """Rows that were measured: the unit of `head` and `tail`."""
    click_rate: float
    dense: tuple[DenseStatistics, ...]
    sparse: tuple[SparseStatistics, ...]
    patterns: tuple[tuple[int, int], ...]
    """(bit mask of the missing columns, rows): bit j is integer column j, bit 13 + c categorical column c."""
    effect_scale: float = 1.0
    """All effects are multiplied by it, solved for the Bayes AUC wanted."""
    interaction_scale: float = 0.0
    bias: float = 0.0
    source: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """JSON values only."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Statistics:
        """The inverse of `to_json`."""
        values = {k: v for k, v in document.items() if k not in ("format", "version")}
        values["dense"] = tuple(_dense_from_json(d) for d in values["dense"])
        values["sparse"] = tuple(_sparse_from_json(s) for s in values["sparse"])
        values["patterns"] = tuple((int(m), int(n)) for m, n in values["patterns"])
        return cls(**values)


def _dense_from_json(document: Mapping[str, Any]) -> DenseStatistics:
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in document.items()}
    return DenseStatistics(**values)


def _sparse_from_json(document: Mapping[str, Any]) -> SparseStatistics:
    values = dict(document)
    values["head"] = tuple(values["head"])
    values["tail"] = tuple((int(n), float(rate)) for n, rate in values["tail"])
    if values["dependence"] is not None:
        values["dependence"] = Dependence(**values["dependence"])
    return SparseStatistics(**values)


def write_statistics(path: Path, statistics: Statistics) -> None:
    """Writes a statistics file atomically."""
    write_json(path, FORMAT, VERSION, statistics.to_json())


def read_statistics(profile: str | Path) -> Statistics:
    """Reads a statistics file, or the one that ships under a profile's name, e.g. "criteo_kaggle"."""
    path = Path(profile)
    if path.suffix != ".json":
        path = datasets_dir() / str(profile) / FILE_NAME
        if not path.exists():
            known = ", ".join(sorted(p.parent.name for p in datasets_dir().glob(f"*/{FILE_NAME}"))) or "none"
            raise InputError(
                f"there is no profile {str(profile)!r}; known: {known}, or the path of a .json file that "
                "`recsys-opt data calibrate` made"
            )
    document = read_json(path, FORMAT, VERSION)
    try:
        return Statistics.from_json(document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} does not hold statistics: {error!r}") from None
