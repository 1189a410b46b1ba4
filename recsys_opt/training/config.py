"""A training run's configuration: nested frozen dataclasses, alike in Python, JSON and on the command line.

The text under a field is its help on the command line.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal

from recsys_opt.errors import InputError
from recsys_opt.models.recipes import DLRMConfig, criteo_kaggle, criteo_terabyte
from recsys_opt.training.optimizers import OptimizerConfig
from recsys_opt.training.schedule import ScheduleConfig

Precision = Literal["fp32", "bf16"]
DenseRepresentation = Literal["dense", "fbgemm"]
TableFitting = Literal["counts", "svd"]
ByteSize = typing.NewType("ByteSize", int)
"""A number of bytes; the command line reads 20MB, 16MiB, 1.5GB and plain numbers."""


@dataclass(frozen=True)
class CompressionConfig:
    """Which tables become tensor trains."""

    tt_threshold: int | None = None
    """Tables of at least this many rows become tensor trains."""
    tt_tables: tuple[str, ...] = ()
    """Tables by name that become tensor trains, e.g. C3,C12."""
    tt_rank: int = 32
    """Rank of the tensor trains: larger is closer to a dense table, and bigger."""
    memory_budget: ByteSize | None = None
    """Bytes for all embedding tables, e.g. 20MB or 16MiB: chooses the tensor trains, their shapes and ranks
    from how often the training rows look up each id."""
    tt_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Tables whose tensor trains have options of their own, by name: what a memory budget came to."""
    tt_cache_rows: int = 0
    """Frequent rows of each tensor train that are held dense and trained in place; 0: none."""
    tt_cache_refresh_every: int = 100
    """Updates between two choices of these rows."""
    tt_fit: TableFitting = "counts"
    """How a trained dense table becomes a tensor train: counts: fitted to the rows that the training rows
    look up, each counting as often as it is; svd: by TT-SVD, every row alike."""

    def names_trains(self) -> bool:
        """Whether some tables are to be tensor trains."""
        named = self.tt_threshold is not None or self.memory_budget is not None
        return named or bool(self.tt_tables) or bool(self.tt_options)

    def __post_init__(self) -> None:
        if self.tt_threshold is not None and self.tt_threshold < 1:
            raise InputError(f"tt_threshold = {self.tt_threshold}; it must be at least 1")
        if self.tt_rank < 1:
            raise InputError(f"tt_rank = {self.tt_rank}; it must be at least 1")
        if self.tt_cache_rows < 0:
            raise InputError(f"tt_cache_rows = {self.tt_cache_rows}; it must be 0 or more")
        if self.tt_cache_refresh_every < 1:
            raise InputError(f"tt_cache_refresh_every = {self.tt_cache_refresh_every}; it must be at least 1")
        if self.tt_fit not in ("counts", "svd"):
            raise InputError(f"tt_fit = {self.tt_fit!r}; it must be 'counts' or 'svd'")
        if self.memory_budget is None:
            return
        if self.memory_budget < 1:
            raise InputError(f"memory_budget = {self.memory_budget}; it must be at least 1 byte")
        if self.tt_cache_rows:
            raise InputError("memory_budget does not count held rows; leave out tt_cache_rows")
        if self.tt_threshold is not None or self.tt_tables or self.tt_rank != CompressionConfig.tt_rank:
            raise InputError(
                "memory_budget chooses the tensor trains and their ranks itself; leave out tt_threshold, "
                "tt_tables and tt_rank"
            )


Representation = Literal["table", "tt", "dhe", "hybrid", "select"]
HASHED: tuple[Representation, ...] = ("dhe", "hybrid", "select")
"""Those with deep hash embeddings."""
TT_THRESHOLD = 100_000
"""Rows from which tables are tensor trains where `representation` is "tt" and nothing says which."""


@dataclass(frozen=True)
class HashingConfig:
    """Deep hash embeddings: which tables have them, and their size."""

    dhe_hashes: int = 1024
    """Hash functions of a deep hash embedding, the width of its encoding."""
    dhe_widths: tuple[int, ...] = (128,)
    """Widths of its network's layers between the encoding and the row, e.g. 512,256."""
    dhe_encoding: Literal["uniform", "gaussian"] = "uniform"
    """How its hashes become numbers: evenly spread in [-1, 1], or normally distributed."""
    dhe_largest: int = 5
    """With select: so many of the largest tables are deep hash embeddings."""
    dhe_tables: tuple[str, ...] = ()
    """With select: these tables by name in place of the largest."""
    hybrid_parts: Literal["features", "halves"] = "features"
    """With hybrid: features: a table's row and its deep hash row are two vectors, crossed with all others;
    halves: two halves of one vector, tables and interaction stay as small as without."""

    def __post_init__(self) -> None:
        sizes = [("dhe_hashes", self.dhe_hashes), *(("dhe_widths", width) for width in self.dhe_widths)]
        for name, value in (*sizes, ("dhe_largest", self.dhe_largest)):
            if value < 1:
                raise InputError(f"{name} = {value}; it must be at least 1")
        for name, word, choices in (
            ("dhe_encoding", self.dhe_encoding, ("uniform", "gaussian")),
            ("hybrid_parts", self.hybrid_parts, ("features", "halves")),
        ):
            if word not in choices:
                raise InputError(f"{name} = {word!r}; it must be {' or '.join(map(repr, choices))}")

    def options(self) -> dict[str, Any]:
        """Of a table."""
        return {
            "hashes": self.dhe_hashes,
            "widths": list(self.dhe_widths),
            "encoding": self.dhe_encoding,
        }


