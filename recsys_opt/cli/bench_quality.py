"""`recsys-opt bench quality`: dense tables against tensor trains on a dataset, over several seeds."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recsys_opt.bench.logistic import fit_logistic
from recsys_opt.bench.quality import (
    Trial,
    Variant,
    best,
    mean_and_spread,
    paired_difference,
    search,
    seeds,
)
from recsys_opt.bench.record import write_record
from recsys_opt.cli.arguments import add_config_arguments, config_changes
from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.progress import ConsoleProgress
from recsys_opt.cli.train import LEAVE_OUT, NAMES
from recsys_opt.data.dataset import Dataset
from recsys_opt.errors import InputError
from recsys_opt.training.config import RECIPES, TrainingConfig, recipe, replaced

EXAMPLE = "recsys-opt bench quality kaggle/ --variants dense,tt --seeds 5 --search 8 --record quality.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the dataset, the size of the comparison and the settings of training."""
    parser.add_argument("dataset", metavar="DATASET", help="a dataset folder")
    parser.add_argument(
        "--variants", default="dense,tt", help="dense, tt, or both with a comma between (default both)"
    )
    parser.add_argument("--tt-above", type=int, default=100_000, metavar="ROWS", help="variant tt: tables of "
        "at least so many rows are tensor trains (default 100000)")  # fmt: skip
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="runs per variant (default 5)")
    parser.add_argument(
        "--search",
        type=int,
        default=0,
        metavar="N",
        help="choose learning rates on the validation rows, from the same N settings for every variant "
        "(default 0: the recipe's)",
    )
    parser.add_argument(
        "--logistic", action="store_true", help="fit a logistic regression on the same inputs too"
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time (default 1)")
    parser.add_argument("--record", metavar="FILE", help="write every run to a JSON file")
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="criteo_kaggle", help="settings")
    settings = parser.add_argument_group("settings (default: the recipe's)")
    add_config_arguments(
        settings, TrainingConfig, names=NAMES, leave_out=LEAVE_OUT | {"seed", "compression.tt_threshold",
        "compression.tt_tables", "checkpoint_every_s"}
    )  # fmt: skip


def run(args: argparse.Namespace) -> Outcome:
    """Searches, trains the seeds, compares."""
    known = {
        "dense": Variant("dense", {"compression.tt_threshold": None}),
        "tt": Variant("tt", {"compression.tt_threshold": args.tt_above}),
    }
    names = args.variants.split(",")
    for name in names:
        if name not in known:
            raise InputError(f"--variants {args.variants}: there is no variant {name!r}; choose dense, tt")
    if args.seeds < 1 or args.search < 0 or args.jobs < 1:
        raise InputError("--seeds and --jobs must be at least 1, --search at least 0")
    variants = [known[name] for name in names]
    dataset = Dataset(args.dataset)
    for split in ("validation", "test"):
        start, stop = dataset.split(split)
        if start == stop:
            raise InputError(
                f"{args.dataset} has no {split} rows to compare on; make it with --split 80/10/10"
            )
    config = replaced(recipe(args.recipe), config_changes(args))
    with ConsoleProgress() as progress:
        found = (
            search(args.dataset, config, variants, args.search, args.jobs, progress) if args.search else []
        )
        chosen = {v.name: dict(best(found, v.name).settings) if found else {} for v in variants}
        trials = seeds(args.dataset, config, variants, chosen, args.seeds, args.jobs, progress)
    logistic = fit_logistic(dataset) if args.logistic else None
    summary = summarise(trials, names)
    summary["chosen"] = chosen
    summary["bayes"] = {k: dict(v) for k, v in (dataset.info.bayes or {}).items()} or None
    if logistic:
        summary["logistic"] = {
            "l2": logistic.l2,
            "validation_auc": logistic.validation.auc,
            "test_auc": logistic.test.auc,
            "test_logloss": logistic.test.logloss,
            "searched": [{"l2": l2, "validation_auc": auc} for l2, auc in logistic.searched],
        }
    if args.record:
        rows = [t.row("search") for t in found] + [t.row("seeds") for t in trials]
        write_record(
            Path(args.record),
            "quality",
            rows,
            dataset=_dataset_words(dataset),
            config=config.to_json(),
            summary=summary,
        )
    return Outcome(_text(summary, names), summary)


def summarise(trials: Sequence[Trial], names: Sequence[str]) -> dict[str, Any]:
    """Mean and spread per variant, and the paired difference to the first."""
    summary: dict[str, Any] = {"variants": {}}
    values: dict[str, dict[str, list[float]]] = {}
    for name in names:
        own = [t for t in trials if t.variant == name]
        values[name] = {
            field: [getattr(t.result.test, field) for t in own if t.result.test]
            for field in ("auc", "logloss", "accuracy", "calibration")
        }
        first = own[0].result
        summary["variants"][name] = {
            "seeds": len(own),
            **{
                f"test_{field}": dict(zip(("mean", "spread"), mean_and_spread(v), strict=True))
                for field, v in values[name].items()
                if v
            },
            "test_auc_of_each_seed": values[name]["auc"],
            "embedding_bytes": first.embedding_bytes,
            "smaller": first.dense_embedding_bytes / first.embedding_bytes,
        }
    for name in names[1:]:
        summary["variants"][name]["test_auc_difference"] = paired_difference(
            values[name]["auc"], values[names[0]]["auc"]
        )
    return summary


def _dataset_words(dataset: Dataset) -> dict[str, Any]:
    info = dataset.info
    return {
        "name": info.name,
        "ids": dict(info.ids),
        "labelled_rows": info.labelled_rows,
        "splits": {k: list(v) for k, v in info.splits.items()},
        "input_hash": info.input_hash,
    }


def _text(summary: Mapping[str, Any], names: Sequence[str]) -> str:
    lines = ["variant   test AUC            logloss             tables        smaller"]
    for name in names:
        v = summary["variants"][name]
        auc, loss = v["test_auc"], v["test_logloss"]
        lines.append(
            f"{name:<9} {auc['mean']:.5f} +- {auc['spread']:.5f}  "
            f"{loss['mean']:.5f} +- {loss['spread']:.5f}  "
            f"{v['embedding_bytes'] / 1e6:9.1f} MB  {v['smaller']:.1f}x"
        )
    for name in names[1:]:
        d = summary["variants"][name]["test_auc_difference"]
        lines.append(
            f"{name} - {names[0]}: test AUC {d['mean']:+.5f} (spread {d['spread']:.5f}, standard error "
            f"{d['standard_error']:.5f})"
        )
    if "logistic" in summary:
        worst = min(min(summary["variants"][n]["test_auc_of_each_seed"]) for n in names)
        lines.append(
            f"logistic regression: test AUC {summary['logistic']['test_auc']:.5f}, logloss "
            f"{summary['logistic']['test_logloss']:.5f}; worst seed above {worst:.5f}"
        )
    if summary["bayes"] and "test" in summary["bayes"]:
        lines.append(f"best possible test AUC {summary['bayes']['test']['auc']:.5f}")
    return "\n".join(lines)
