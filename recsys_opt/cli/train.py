"""`recsys-opt train`: trains a DLRM, evaluates it, writes a report."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Collection
from pathlib import Path

from recsys_opt.allocator import keeping_freed_memory
from recsys_opt.cli.arguments import add_config_arguments, config_changes
from recsys_opt.cli.budget_table import budget_table
from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.progress import ConsoleProgress
from recsys_opt.data.dataset import Dataset
from recsys_opt.errors import InputError
from recsys_opt.report.run import write_run_report
from recsys_opt.run_folder import RunFolder
from recsys_opt.training.budget import with_chosen_tables
from recsys_opt.training.config import RECIPES, CompressionConfig, TrainingConfig, recipe, replaced
from recsys_opt.training.evaluate import evaluate_run
from recsys_opt.training.metrics import Metrics
from recsys_opt.training.trainer import TrainResult, train

EXAMPLE = """recsys-opt train kaggle/ --out runs/tt --tt-threshold 100k --tt-rank 32

with deep hash embeddings for all tables, beside all tables, or for the 5 largest alone:
  recsys-opt train kaggle/ --out runs/dhe --representation dhe
  recsys-opt train kaggle/ --out runs/hybrid --representation hybrid --dhe-hashes 512
  recsys-opt train kaggle/ --out runs/select --representation select --dhe-largest 5"""

# Flags that differ from their field's name.
NAMES = {"optimizer.algorithm": "optimizer"}
# What a plan says is in these settings.
SETTLED_BY_PLAN = ("placement.hot_rows", "placement.plan_sha256", "placement.statistics_sha256")
# The dataset says how many dense columns there are, a memory budget says which options tables have.
LEAVE_OUT = frozenset({"architecture.dense_features", "compression.tt_options", *SETTLED_BY_PLAN})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the dataset, the run folder and a flag for every field of TrainingConfig."""
    parser.add_argument("dataset", metavar="DATASET", help="a dataset folder of `recsys-opt data`")
    parser.add_argument("--out", required=True, metavar="RUN", help="the run folder to write")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in RUN")
    parser.add_argument(
        "--evaluate-only",
        metavar="SPLIT",
        help="train nothing: print the metrics of RUN's checkpoint on a split of DATASET",
    )
    parser.add_argument(
        "--recipe",
        choices=sorted(RECIPES),
        help="where settings that are not given come from (default criteo_kaggle; with --resume or "
        "--init-from, that run)",
    )
    settings = parser.add_argument_group("settings (default: the recipe's)")
    add_config_arguments(settings, TrainingConfig, names=NAMES, leave_out=LEAVE_OUT)


def run(args: argparse.Namespace) -> Outcome:
    """Trains, or evaluates a trained run."""
    changes = config_changes(args)
    if args.evaluate_only:
        if changes or args.recipe or args.resume:
            raise InputError("--evaluate-only takes no settings: the run has its own")
        with ConsoleProgress() as progress:
            metrics = evaluate_run(args.out, Dataset(args.dataset), args.evaluate_only, progress=progress)
        return Outcome(_metrics_line(args.evaluate_only, metrics), metrics.to_json())
    if {"placement.plan", "placement.statistics"} & changes.keys():  # another plan than the run's, maybe
        changes |= {name: {} if name.endswith("hot_rows") else "" for name in SETTLED_BY_PLAN}
    config = replaced(_base(args), changes)
    with ConsoleProgress() as progress:
        choice = None
        if not RunFolder(args.out).exists():  # one that goes on has its tables
            config, choice = with_chosen_tables(config, Dataset(args.dataset), progress)
        if choice is not None:
            progress.finish()
            print(budget_table(choice), file=sys.stderr, flush=True)
        with keeping_freed_memory():
            result = train(config, args.dataset, args.out, resume=args.resume, progress=progress)
    report = write_run_report(Path(args.out))
    chosen = {"memory_budget": choice.to_json()} if choice is not None else {}
    return Outcome(_summary(result, report), {**result.to_json(), **chosen, "report": str(report)})


def _base(args: argparse.Namespace) -> TrainingConfig:
    folder = RunFolder(args.out)
    if args.resume and args.recipe is None and folder.exists():
        return TrainingConfig.from_json(folder.description()["config"])
    before = config_changes(args).get("init_from")
    if before is not None and args.recipe is None:
        inherited = TrainingConfig.from_json(RunFolder(before).description()["config"])
        own = _without_choice(inherited.compression, config_changes(args).keys())
        return dataclasses.replace(inherited, compression=own)
    return recipe(args.recipe or "criteo_kaggle")


def _without_choice(before: CompressionConfig, changes: Collection[str]) -> CompressionConfig:
    """An earlier run's settings, without what a budget or a tolerance came to in it if they change."""
    tables = {"compression.tt_threshold", "compression.tt_tables", "compression.memory_budget"}
    if not (tables | {"compression.tt_rank"}) & set(changes):
        return before
    fresh = CompressionConfig(
        tt_cache_rows=before.tt_cache_rows, tt_cache_refresh_every=before.tt_cache_refresh_every
    )
    if tables & set(changes):
        return fresh
    # Another rank alone: for the tables that were tensor trains.
    names = before.tt_tables or tuple(before.tt_options)
    return dataclasses.replace(fresh, tt_threshold=before.tt_threshold, tt_tables=names)


def _summary(result: TrainResult, report: Path) -> str:
    speed = f", {result.samples_per_s:,.0f} samples/s" if result.samples_per_s else ""
    lines = [f"trained    {result.rows:,} rows, {result.steps:,} steps{speed}"]
    for split, metrics in (("validation", result.validation), ("test", result.test)):
        if metrics:
            lines.append(_metrics_line(split, metrics))
    smaller = result.dense_embedding_bytes / result.embedding_bytes
    lines.append(
        f"tables     {result.embedding_bytes / 1e6:,.1f} MB"
        + (f", {smaller:.1f}x smaller than dense" if smaller > 1 else "")
    )
    lines.append(f"report     {report}")
    return "\n".join(lines)


def _metrics_line(split: str, metrics: Metrics) -> str:
    def text(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    return (
        f"{split:<10} AUC {text(metrics.auc, 5)}  logloss {metrics.logloss:.5f}  "
        f"NE {text(metrics.normalised_entropy, 5)}  accuracy {metrics.accuracy:.4f}  "
        f"calibration {text(metrics.calibration, 4)}"
    )