@dataclass(frozen=True)
class PlacementConfig:
    """Which rows of the tables are in the fast tier; it does not change what the rows become."""

    plan: str | None = None
    """A plan for one device (plan.json): its tables have their hottest rows in the fast tier. A run that goes
    on may be given another plan, and moves its rows."""
    statistics: str | None = None
    """The access statistics (stats.npz) that rank the rows; default: those that the plan names."""
    cold_dir: str | None = None
    """Keep the slow tier and its optimizer's state in memory-mapped files in this folder, so that tables
    larger than the memory train; default: in memory."""
    hot_rows: Mapping[str, int] = field(default_factory=dict)
    """Rows of each table in the fast tier, by name: what the plan came to."""
    plan_sha256: str = ""
    """Of the plan's file."""
    statistics_sha256: str = ""
    """Of what the statistics hold."""


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides the weights a run ends with, and how it reports on the way."""

    architecture: DLRMConfig = field(default_factory=criteo_kaggle)
    representation: Representation | None = None
    """table: every table stored row by row; tt: tensor trains (of 100,000 rows and more, unless the settings
    say which); dhe: every table a deep hash embedding; hybrid: each beside one; select: deep hash
    embeddings for the largest tables. Default: tables, and tensor trains where the settings name some."""
    hashing: HashingConfig = field(default_factory=HashingConfig)
    compression: CompressionConfig = field(default_factory=CompressionConfig)
    placement: PlacementConfig = field(default_factory=PlacementConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    batch_size: int = 2048
    """Rows per update."""
    epochs: int = 1
    """Passes over the training rows, each in time order; more than one overfits Criteo."""
    max_rows: int | None = None
    """Train on the first so many rows of the training split only."""
    precision: Precision = "fp32"
    """bf16: matrix products of the MLPs in bfloat16 (autocast), and those of tensor trains whose ranks and of
    deep hash embeddings whose widths 16 divides, where the processor multiplies bf16 (AVX-512 BF16); tables,
    cores, sums and updates stay fp32."""
    dense_representation: DenseRepresentation = "dense"
    """Tables that are no tensor trains: dense, or fbgemm for FBGEMM's, which update themselves in the
    backward pass (CPU, an embedding dimension that 4 divides; needs the package fbgemm-gpu-cpu)."""
    init_from: str | None = None
    """Start from the weights of this trained run; a table that the settings make a tensor train and that was
    dense there is fitted to it as tt_fit says."""
    seed: int = 0
    """The same seed gives the same weights."""
    device: str = "cpu"
    """Cpu or cuda."""
    log_every: int = 50
    """Updates between two lines of metrics.jsonl."""
    evals_per_epoch: int = 4
    """Evaluations on the validation split in an epoch, the last at its end; 0: none."""
    checkpoint_every_s: float | None = 600.0
    """Seconds between checkpoints, with one more at the end; none: no checkpoint at all."""

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("epochs", 1), ("log_every", 1), ("evals_per_epoch", 0)):
            value = getattr(self, name)
            if value < least:
                raise InputError(f"{name} = {value}; it must be at least {least}")
        if self.max_rows is not None and self.max_rows < 1:
            raise InputError(f"max_rows = {self.max_rows}; it must be at least 1")
        if self.checkpoint_every_s is not None and not self.checkpoint_every_s >= 0:
            raise InputError(f"checkpoint_every_s = {self.checkpoint_every_s}; it must be 0 or more")
        if self.precision not in ("fp32", "bf16"):
            raise InputError(f"precision = {self.precision!r}; it must be 'fp32' or 'bf16'")
        if self.dense_representation not in ("dense", "fbgemm"):
            raise InputError(
                f"dense_representation = {self.dense_representation!r}; it must be 'dense' or 'fbgemm'"
            )
        if self.device.partition(":")[0] not in ("cpu", "cuda"):
            raise InputError(f"device = {self.device!r}; it must be 'cpu' or 'cuda'")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed = {self.seed}; it must be between 0 and 2^63 - 1")
        _check_representation(self)
        if self.representation == "tt" and not self.compression.names_trains():
            named = dataclasses.replace(self.compression, tt_threshold=TT_THRESHOLD)
            object.__setattr__(self, "compression", named)

    def to_json(self) -> dict[str, Any]:
        """JSON values only."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> TrainingConfig:
        """The inverse of `to_json`."""
        try:
            return typing.cast(TrainingConfig, _build(cls, document))
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"not a training configuration: {error!r}") from None


