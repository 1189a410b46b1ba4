"""`recsys-opt demo`: the main job on generated data: dense and tensor-train tables compared."""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.progress import ConsoleProgress
from recsys_opt.cli.values import whole
from recsys_opt.data.synth import SyntheticCriteo, write_dataset
from recsys_opt.report.comparison import comparison
from recsys_opt.report.run import write_run_report
from recsys_opt.training.config import CompressionConfig, TrainingConfig, recipe
from recsys_opt.training.trainer import TrainResult, train

EXAMPLE = "recsys-opt demo --out demo/ --rows 1000000"

# The 7 largest tables of Criteo Kaggle have more rows than this (TT-Rec, table 2).
TT_THRESHOLD = 100_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="default: demo/")
    parser.add_argument(
        "--rows", type=whole, default=1_000_000, metavar="N", help="rows to generate (default 1000000)"
    )
    parser.add_argument(
        "--tt-rank", type=int, default=32, metavar="R", help="rank of the tensor trains (default 32)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the rows and of the weights (default 0)")
    parser.add_argument(
        "--max-cardinality",
        type=whole,
        metavar="K",
        help="fold the ids of larger tables into K rows, for a machine with less than 6 GB of memory "
        "(default: the published cardinalities, 2.2 GB of dense tables)",
    )


def run(args: argparse.Namespace) -> Outcome:
    """Generates, trains twice, compares. A run that was interrupted goes on where it stopped."""
    began = time.perf_counter()
    dataset: Path = args.out / "dataset"
    base = dataclasses.replace(recipe("criteo_kaggle"), batch_size=2048, precision="bf16", seed=args.seed)
    compressed = CompressionConfig(tt_threshold=TT_THRESHOLD, tt_rank=args.tt_rank)
    configs = {"dense": base, "tt": dataclasses.replace(base, compression=compressed)}
    with ConsoleProgress() as progress:
        source = SyntheticCriteo(args.rows, seed=args.seed, max_cardinality=args.max_cardinality)
        info = write_dataset(source, dataset, progress=progress)
        results = {
            name: _train(config, dataset, args.out / name, progress) for name, config in configs.items()
        }
    report = comparison(
        {name: result.run for name, result in results.items()},
        args.out / "report.html",
        title="Dense and tensor-train tables on generated Criteo-like data",
    )
    best = (info.bayes or {})["test"]["auc"]
    seconds = time.perf_counter() - began
    text = "\n".join(
        [
            f"{'tables':<14}{'embedding MB':>14}{'test AUC':>10}{'logloss':>10}{'samples/s':>12}",
            *(_line(name, result) for name, result in results.items()),
            f"{'best possible':<14}{'':>14}{best:>10.4f}",
            "",
            f"{_ratio(results):.1f}x smaller tables; {args.rows:,} generated rows, {seconds:.0f} s",
            f"report: {report}",
        ]
    )
    return Outcome(
        text,
        {
            "runs": {name: result.to_json() for name, result in results.items()},
            "bayes": info.bayes,
            "compression": _ratio(results),
            "seconds": round(seconds, 1),
            "report": str(report),
        },
    )


def _train(config: TrainingConfig, dataset: Path, out: Path, progress: ConsoleProgress) -> TrainResult:
    result = train(config, dataset, out, resume=True, progress=progress)
    write_run_report(out)
    return result


def _line(name: str, result: TrainResult) -> str:
    test = result.test
    auc = "-" if test is None or test.auc is None else f"{test.auc:.4f}"
    logloss = "-" if test is None else f"{test.logloss:.4f}"
    speed = f"{result.samples_per_s:,.0f}" if result.samples_per_s else "-"
    return f"{name:<14}{result.embedding_bytes / 1e6:>14,.1f}{auc:>10}{logloss:>10}{speed:>12}"


def _ratio(results: dict[str, TrainResult]) -> float:
    return results["dense"].embedding_bytes / results["tt"].embedding_bytes
