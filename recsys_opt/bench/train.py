"""Throughput of a training step of the Criteo Kaggle DLRM, beside the DLRM repository's own script.

Forward, binary cross-entropy, backward and update are timed; making the batch is not, in the script as here.
All candidates run in each round, one after the other, so that a noisy machine is noisy for all of them.
"""

from __future__ import annotations

import math
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from recsys_opt.bench.measure import quantile
from recsys_opt.data.dataset import SparseColumn
from recsys_opt.data.descriptor import published_cardinalities
from recsys_opt.errors import InputError, RecsysOptError
from recsys_opt.models.dlrm import DLRM
from recsys_opt.models.recipes import criteo_kaggle, table_configs
from recsys_opt.progress import Progress
from recsys_opt.training.optimizers import ModelOptimizer, OptimizerConfig

POOL = 8
"""Batches that a candidate cycles through."""
WARM_UP = 3
"""Steps that are not counted, in every round."""


@dataclass(frozen=True)
class Candidate:
    """One way to run a training step."""

    tables: Literal["dense", "tt", "fbgemm"]
    precision: Literal["fp32", "bf16"]
    algorithm: Literal["sgd", "adagrad"]
    ids: Literal["uniform", "zipf"] = "uniform"

    @property
    def model(self) -> str:
        """Candidates of equal `model` share one; FBGEMM's tables keep the rule they began with."""
        return f"fbgemm {self.algorithm}" if self.tables == "fbgemm" else self.tables

    @property
    def name(self) -> str:
        """For the printed table."""
        return f"{self.tables} {self.precision} {self.algorithm} {self.ids}"


CANDIDATES = (
    Candidate("dense", "fp32", "sgd"),
    Candidate("dense", "bf16", "sgd"),
    Candidate("dense", "bf16", "adagrad"),
    Candidate("dense", "bf16", "sgd", "zipf"),
    Candidate("tt", "fp32", "sgd"),
    Candidate("tt", "bf16", "sgd"),
    Candidate("tt", "bf16", "adagrad"),
    Candidate("tt", "bf16", "sgd", "zipf"),
    Candidate("fbgemm", "fp32", "sgd"),
    Candidate("fbgemm", "bf16", "sgd"),
    Candidate("fbgemm", "bf16", "adagrad"),
)


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    batch_sizes: tuple[int, ...] = (2048,)
    rounds: int = 3
    """Turns of every candidate."""
    steps: int = 20
    """Timed steps per turn."""
    tt_tables: int = 7
    """The largest tables that become tensor trains in the TT candidates."""
    tt_rank: int = 32
    max_rows: int | None = None
    """Cuts the tables' rows, for a quick look; None: the published ones, 2.16 GB."""
    tables: tuple[str, ...] = ("dense", "tt", "fbgemm")
    """The candidates' kinds of tables."""
    dlrm_script: Path | None = None
    """The DLRM repository's dlrm_s_pytorch.py, to run beside; None: without it."""
    dlrm_python: str = "python3"
    """The interpreter that has what the script needs."""

    def __post_init__(self) -> None:
        for what, value in (
            ("rounds", self.rounds),
            ("steps", self.steps),
            *((("batch size", b)) for b in self.batch_sizes),
        ):
            if value < 1:
                raise InputError(f"{what} = {value}; it must be at least 1")
        if self.dlrm_script is not None and not self.dlrm_script.is_file():
            raise InputError(
                f"{self.dlrm_script} does not exist; give the path of the DLRM repository's dlrm_s_pytorch.py"
            )

    @property
    def rows(self) -> tuple[int, ...]:
        """The tables' rows."""
        return tuple(min(n, self.max_rows or n) for n in published_cardinalities()["kaggle"])


def run(settings: Settings, progress: Progress) -> list[dict[str, Any]]:
    """Measures; one row per batch size and candidate, the script's first."""
    candidates = [c for c in CANDIDATES if c.tables in settings.tables]
    models = {c.model: c.tables for c in candidates}
    built = {name: _model(kind, settings) for name, kind in models.items()}
    rows: list[dict[str, Any]] = []
    for batch_size in settings.batch_sizes:
        times: dict[Candidate | None, list[float]] = {}
        progress.start(f"batch size {batch_size}", settings.rounds * (len(candidates) + 1), "turn")
        pools = {ids: _batches(settings.rows, batch_size, ids) for ids in ("uniform", "zipf")}
        for _ in range(settings.rounds):
            if settings.dlrm_script is not None:
                times.setdefault(None, []).extend(_script_times(settings, batch_size))
            progress.advance(1)
            for candidate in candidates:
                taken = _step_times(built[candidate.model], candidate, pools[candidate.ids], settings.steps)
                times.setdefault(candidate, []).extend(taken)
                progress.advance(1)
        progress.finish()
        baseline = quantile(times[None], 0.5) if None in times else None
        rows += [_row(candidate, batch_size, taken, baseline) for candidate, taken in times.items()]
    return rows


