"""A training step of the Criteo Kaggle DLRM: tensor trains beside dense tables of three makes, in one run.

Forward, binary cross-entropy, backward and update are timed; making the batch is not. Candidates take turns
and are compared round by round (`recsys_opt.bench.measure`). Beside them, on request, the DLRM repository's
own script, which draws its ids uniformly.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from recsys_opt import ops
from recsys_opt.bench.measure import Program, Task, Turns, quantile, take_turns
from recsys_opt.bench.train_models import (
    TABLES,
    Batch,
    Candidate,
    TTOptions,
    build_models,
    make_step,
)
from recsys_opt.data.descriptor import published_cardinalities
from recsys_opt.data.synth import SyntheticCriteo
from recsys_opt.errors import InputError, RecsysOptError
from recsys_opt.models.dlrm import DLRM
from recsys_opt.models.recipes import criteo_kaggle
from recsys_opt.progress import Progress

POOL_ROWS = 1 << 18
"""Rows of the batches that a candidate cycles through; what they look up is larger than the caches."""
FEWEST_BATCHES, MOST_BATCHES = 8, 512
SCRIPT_STEPS = 20
"""Timed steps of the script in a turn."""
SCRIPT = "DLRM repository's script, dense fp32 sgd uniform"


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    batch_sizes: tuple[int, ...] = (2048,)
    rounds: int = 10
    """Turns of every candidate."""
    block_ms: float = 300.0
    """A turn's length, about, without its warming steps."""
    tables: tuple[str, ...] = tuple(
        t for t in TABLES if t != "fbgemm" or importlib.util.find_spec("fbgemm_gpu")
    )
    """The candidates' kinds of tables."""
    precisions: tuple[Literal["fp32", "bf16"], ...] = ("fp32", "bf16")
    algorithms: tuple[Literal["sgd", "adagrad"], ...] = ("sgd",)
    ids: Literal["criteo", "uniform"] = "criteo"
    """criteo: rows of `data synth`, with the skew and dependences of Kaggle's; uniform: over each table."""
    tt_tables: int = 7
    """The largest tables that become tensor trains in the TT candidates."""
    tt_rank: int = 32
    tt_q_shapes: tuple[int, ...] | None = None
    """Their column factors; None: the library's default."""
    threads: int | None = None
    """None: torch's choice."""
    max_rows: int | None = None
    """Cuts the tables' rows, for a quick look; None: the published ones, 2.16 GB."""
    dlrm_script: Path | None = None
    """The DLRM repository's dlrm_s_pytorch.py, to run beside; None: without it."""
    dlrm_python: str = "python3"
    """The interpreter that has what the script needs."""

    def __post_init__(self) -> None:
        for what, value in (
            ("rounds", self.rounds),
            ("threads", 1 if self.threads is None else self.threads),
            *((("batch size", b)) for b in self.batch_sizes),
        ):
            if value < 1:
                raise InputError(f"{what} = {value}; it must be at least 1")
        if not self.block_ms > 0:
            raise InputError(f"block_ms = {self.block_ms}; it must be above 0")
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
    candidates = [
        Candidate(tables, precision, algorithm)
        for precision in settings.precisions
        for algorithm in settings.algorithms
        for tables in settings.tables
        if tables != "nn" or algorithm == "sgd"
    ]
    before, bf16_before = torch.get_num_threads(), ops.tt_allow_bf16(False)
    torch.set_num_threads(settings.threads or before)
    try:
        models = build_models(
            candidates, settings.rows, TTOptions(settings.tt_tables, settings.tt_rank, settings.tt_q_shapes)
        )
        return [
            row
            for batch_size in settings.batch_sizes
            for row in _measure(models, candidates, batch_size, settings, progress)
        ]
    finally:
        torch.set_num_threads(before)
        ops.tt_allow_bf16(bf16_before)


def _measure(
    models: dict[str, DLRM],
    candidates: Sequence[Candidate],
    batch_size: int,
    settings: Settings,
    progress: Progress,
) -> list[dict[str, Any]]:
    batches = _batches(settings, batch_size)
    tasks: dict[str, Task | Program] = {}
    if settings.dlrm_script is not None:
        tasks[SCRIPT] = Program(lambda: _script_times(settings, batch_size))
    for candidate in candidates:
        tasks[candidate.name] = Task(make_step(models[candidate.model], candidate, batches))
    progress.start(f"batch size {batch_size}", None, "turn")
    turns = take_turns(
        tasks,
        rounds=settings.rounds,
        block_s=settings.block_ms / 1e3,
        done=lambda name: progress.advance(1, last=name),
    )
    progress.finish()
    rows = []
    for name, found in turns.items():
        row = {"candidate": name, "batch_size": batch_size, **_figures(found, batch_size)}
        _, _, rest = name.partition(" ")
        for other, baseline in (("nn", f"nn {rest}"), ("fbgemm", f"fbgemm {rest}"), ("script", SCRIPT)):
            if baseline in turns and (name != SCRIPT or other == "script"):
                ratios = found.ratios(turns[baseline])
                row[f"ratio_to_{other}"] = {
                    "median": round(quantile(ratios, 0.5), 4),
                    "p20": round(quantile(ratios, 0.2), 4),
                    "p80": round(quantile(ratios, 0.8), 4),
                }
        rows.append(row)
    return rows


def _figures(turns: Turns, batch_size: int) -> dict[str, Any]:
    timing = turns.timing()
    return {
        "median_ms": round(1e3 * timing.median_s, 3),
        "p20_ms": round(1e3 * timing.p20_s, 3),
        "p80_ms": round(1e3 * timing.p80_s, 3),
        "steps": timing.repeats,
        "rounds": len(turns.rounds),
        "samples_per_s": round(batch_size / timing.median_s),
    }


def _batches(settings: Settings, batch_size: int) -> list[Batch]:
    count = max(FEWEST_BATCHES, min(-(-POOL_ROWS // batch_size), MOST_BATCHES))
    total = count * batch_size
    if settings.ids == "criteo":
        rows = SyntheticCriteo(total, seed=0, max_cardinality=settings.max_rows).rows(0, total)
        dense, labels = torch.from_numpy(rows.dense), torch.from_numpy(rows.labels)[:, 0].float()
        sparse = torch.from_numpy(rows.sparse)
    else:
        g = torch.Generator().manual_seed(0)
        dense, labels = torch.randn(total, 13, generator=g), torch.rand(total, generator=g).round()
        sparse = torch.stack(
            [torch.randint(0, n, (total,), generator=g, dtype=torch.int32) for n in settings.rows], dim=1
        )
    return [
        (d, s.T.reshape(-1), y)
        for d, s, y in zip(
            dense.split(batch_size), sparse.split(batch_size), labels.split(batch_size), strict=True
        )
    ]


def _script_times(settings: Settings, batch_size: int) -> list[float]:
    """Runs the DLRM repository's script once; the mean of every 5 steps after the first 5, in seconds."""
    recipe = criteo_kaggle()
    every = 5
    steps = SCRIPT_STEPS + every
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
