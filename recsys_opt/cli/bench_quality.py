"""`recsys-opt bench quality`: tables, tensor trains and deep hash embeddings on a dataset, several seeds."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from recsys_opt.bench.logistic import fit_logistic
from recsys_opt.bench.quality import DENSE, Comparison, best_settings, summarise
from recsys_opt.bench.quality_trial import CORE_RATE, TUNE_RATE, Place, Row, Variant, tensor_trains
from recsys_opt.bench.record import read_record, write_record
from recsys_opt.bench.uniform import uniform_options
from recsys_opt.cli.arguments import (
    add_config_arguments,
    add_record_argument,
    config_changes,
)
from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.progress import ConsoleProgress
from recsys_opt.cli.train import LEAVE_OUT, NAMES
from recsys_opt.data.dataset import Dataset
from recsys_opt.errors import InputError
from recsys_opt.quantities import byte_size, whole_number
from recsys_opt.training.config import (
    HASHED,
    RECIPES,
    CompressionConfig,
    HashingConfig,
    TrainingConfig,
    recipe,
    replaced,
)

EXAMPLE = "recsys-opt bench quality kaggle/ --variants dense,tt8,tt16,tt32 --seeds 5 --record quality.json"


# What variants and seeds decide.
_VARIANTS_OWN = frozenset(
    {
        "seed",
        "compression.tt_threshold",
        "compression.tt_tables",
        "compression.tt_cache_rows",
        "compression.memory_budget",
        "compression.tt_fit",
        "representation",
        *(f"hashing.{field.name}" for field in fields(HashingConfig)),
        "placement.plan",
        "placement.statistics",
        "placement.cold_dir",
        "checkpoint_every_s",
    }
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the dataset, the size of the comparison and the settings of training."""
    parser.add_argument("dataset", metavar="DATASET", help="a dataset folder")
    parser.add_argument(
        "--variants",
        default="dense,tt",
        help="with commas between, the first is what the others are compared with: dense; tt, tensor trains "
        "of rank --tt-rank; tt8, of rank 8, or any other; tt8@2x1x8, with these column factors; tt8+cache, "
        "with frequent rows held dense; tt8+bf16 and dense+bf16, trained with --precision bf16; svd8, the "
        "trained dense tables as tensor trains of rank 8 by TT-SVD, and fit8, fitted to the rows that the "
        "training rows look up, each as often; svd8+tuned and fit8+tuned, and trained on from there; "
        "dense+tuned, the dense model trained on likewise; budget4MB, "
        "what --memory-budget 4MB chooses, and uniform4MB, one rank for the largest tables at as many bytes; "
        "dhe, hybrid, select, as of train --representation; dhe256, with so many hashes; hybrid@halves, with "
        "--hybrid-parts halves (default dense,tt)",
    )
    parser.add_argument("--cache-rows", type=whole_number, default=10_000, metavar="N", help="variants "
        "+cache: rows of each tensor train that are held dense (default 10000)")  # fmt: skip
    parser.add_argument("--tune-rate", type=float, nargs="+", default=[0.1], metavar="X", help="variants "
        "+tuned: one more pass over the training rows, at this share of the learning rates; of several, each "
        "variant takes the best on the validation rows, tried with seed 0 (default 0.1)")  # fmt: skip
    parser.add_argument("--tt-above", type=int, default=100_000, metavar="ROWS", help="variants tt: tables "
        "of at least so many rows are tensor trains (default 100000)")  # fmt: skip
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
    add_record_argument(parser, also="; every run as soon as it is done")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the record: runs that it holds are not made again, and with --work one that was "
        "interrupted goes on from its last checkpoint, of 5 minutes or less before",
    )
    parser.add_argument("--hash-rate", type=float, metavar="X", help="variants dhe, hybrid and select: the "
        "learning rate of their networks in a run without a search (default: --core-lr, which is for tensor "
        "trains)")  # fmt: skip
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="for run folders, up to 2.3 GB for "
        "variants that begin with a dense model (default: the temporary folder)")  # fmt: skip
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="criteo_kaggle", help="settings")
    settings = parser.add_argument_group("settings (default: the recipe's)")
    add_config_arguments(settings, TrainingConfig, names=NAMES, leave_out=LEAVE_OUT | _VARIANTS_OWN)


