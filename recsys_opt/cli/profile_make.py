"""`recsys-opt profile make`: measures trained runs on this machine's devices."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from recsys_opt.bench.profile import PathRequest, ProfileSettings, measured_profile
from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.plan_text import WIDTH
from recsys_opt.cli.profile_text import lines_of
from recsys_opt.cli.profile_values import accuracies, devices, duration, named_runs
from recsys_opt.cli.progress import ConsoleProgress
from recsys_opt.cli.values import at_least, memory_size, output_file
from recsys_opt.errors import InputError
from recsys_opt.run_folder import RunFolder
from recsys_opt.serving.measure import MeasureSettings
from recsys_opt.serving.models import ServingOptions

EXAMPLE = """recsys-opt profile runs/table runs/tt --devices cpu --out profile.json
  recsys-opt profile fast=runs/table --tables fp16 --products bf16 --out fast.json
  recsys-opt profile runs/table --accuracy table=0.7879 --out profile.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    measure, options = MeasureSettings(), ServingOptions()
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="[NAME=]RUN",
        help="run folders of one model in different representations; NAME is the path's (default: "
        "table, tt, dhe, hybrid or select, as the tables are)",
    )
    parser.add_argument(
        "--out", type=output_file, required=True, metavar="FILE", help="profile.json to write"
    )
    parser.add_argument(
        "--devices",
        type=devices,
        default={"cpu": "cpu"},
        metavar="KIND[=NAME],..",
        help="cpu, cuda or both, each with its name in the profile (default cpu; cuda is called gpu)",
    )
    parser.add_argument(
        "--sizes",
        type=at_least(1),
        nargs="+",
        default=list(measure.sizes),
        metavar="N",
        help="samples of a query, ascending (default %(default)s)",
    )
    parser.add_argument(
        "--workers",
        type=at_least(1),
        default=measure.workers,
        metavar="N",
        help="processes that serve a path at the same time, measured so (default %(default)s)",
    )
    parser.add_argument(
        "--threads", type=at_least(1), default=measure.threads, metavar="N", help="of each (default 1)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=measure.seconds,
        metavar="S",
        help="most seconds for each path; what has not settled by then is named (default %(default)s)",
    )
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default=measure.clock,
        help="cpu: seconds of the processor, for a machine that others use at the same time (default wall)",
    )
    parser.add_argument(
        "--idle",
        type=duration,
        default=measure.idle_s,
        metavar="TIME",
        help="pause before each run, as a worker has that waits for queries: a model's first query after 1ms "
        "takes some 10%% longer (default: none, as under load)",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DATASET",
        help="where queries come from and accuracy is measured (default: the first run's dataset where it is "
        "still there, else generated rows and the metrics that the runs' training wrote)",
    )
    parser.add_argument(
        "--accuracy",
        type=accuracies,
        default={},
        metavar="NAME=X,..",
        help="accuracies to put in the place of measured ones, e.g. published ones; the profile says so",
    )
    parser.add_argument(
        "--tensor-trains",
        choices=("cores", "prefix", "dense"),
        default=options.tensor_trains,
        help="how tensor trains are frozen (default %(default)s)",
    )
    parser.add_argument(
        "--tables",
        choices=("fp32", "fp16", "bf16"),
        default=options.tables,
        help="type of stored rows (default %(default)s)",
    )
    parser.add_argument(
        "--products",
        choices=("fp32", "bf16"),
        default=options.products,
        help="type of the MLPs' products (default %(default)s)",
    )
    parser.add_argument(
        "--networks",
        choices=("fp32", "bf16"),
        default=options.networks,
        help="type of the products of deep hash embeddings' networks (default %(default)s)",
    )
    parser.add_argument(
        "--cache-rows",
        type=at_least(1),
        nargs="+",
        default=[],
        metavar="N",
        help="for each run whose rows are computed (dhe, hybrid, select) one more path, NAME+cacheN, with so "
        "many rows of each such table stored, those that lookups want most often",
    )
    parser.add_argument(
        "--cache-from",
        default=options.cache_from,
        metavar="PATH",
        help="what these lookups are counted in: access statistics (stats.npz), or a dataset's training rows "
        "(default: the run's own)",
    )
    parser.add_argument(
        "--centroids",
        type=at_least(1),
        nargs="+",
        default=[],
        metavar="C",
        help="for each cache one more path, NAME+cacheN+C, in which the rows that are not stored are those "
        "of the nearest of C centroids: MP-Rec's approximate tier; the path's accuracy tells what it loses",
    )
    parser.add_argument(
        "--memory", type=memory_size, metavar="BYTES", help="of the device (default: what it has)"
    )
    parser.add_argument("--seed", type=int, default=measure.seed, help="of the order of sizes and queries")


def run(args: argparse.Namespace) -> Outcome:
    """Measures, writes the profile, prints it."""
    options = ServingOptions(args.tensor_trains, args.tables, args.products, args.networks)
    if (args.cache_from or args.centroids) and not args.cache_rows:
        raise InputError("--cache-from and --centroids are of a cache; give it rows by --cache-rows")
    settings = ProfileSettings(
        measure=MeasureSettings(
            sizes=tuple(args.sizes),
            seconds=args.seconds,
            workers=args.workers,
            threads=args.threads,
            clock=args.clock,
            idle_s=args.idle,
            seed=args.seed,
        ),
        devices=args.devices,
        data=args.data,
        accuracies=args.accuracy,
        memory_bytes=args.memory,
    )
    runs = named_runs(args.runs)
    requests = [PathRequest(run, name, options) for name, run in runs]
    if args.cache_rows:
        requests += [request for name, run in runs for request in _cached(name, run, options, args)]
        if len(requests) == len(runs):
            raise InputError(
                "--cache-rows: none of the runs has deep hash embeddings, whose rows are computed"
            )
    profile = measured_profile(requests, settings, progress=ConsoleProgress())
    profile.save(args.out)
    lines = lines_of(profile)
    for found in profile.circumstances.values():
        for path, sizes in found["unsettled"].items():
            lines += textwrap.wrap(
                f"time was up for {path}: sizes {', '.join(map(str, sizes))} are less certain than asked for "
                "(--seconds)",
                WIDTH,
                subsequent_indent="  ",
            )
        waited = max(n["waited"] for n in found["noise"].values())
        if waited > 0.02 and args.clock == "wall":
            lines += textwrap.wrap(
                f"a path was without a core for {waited:.0%} of its time: its times are longer than on a "
                "quiet machine (--clock cpu)",
                WIDTH,
                subsequent_indent="  ",
            )
    return Outcome("\n".join([*lines, "", f"written: {args.out}"]), profile.to_json())


def _cached(
    name: str | None, run: str, options: ServingOptions, args: argparse.Namespace
) -> Iterator[PathRequest]:
    """The paths of a run with a cache."""
    tables = RunFolder(run).description()["model"]["tables"]
    if not any(table["representation"] in ("dhe", "hybrid") for table in tables):
        return
    for rows in args.cache_rows:
        for centroids in (0, *args.centroids):
            own = replace(options, cache_rows=rows, cache_from=args.cache_from, centroids=centroids)
            yield PathRequest(run, name, own, f"+cache{rows}" + (f"+{centroids}" if centroids else ""))