def _row(
    candidate: Candidate | None, batch_size: int, times_s: Sequence[float], baseline_s: float | None
) -> dict[str, Any]:
    median_s = quantile(list(times_s), 0.5)
    return {
        "candidate": candidate.name if candidate else "DLRM repository's script, dense fp32 sgd uniform",
        "batch_size": batch_size,
        "median_ms": round(1e3 * median_s, 3),
        "p20_ms": round(1e3 * quantile(list(times_s), 0.2), 3),
        "p80_ms": round(1e3 * quantile(list(times_s), 0.8), 3),
        "timings": len(times_s),
        "samples_per_s": round(batch_size / median_s),
        "ratio_to_script": None if baseline_s is None else round(baseline_s / median_s, 3),
    }


def _model(kind: str, settings: Settings) -> DLRM:
    recipe = criteo_kaggle()
    columns = [SparseColumn(f"C{i + 1}", n) for i, n in enumerate(settings.rows)]
    largest = sorted(columns, key=lambda c: -c.num_embeddings)[: settings.tt_tables]
    tables = table_configs(
        columns,
        recipe.embedding_dim,
        tt_tables=[c.name for c in largest] if kind == "tt" else [],
        tt_ranks=settings.tt_rank,
        dense_representation="fbgemm" if kind == "fbgemm" else "dense",
    )
    torch.manual_seed(0)
    return recipe.build(tables)


Batch = tuple[Tensor, Tensor, Tensor]


def _batches(rows: Sequence[int], batch_size: int, ids: str) -> list[Batch]:
    """Random batches: dense [B, 13], values [26 * B], labels [B]; ids uniform, or Zipf with exponent 1."""
    g = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(POOL):
        columns = []
        for n in rows:
            if ids == "uniform":
                columns.append(torch.randint(0, n, (batch_size,), generator=g))
                continue
            u = torch.rand(batch_size, generator=g, dtype=torch.float64)
            rank = (torch.exp(u * math.log(n + 1)) - 1).long().clamp(max=n - 1)
            columns.append(rank * 2654435761 % n)  # hot rows are not neighbours
        dense, labels = torch.randn(batch_size, 13, generator=g), torch.rand(batch_size, generator=g).round()
        batches.append((dense, torch.cat(columns).to(torch.int32), labels))
    return batches


def _step_times(model: DLRM, candidate: Candidate, batches: Sequence[Batch], steps: int) -> Iterator[float]:
    """Wall times of `steps` training steps, in seconds."""
    optimizer = ModelOptimizer(model, OptimizerConfig(candidate.algorithm, 0.1, 0.1, 0.1))
    for step in range(WARM_UP + steps):
        dense, values, labels = batches[step % len(batches)]
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=candidate.precision == "bf16"):
            logits = model(dense, values)
        loss = binary_cross_entropy_with_logits(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step >= WARM_UP:
            yield time.perf_counter() - began


def _script_times(settings: Settings, batch_size: int) -> list[float]:
    """Runs the DLRM repository's script once; the mean of every 5 steps after the first 5, in seconds."""
    recipe = criteo_kaggle()
    every = 5
    steps = math.ceil(settings.steps / every) * every + every
    widths = "-".join(map(str, (recipe.dense_features, *recipe.bottom_mlp)))
    command = [
        settings.dlrm_python,
        str(settings.dlrm_script),
        f"--arch-sparse-feature-size={recipe.embedding_dim}",
        f"--arch-mlp-bot={widths}",
        f"--arch-mlp-top={'-'.join(map(str, recipe.top_mlp))}",
        f"--arch-embedding-size={'-'.join(map(str, settings.rows))}",
        "--data-generation=random",
        f"--mini-batch-size={batch_size}",
        f"--num-batches={steps}",
        "--num-indices-per-lookup=1",
        "--num-indices-per-lookup-fixed=True",
        "--loss-function=bce",
        "--learning-rate=0.1",
        f"--print-freq={every}",
        "--print-time",
        "--nepochs=1",
    ]
    assert settings.dlrm_script is not None
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=settings.dlrm_script.parent)
    except OSError as error:
        raise InputError(f"cannot run {settings.dlrm_python}: {error.strerror}; see --dlrm-python") from None
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise RecsysOptError(f"{settings.dlrm_script} ended with code {done.returncode}: {' '.join(last)}")
    found = [float(ms) / 1e3 for ms in re.findall(r"([\d.]+) ms/it", done.stdout)]
    if len(found) < 2:
        raise RecsysOptError(
            f"{settings.dlrm_script} printed {len(found)} lines with ms/it; expected {steps // every}"
        )
    return found[1:]
