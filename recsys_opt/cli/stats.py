"""`recsys-opt stats`: how often the rows of embedding tables are looked up."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.progress import ConsoleProgress
from recsys_opt.cli.stats_table import statistics_table, table_details
from recsys_opt.cli.values import at_least, memory_size
from recsys_opt.data.access_count import CountOptions, count_statistics, table_sizes
from recsys_opt.data.access_statistics import AccessStatistics
from recsys_opt.data.dataset import FILE_NAME as DATASET_FILE
from recsys_opt.data.dataset import Dataset
from recsys_opt.data.lookup_sources import ArraySource, DatasetSource, LookupSource
from recsys_opt.data.synth import usable_threads
from recsys_opt.data.table_traces import FILE_NAME as TRACE_FILE
from recsys_opt.data.trace_source import TraceSource
from recsys_opt.errors import InputError
from recsys_opt.files import check_target
from recsys_opt.integrations.parquet import ParquetSource
from recsys_opt.quantities import whole_number

EXAMPLE = "\n  ".join(
    (
        "recsys-opt stats kaggle/ --out stats.npz",
        "recsys-opt stats trace/ --batches 0:3 --out stats.npz",
        "recsys-opt stats monday.parquet tuesday.parquet --rows user=40M --out stats.npz",
        "recsys-opt stats --merge day_0.npz day_1.npz --out stats.npz",
        "recsys-opt stats stats.npz --table C3",
    )
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument(
        "inputs",
        nargs="+",
        type=Path,
        metavar="INPUT",
        help="a dataset folder; a trace folder of data tables; Parquet files or their folder, a column a "
        "table, lists as bags; .npy files of ids, [samples] of one table each or [samples, tables]; or one "
        "stats.npz, to be shown",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="statistics to write, e.g. stats.npz")
    parser.add_argument(
        "--merge",
        action="store_true",
        help="the inputs are statistics of consecutive shards: the result is as if counted in one pass",
    )
    what = parser.add_argument_group("what is counted")
    what.add_argument(
        "--split", metavar="NAME", help="of a dataset: train, validation, test or all (default train)"
    )
    what.add_argument(
        "--range", type=_span, metavar="A:B", help="of a dataset: rows A to B - 1, in place of a split"
    )
    what.add_argument("--batches", type=_span, metavar="A:B", help="of a trace: batches A to B - 1 (all)")
    what.add_argument(
        "--rows",
        action="append",
        default=[],
        metavar="NAME=N",
        help="size of a table whose data does not tell it (Parquet, .npy); may be repeated. Without it: the "
        "largest id + 1, found in a pass before",
    )
    how = parser.add_argument_group("how")
    how.add_argument(
        "--memory",
        type=memory_size,
        default=2_000_000_000,
        metavar="BYTES",
        help="for counters, e.g. 8GB: 8 bytes a row; what does not fit takes more passes (default 2GB)",
    )
    how.add_argument(
        "--passes",
        type=int,
        default=8,
        metavar="N",
        help="over the input, at most (default 8); of the largest tables that do not fit into them, a random "
        "part of the rows is counted, with the error told",
    )
    how.add_argument("--threads", type=at_least(1), default=0, metavar="N", help="default: one a core")
    how.add_argument(
        "--overwrite", action="store_true", help="replace --out, and start an interrupted run over"
    )
    how.add_argument("--table", metavar="NAME", help="print one table at length: its histogram and its curve")
    how.add_argument(
        "--top", type=at_least(1), default=26, metavar="N", help="tables to print, largest first (default 26)"
    )


def run(args: argparse.Namespace) -> Outcome:
    """Counts, merges or shows."""
    if args.merge:
        return _merge(args)
    if len(args.inputs) == 1 and args.inputs[0].suffix == ".npz":
        if args.out is not None:
            raise InputError(f"{args.inputs[0]} is to be shown: leave --out out, or add --merge")
        return _outcome(AccessStatistics.load(args.inputs[0]), args, [f"statistics  {args.inputs[0]}"])
    if args.out is None:
        find_source(args)  # what is wrong with the input comes first
        raise InputError("give the file to write with --out, e.g. --out stats.npz")
    check_target(args.out)
    began = time.perf_counter()
    with ConsoleProgress() as progress:
        source = find_source(args)
        sizes, derived = table_sizes(source, _sizes(args.rows), progress)
        options = CountOptions(
            memory_bytes=args.memory, passes=args.passes, threads=args.threads or usable_threads()
        )
        found, resumed = count_statistics(
            source,
            sizes,
            args.out,
            options,
            overwrite=args.overwrite,
            derived=derived,
            progress=progress,
        )
    seconds = time.perf_counter() - began
    lookups = sum(t.lookups for t in found.tables.values())
    lines = [
        f"statistics  {args.out}  ({args.out.stat().st_size:,} bytes)"
        + (", gone on from an interrupted run" if resumed else ""),
        f"counted     {lookups:,} lookups of {found.samples:,} samples in {seconds:.1f} s, "
        f"{lookups / seconds / 1e6:.0f} M/s",
    ]
    return _outcome(found, args, lines, seconds=round(seconds, 3), resumed=resumed)


def find_source(args: argparse.Namespace) -> LookupSource:
    """The source that the inputs are; refuses flags that are not about it."""
    inputs: list[Path] = args.inputs
    first = inputs[0]
    for path in inputs:
        if not path.exists():
            raise InputError(
                f"{path} does not exist; name what recsys-opt data prepare, data synth or data tables made, "
                "or files of ids"
            )
    is_dataset, is_trace = (first / DATASET_FILE).exists(), (first / TRACE_FILE).exists()
    for flag, given, fits in (
        ("--split", args.split is not None, is_dataset),
        ("--range", args.range is not None, is_dataset),
        ("--batches", args.batches is not None, is_trace),
    ):
        if given and not fits:
            raise InputError(
                f"{flag} is about {'traces' if flag == '--batches' else 'datasets'}; {first} is none"
            )
    if (is_dataset or is_trace) and len(inputs) > 1:
        raise InputError(f"{first} is a folder of its own kind; count {inputs[1]} by itself and use --merge")
    if is_dataset:
        if args.split is not None and args.range is not None:
            raise InputError("--split and --range both say which rows to count; give one")
        split = None if args.split == "all" or args.range is not None else args.split or "train"
        return DatasetSource(Dataset(first), split, args.range)
    if is_trace:
        return TraceSource(first, args.batches)
    files = [file for path in inputs for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    for suffix, make in ((".parquet", ParquetSource), (".npy", ArraySource)):
        fitting = [file for file in files if file.suffix == suffix]
        others = [path for path in inputs if path.is_file() and path.suffix != suffix]
        if fitting and not others:
            return make(fitting)
    raise InputError(
        f"{first} is no dataset folder ({DATASET_FILE}), no trace folder ({TRACE_FILE}), and holds no "
        ".parquet or .npy files of one kind"
    )


def _merge(args: argparse.Namespace) -> Outcome:
    if args.out is None:
        raise InputError("give the file to write with --out, e.g. --out stats.npz")
    if args.out.exists() and not args.overwrite:
        raise InputError(f"{args.out} exists already; choose another file, or replace it with --overwrite")
    shards = [AccessStatistics.load(path) for path in args.inputs]
    AccessStatistics.merge(shards, args.memory).save(args.out)
    lines = [f"statistics  {args.out}  ({args.out.stat().st_size:,} bytes), of {len(args.inputs)} shards"]
    return _outcome(AccessStatistics.load(args.out), args, lines)


def _outcome(found: AccessStatistics, args: argparse.Namespace, lines: list[str], **more: Any) -> Outcome:
    result = {
        "out": None if args.out is None else str(args.out),
        "sha256": found.sha256,
        "samples": found.samples,
        "source": dict(found.source),
        **more,
        "tables": [t.to_json() for t in found.tables.values()],
    }
    if args.table is None:
        return Outcome("\n".join([*lines, "", *statistics_table(found, args.top)]), result)
    table = found.table(args.table)
    return Outcome("\n".join([*lines, "", *table_details(table)]), {**result, "tables": [table.to_json()]})


def _sizes(texts: list[str]) -> dict[str, int]:
    sizes = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        try:
            sizes[name] = whole_number(number)
        except ValueError:
            name = ""
        if not name:
            raise InputError(f"--rows {text}: it must be like --rows NAME=40000000 or --rows NAME=40M")
    return sizes


def _span(text: str) -> tuple[int, int]:
    first, _, last = text.partition(":")
    span = whole_number(first), whole_number(last)
    if not 0 <= span[0] < span[1]:
        raise ValueError(f"{text} is no range A:B with 0 <= A < B")
    return span


_span.__name__ = "range A:B"
