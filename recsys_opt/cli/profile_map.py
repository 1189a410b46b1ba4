"""`recsys-opt profile map`: which paths each device's memory should hold."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.plan_text import clipped
from recsys_opt.cli.profile_values import duration, memories
from recsys_opt.cli.values import output_file
from recsys_opt.report.page import megabytes
from recsys_opt.serving import sizes
from recsys_opt.serving.mapper import Choice, DeviceMap, Mapper
from recsys_opt.serving.profile import Profile

EXAMPLE = """recsys-opt profile map both.json --memory cpu=2GB,gpu=200MB --sla 25ms --out mapped.json
  recsys-opt profile map both.json --memory gpu=200MB --load 2000 --method exact --out mapped.json"""

METHODS: dict[str, Callable[[Mapper], Choice]] = {
    "ours": Mapper.chosen,
    "exact": Mapper.exact,
    "mp-rec": Mapper.mp_rec,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    parser.add_argument("profile", type=Path, metavar="PROFILE", help="profile.json")
    parser.add_argument(
        "--memory",
        type=memories,
        default={},
        metavar="DEVICE=BYTES,..",
        help="of the devices (default: what the profile says)",
    )
    parser.add_argument(
        "--sla", type=duration, default=25e-3, metavar="TIME", help="time for a query (default 25ms)"
    )
    parser.add_argument(
        "--load",
        type=float,
        metavar="QPS",
        help="queries a second to come (default: half of what all paths that fit could answer)",
    )
    parser.add_argument(
        "--sizes",
        default="lognormal:mean=128",
        metavar="TEXT",
        help="samples of a query, as for simulate (default %(default)s)",
    )
    parser.add_argument(
        "--method",
        choices=tuple(METHODS),
        default="ours",
        help="which choice to write (default %(default)s): ours, by exchanges; exact, by branch and bound; "
        "mp-rec, the most accurate first (as we read it)",
    )
    parser.add_argument(
        "--out", type=output_file, metavar="FILE", help="the profile with the chosen paths alone"
    )


def run(args: argparse.Namespace) -> Outcome:
    """Maps by every method, prints them side by side, writes one."""
    profile = Profile.load(args.profile)
    given = sizes.parse_sizes(args.sizes)
    mapper = Mapper(profile, args.memory, sizes=given, sla=args.sla, rate=args.load)
    maps = {name: mapper.result(method(mapper)) for name, method in METHODS.items()}
    offered = mapper.rate * given.mean
    lines = [
        f"at {mapper.rate:,.0f} queries a second of {given.mean:.0f} samples, SLA {args.sla * 1e3:g} ms:",
        f"{'method':8}{'correct/s':>12}{'of exact':>10}{'accuracy':>10}{'answered':>10}{'headroom/s':>12}",
    ]
    for name, found in maps.items():
        lines.append(_method_line(name, found, maps["exact"], offered))
    for name, found in maps.items():
        lines += ["", f"{name}:", *_device_lines(found, mapper)]
    chosen = [name for own in maps[args.method].paths.values() for name in own]
    assumption = profile.assumption(chosen)
    if assumption is not None:
        lines += ["", assumption]
    if args.out is not None:
        profile.with_paths(chosen).save(args.out)
        lines += ["", f"written: {args.out} ({args.method})"]
    result = {
        "load_qps": mapper.rate,
        "sla_seconds": mapper.sla,
        "memory_bytes": mapper.memory,
        "assumed": assumption,
        "methods": {name: asdict(found) for name, found in maps.items()},
        "written": None if args.out is None else args.method,
    }
    return Outcome("\n".join(lines), result)


def _method_line(name: str, found: DeviceMap, best: DeviceMap, offered: float) -> str:
    answered = sum(found.shares.values())
    accuracy = found.value / offered / answered if answered else 0.0
    return (
        f"{name:8}{found.value:>12,.0f}{found.value / best.value:>10.4f}{accuracy:>10.4f}{answered:>10.2%}"
        f"{found.headroom:>12,.0f}"
    )


def _device_lines(found: DeviceMap, mapper: Mapper) -> list[str]:
    return [
        clipped(
            f"  {device:10} {megabytes(found.bytes[device]):>9} of {megabytes(mapper.memory[device]):>9}  "
            + (", ".join(f"{p} ({found.shares[p]:.0%})" for p in paths) or "no path fits or helps")
        )
        for device, paths in found.paths.items()
    ]