def _check_representation(config: TrainingConfig) -> None:
    """Raises where settings are of another representation than the one that is asked for."""
    kind, compression = config.representation, config.compression
    if kind not in (None, *typing.get_args(Representation)):
        raise InputError(
            f"representation = {kind!r}; it must be one of {', '.join(typing.get_args(Representation))}"
        )
    if config.hashing != HashingConfig() and kind not in HASHED:
        raise InputError(
            "there are settings of deep hash embeddings, but no table is one: add --representation dhe, "
            "hybrid or select"
        )
    if kind in ("table", "dhe") and compression.names_trains():
        raise InputError(
            f"representation = {kind!r} leaves no table for a tensor train; leave out tt_threshold, "
            "tt_tables and memory_budget, or take 'tt', 'hybrid' or 'select'"
        )
    if kind in ("hybrid", "select") and compression.memory_budget is not None:
        raise InputError(
            f"memory_budget does not count the networks of representation = {kind!r}; name tensor trains by "
            "tt_threshold or tt_tables instead"
        )
    if kind in ("dhe", "hybrid") and config.dense_representation != "dense":
        raise InputError(
            f"representation = {kind!r} has no plain tables; leave out dense_representation = "
            f"{config.dense_representation!r}"
        )
    if kind == "hybrid" and compression.tt_cache_rows:
        raise InputError("the tensor trains of a hybrid hold no rows dense; leave out tt_cache_rows")
    if kind in HASHED and config.placement.plan is not None:
        raise InputError(
            f"a plan places the rows of dense tables; leave out either the plan or representation = {kind!r}"
        )


# What may change when a run goes on: it does not touch the weights.
FREE_TO_CHANGE = frozenset({"checkpoint_every_s", *(f"placement.{f.name}" for f in fields(PlacementConfig))})


def differences(old: TrainingConfig, new: TrainingConfig) -> list[str]:
    """The fields in which two configurations differ and that decide a run, as "field: old -> new"."""
    after = dict(leaves(new))
    return [
        f"{path}: {value!r} -> {after[path]!r}"
        for path, value in leaves(old)
        if value != after[path] and path not in FREE_TO_CHANGE
    ]


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of every field that is no dataclass itself."""
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            yield from leaves(value, f"{prefix}{f.name}.")
        else:
            yield f"{prefix}{f.name}", value


def replaced(config: Any, changes: Mapping[str, Any]) -> Any:
    """A configuration with the fields at dotted paths replaced, and checked again."""
    own: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {}
    for path, value in changes.items():
        head, _, rest = path.partition(".")
        if rest:
            inner.setdefault(head, {})[rest] = value
        else:
            own[head] = value
    for head, nested in inner.items():
        own[head] = replaced(getattr(config, head), nested)
    return dataclasses.replace(config, **own)


# Fields under their names in earlier versions; what they held means the same.
_RENAMED = {"core_update": "table_update"}


def _build(cls: type[Any], document: Mapping[str, Any]) -> Any:
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for written, value in document.items():
        name = _RENAMED.get(written, written)
        hint = hints[name]
        if is_dataclass(hint):
            values[name] = _build(typing.cast(type[Any], hint), value)
        else:
            values[name] = tuple(value) if typing.get_origin(hint) is tuple else value
    return cls(**values)


def optional_type(hint: Any) -> tuple[Any, bool]:
    """X | None -> (X, True); X -> (X, False)."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        (inner,) = [t for t in typing.get_args(hint) if t is not type(None)]
        return inner, True
    return hint, False


def recipe_criteo_kaggle() -> TrainingConfig:
    """The DLRM of Criteo Kaggle (dimension 16), trained with Adagrad.

    Tables and cores learn at the rates that `recsys-opt bench quality --search` found on the validation rows
    of a 0.3 % sample. The MLPs learn more slowly than it found, after a warm-up: at its .009 one run of ten
    ended at an AUC of .72, as all did at .017.
    """
    return TrainingConfig(
        architecture=criteo_kaggle(),
        optimizer=OptimizerConfig(algorithm="adagrad", mlp_lr=0.005, table_lr=0.04, core_lr=0.017),
        schedule=ScheduleConfig(warmup=0.05),
        batch_size=128,
    )


def recipe_criteo_terabyte() -> TrainingConfig:
    """The DLRM of Criteo Terabyte (dimension 64), trained with Adagrad on large batches."""
    return TrainingConfig(
        architecture=criteo_terabyte(),
        optimizer=OptimizerConfig(algorithm="adagrad", mlp_lr=0.01, table_lr=0.03, core_lr=0.02),
        schedule=ScheduleConfig(warmup=0.02, decay=0.3, decay_shape="quadratic"),
        batch_size=2048,
    )


RECIPES = {"criteo_kaggle": recipe_criteo_kaggle, "criteo_terabyte": recipe_criteo_terabyte}
"""Whole configurations by name."""


def recipe(name: str) -> TrainingConfig:
    """A recipe by name."""
    if name not in RECIPES:
        raise InputError(f"there is no recipe {name!r}; choose one of {', '.join(RECIPES)}")
    return RECIPES[name]()
