"""`recsys-opt bench soak`: a server under load for a long time, with all that it has to live with."""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
from pathlib import Path
from typing import Any

from recsys_opt.bench.record import write_record
from recsys_opt.bench.soak import Soak, soak
from recsys_opt.cli.arguments import add_record_argument
from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.progress import ConsoleProgress
from recsys_opt.cli.simulate import seconds_of
from recsys_opt.serving.sizes import parse_sizes

EXAMPLE = "recsys-opt bench soak --profile profile.json --runs runs/ --seconds 30min"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    add, own = parser.add_argument, Soak()
    add("--profile", type=Path, required=True, metavar="FILE", help="profile.json, as `serve` takes it")
    add("--runs", type=Path, required=True, metavar="FOLDER", help="as `serve` takes it")
    add("--data", type=Path, metavar="DATASET", help="whose rows are sent (default: generated ones)")
    times = (
        ("seconds", "of load (30min)"),
        ("capacity", "for which the capacity is measured first (10s)"),
        ("kill-every", "between workers killed (45s)"),
        ("reload-every", "between reloads of the models (5min)"),
        ("sla", "of the server (50ms)"),
    )
    for name, text in times:
        field = {"seconds": "seconds"}.get(name, name.replace("-", "_") + "_s")
        add(f"--{name}", dest=field, type=seconds_of, default=getattr(own, field), metavar="TIME", help=text)
    add("--share", type=float, default=own.share, metavar="X", help="of the capacity (%(default)s)")
    add("--rude-per-s", type=float, default=own.rude_per_s, metavar="N", help="rude clients (%(default)s)")
    add("--policy", default=own.policy, help="default %(default)s")
    add("--sizes", default="lognormal:mean=128,max=4096", metavar="TEXT", help="of queries (%(default)s)")
    add_record_argument(parser, "server_soak.json")


def run(args: argparse.Namespace) -> Outcome:
    """Runs the soak; the exit code is 1 where a check did not hold."""
    work = Soak(**{f.name: getattr(args, f.name) for f in dataclasses.fields(Soak)})
    with tempfile.TemporaryDirectory() as folder, ConsoleProgress() as progress:
        token = Path(folder) / "token"
        token.touch(0o600)
        token.write_text(os.urandom(24).hex())
        found = soak(
            args.profile,
            args.runs,
            work,
            parse_sizes(args.sizes),
            data=args.data,
            token=token,
            progress=progress,
        )
    write_record(args.record, "soak", [found])
    return Outcome(
        "\n".join([*lines_of(found), f"record     {args.record}"]),
        found,
        exit_code=1 if found["faults"] else 0,
    )


def lines_of(found: dict[str, Any]) -> list[str]:
    """For a person."""
    load, rude, watch = found["load"], found["rude"], found["watch"]
    outcomes = ", ".join(f"{count:,} {what}" for what, count in load["outcomes"].items())
    lines = [
        f"load       {load['sent']:,} queries in {found['seconds']:,.0f} s, {found['load_qps']:,.0f} a "
        f"second of {found['capacity_qps']:,.0f} possible: {outcomes}",
        f"rude       {rude['sent']:,} clients of {len(rude['replies'])} kinds, {rude['unexpected']} answered "
        "otherwise than they must be",
        f"killed     {found['kills']} workers, {found['restarts']} started again; models reloaded "
        f"{found['reloads'].get('done', 0)} times",
        f"stalls     {watch['stalls']}, of {watch['stalled_s']:g} s together",
    ]
    for what, growth in (("server", found["server_memory_mb"]), ("workers", found["worker_memory_mb"])):
        if growth is not None:
            now = growth["last"] if what == "server" else growth["memory"]
            lines.append(f"memory     {what}: {now:.1f} MB, slope {growth['slope_per_h']:+.2f} MB an hour")
    before, after = found["files_before_and_after"]
    lines.append(f"files      {before} file descriptors before, {after} afterwards")
    if found["faults"]:
        lines += [f"FAULT      {fault}" for fault in found["faults"]]
    else:
        lines.append(
            f"verdict    all {found['checks']} checks hold: nothing lost, nothing answered twice, memory flat"
        )
    return lines
