"""`recsys-opt profile assume`: trained runs on a GPU that is not here, by its figures."""

from __future__ import annotations

import argparse
from pathlib import Path

from recsys_opt.bench.profile import PathRequest, assumed_profile
from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.profile_text import lines_of
from recsys_opt.cli.profile_values import accuracies, named_runs
from recsys_opt.cli.values import at_least, memory_size, output_file
from recsys_opt.serving.assumed import PRESETS, gpu_figures
from recsys_opt.serving.measure import SIZES

EXAMPLE = """recsys-opt profile assume runs/table runs/dhe --gpu v100 --out gpu.json
  recsys-opt profile assume runs/table --gpu h100 --memory 200MB --device small --out small.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    parser.add_argument(
        "runs", nargs="+", metavar="[NAME=]RUN", help="run folders of one model, as for profile make"
    )
    parser.add_argument(
        "--gpu", required=True, metavar="WHICH", help=f"{', '.join(PRESETS)}, or a .toml file like theirs"
    )
    parser.add_argument(
        "--out", type=output_file, required=True, metavar="FILE", help="profile.json to write"
    )
    parser.add_argument("--device", default="gpu", metavar="NAME", help="its name in the profile (gpu)")
    parser.add_argument(
        "--memory", type=memory_size, metavar="BYTES", help="of the device (default: by its figures)"
    )
    parser.add_argument(
        "--sizes",
        type=at_least(1),
        nargs="+",
        default=list(SIZES),
        metavar="N",
        help="samples of a query, ascending (default %(default)s)",
    )
    parser.add_argument(
        "--data", type=Path, metavar="DATASET", help="where accuracy is measured, as for profile make"
    )
    parser.add_argument(
        "--accuracy",
        type=accuracies,
        default={},
        metavar="NAME=X,..",
        help="accuracies to put in the place of measured ones; the profile says so",
    )


def run(args: argparse.Namespace) -> Outcome:
    """Computes, writes the profile, prints it."""
    profile = assumed_profile(
        [PathRequest(run, name) for name, run in named_runs(args.runs)],
        gpu_figures(args.gpu),
        device=args.device,
        sizes=args.sizes,
        data=args.data,
        accuracies=args.accuracy,
        memory_bytes=args.memory,
    )
    profile.save(args.out)
    return Outcome("\n".join([*lines_of(profile), "", f"written: {args.out}"]), profile.to_json())