def run(args: argparse.Namespace) -> Outcome:
    """Searches, trains the seeds, compares."""
    names = args.variants.split(",")
    if len(set(names)) < len(names):
        raise InputError(f"--variants {args.variants} names a variant twice")
    if args.seeds < 1 or args.search < 0 or args.jobs < 1:
        raise InputError("--seeds and --jobs must be at least 1, --search at least 0")
    if args.hash_rate is not None and not args.hash_rate > 0:
        raise InputError(f"--hash-rate {args.hash_rate}: give a rate above 0")
    if min(args.tune_rate) <= 0 or len(set(args.tune_rate)) < len(args.tune_rate):
        raise InputError(f"--tune-rate {args.tune_rate}: give rates above 0, none twice")
    dataset = Dataset(args.dataset)
    config = replaced(recipe(args.recipe), config_changes(args))
    variants = [_variant(name, args, config, dataset) for name in names]
    for split in ("validation", "test"):
        start, stop = dataset.split(split)
        if start == stop:
            raise InputError(
                f"{args.dataset} has no {split} rows to compare on; make it with --split 80/10/10"
            )
    described = {
        "dataset": _dataset_words(dataset),
        "tt_above": args.tt_above,
        "cache_rows": args.cache_rows,
        "config": config.to_json(),
    }
    rows: list[Row] = list(_finished(args, described))
    _check_shapes(args, rows, variants, config, dataset)

    def keep(row: Row) -> None:
        rows.append(row)
        if args.record:
            write_record(args.record, "quality", rows, **described)

    with ConsoleProgress() as progress, _folder(args) as work:
        place = Place(args.dataset, config, work, resume=args.resume and args.work is not None)
        comparison = Comparison(place, args.jobs, tuple(rows), keep, progress)
        found = comparison.search(variants, args.search) if args.search else []
        searched = {row["variant"] for row in found}
        chosen = {v.name: best_settings(found, v.name) for v in variants if v.name in searched}
        if args.hash_rate is not None:
            hashed = (v.name for v in variants if v.changes.get("representation") in HASHED)
            chosen = {**{name: {CORE_RATE: args.hash_rate} for name in hashed}, **chosen}
        chosen |= {v.name: chosen.get(DENSE.name, {}) for v in variants if v.after_dense}
        tuned = [v.name for v in variants if v.tuned]
        if len(args.tune_rate) == 1:
            chosen |= {name: {**chosen[name], TUNE_RATE: args.tune_rate[0]} for name in tuned}
        elif tuned:
            found = comparison.search_tuning(variants, chosen, args.tune_rate)
            chosen |= {name: best_settings(found, name) for name in tuned}
        finals = comparison.seeds(variants, chosen, args.seeds)
    summary: dict[str, Any] = {"variants": summarise(finals, names), "chosen": chosen}
    summary["bayes"] = {k: dict(v) for k, v in (dataset.info.bayes or {}).items()} or None
    if args.logistic:
        summary["logistic"] = _logistic(dataset)
    if args.record:
        write_record(args.record, "quality", rows, **described, summary=summary)
    return Outcome(_text(summary, names), summary)


@contextlib.contextmanager
def _folder(args: argparse.Namespace) -> Iterator[Path]:
    """For run folders; one that --resume may need again stays when the command is interrupted."""
    if args.resume and args.work is not None:
        folder: Path = args.work / f"{args.record.stem}_runs"
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        shutil.rmtree(folder)
    else:
        with tempfile.TemporaryDirectory(dir=args.work, prefix="quality_") as folder_name:
            yield Path(folder_name)


def _variant(name: str, args: argparse.Namespace, config: TrainingConfig, dataset: Dataset) -> Variant:
    if name.endswith("+bf16"):
        exact = _variant(name.removesuffix("+bf16"), args, config, dataset)
        if exact.after_dense or "precision" in exact.changes:
            raise InputError(f"--variants: {name!r}; +bf16 goes with what is trained from the start, once")
        return Variant(name, {**exact.changes, "precision": "bf16"})
    tuned = name.endswith("+tuned")
    if name == "dense":
        return DENSE
    if name == "dense+tuned":
        return Variant(name, DENSE.changes, after_dense=True, tuned=True)
    within = re.fullmatch(r"(budget|uniform)(\d.*)", name)
    if within is not None:
        size = _bytes(within[2])
        if within[1] == "budget":
            # It chooses the ranks too: --tt-rank is for the other variants.
            return Variant(
                name, {"compression.memory_budget": size, "compression.tt_rank": CompressionConfig.tt_rank}
            )
        columns, dim = dataset.info.sparse_columns, config.architecture.embedding_dim
        return Variant(name, {"compression.tt_options": uniform_options(columns, dim, size)})
    deep = re.fullmatch(r"(dhe|hybrid|select)([1-9]\d*)?(@halves)?", name)
    if deep is not None and not (deep[3] and deep[1] != "hybrid"):
        hashes = {} if deep[2] is None else {"hashing.dhe_hashes": int(deep[2])}
        halves = {"hashing.hybrid_parts": "halves"} if deep[3] else {}
        return Variant(name, {"representation": deep[1], **hashes, **halves})
    found = re.fullmatch(r"tt([1-9]\d*)?(?:@(\d+(?:x\d+)*))?(\+cache)?|(svd|fit)([1-9]\d*)(\+tuned)?", name)
    if found is None:
        raise InputError(
            f"--variants {args.variants}: there is no variant {name!r}; choose dense, tt, tt8, "
            "tt8@2x1x8, tt8+cache, tt8+bf16, dense+bf16, svd8, fit8, fit8+tuned, dense+tuned, with any rank "
            "for 8, budget4MB, uniform4MB, with any size, dhe, hybrid, hybrid@halves, select, "
            "dhe256, with any number of hashes"
        )
    rank = found[1] or found[5]
    changes: dict[str, Any] = {} if rank is None else {"compression.tt_rank": int(rank)}
    if found[2]:
        own = {"tt_ranks": int(rank or config.compression.tt_rank), "tt_q_shapes": _factors(found[2])}
        large = [c for c in dataset.info.sparse_columns if c.num_embeddings >= args.tt_above]
        changes["compression.tt_options"] = {column.name: own for column in large}
    else:
        changes["compression.tt_threshold"] = args.tt_above
    if found[3]:
        changes["compression.tt_cache_rows"] = args.cache_rows
    if found[4]:
        changes["compression.tt_fit"] = "svd" if found[4] == "svd" else "counts"
    return Variant(name, changes, after_dense=found[4] is not None, tuned=tuned)


def _factors(text: str) -> list[int]:
    return [int(factor) for factor in text.split("x")]


def _bytes(text: str) -> int:
    try:
        return byte_size(text)
    except ValueError as error:
        raise InputError(f"--variants: {error}; write e.g. budget4MB or budget512KiB") from None


def _finished(args: argparse.Namespace, described: Mapping[str, Any]) -> Sequence[Row]:
    """The rows of the record to go on with."""
    if not args.resume:
        return ()
    if args.record is None:
        raise InputError("--resume needs --record, the record to go on with")
    if not args.record.exists():
        return ()
    record = read_record(args.record)
    # Fields that the configuration did not have yet are as if at their defaults.
    record = {**record, "config": TrainingConfig.from_json(record["config"]).to_json()}
    record = json.loads(json.dumps(record))
    for what, now in json.loads(json.dumps(described)).items():
        if record.get(what) != now:
            raise InputError(
                f"{args.record} was made with another {what}; leave out --resume to make it anew, or write "
                "to another record"
            )
    found: Sequence[Row] = record["rows"]
    return found


def _check_shapes(
    args: argparse.Namespace,
    rows: Sequence[Row],
    variants: Sequence[Variant],
    config: TrainingConfig,
    dataset: Dataset,
) -> None:
    """Refuses a record in which a variant had other tensor trains than it would get now."""
    for variant in variants:
        own = [row for row in rows if row["variant"] == variant.name]
        if not own:
            continue
        now = tensor_trains(variant, config, dataset)
        for row in own:
            before = row.get("tensor_trains")
            if before is not None and _factors_alone(before) == _factors_alone(now):
                continue
            said = "of shapes that it does not tell" if before is None else f"of {_first_apart(before, now)}"
            raise InputError(
                f"{args.record} has trained {variant.name} with tensor trains {said}; leave out --resume to "
                "make it anew, write to another record, or name column factors, as in tt8@2x1x8"
            )


def _factors_alone(trains: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Without ranks, which the variant's name tells; a fit has less where a table cannot use as many."""
    return {name: {k: v for k, v in own.items() if k != "tt_ranks"} for name, own in trains.items()}


def _first_apart(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    old, new = _factors_alone(before), _factors_alone(now)
    name = next(n for n in [*old, *new] if old.get(n) != new.get(n))
    return f"other shapes than now ({name}: {old.get(name, 'dense')}, now {new.get(name, 'dense')})"


def _logistic(dataset: Dataset) -> dict[str, Any]:
    found = fit_logistic(dataset)
    return {
        "l2": found.l2,
        "validation_auc": found.validation.auc,
        "test_auc": found.test.auc,
        "test_logloss": found.test.logloss,
        "searched": [{"l2": l2, "validation_auc": auc} for l2, auc in found.searched],
    }


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
    """A line per variant, at most 100 columns."""
    many = f"minus {names[0]} (s.e.)"
    lines = [f"{'':<13}{'MB':>8}{'smaller':>9}  {'test AUC':<19}{many:<20}{'logloss':<9}{many}"]
    for name in names:
        v = summary["variants"][name]
        auc, loss = v["test_auc"], v["test_logloss"]
        apart = {
            field: _difference(v.get(f"{field}_difference"), v["seeds"])
            for field in ("test_auc", "test_logloss")
        }
        lines.append(
            f"{name:<13}{v['embedding_bytes'] / 1e6:8.1f}{v['smaller']:8.1f}x  "
            f"{auc['mean']:.5f} ± {auc['spread']:.5f}  {apart['test_auc']:<20}"
            f"{loss['mean']:<9.5f}{apart['test_logloss']}".rstrip()
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


def _difference(found: Mapping[str, float] | None, seeds: int) -> str:
    """One seed says nothing of the spread."""
    if found is None:
        return ""
    return f"{found['mean']:+.5f}" + (f" ({found['standard_error']:.5f})" if seeds > 1 else "")
