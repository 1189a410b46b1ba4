"""`recsys-opt bench loadgen`: MLPerf LoadGen's Server scenario on a running server."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from pathlib import Path
from typing import Any

from recsys_opt.bench.load import Target, samples_for
from recsys_opt.bench.record import write_record
from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.serve import address
from recsys_opt.cli.simulate import seconds_of
from recsys_opt.cli.values import at_least, output_file
from recsys_opt.errors import InputError
from recsys_opt.server.auth import VARIABLE, read_token
from recsys_opt.serving import sizes

EXAMPLE = "recsys-opt bench loadgen --http 127.0.0.1:8080 --qps 200 --sla 30ms --seconds 60s --logs logs/"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    add = parser.add_argument
    add("--http", type=address, required=True, metavar="HOST:PORT", help="of the server")
    add("--qps", type=float, required=True, metavar="QPS", help="queries a second")
    add(
        "--sla",
        type=seconds_of,
        default=0.03,
        metavar="TIME",
        help="that the percentile of the latencies may be at most (30ms, as MLPerf's DLRM had it in v0.7)",
    )
    add("--percentile", type=float, default=99.0, metavar="P", help="default 99")
    add("--seconds", type=seconds_of, default=60.0, metavar="TIME", help="at least (default 60s)")
    add("--queries", type=at_least(0), default=0, metavar="N", help="at least (default: what the time has)")
    kinds = "; ".join(f"{name}:{what}" for name, what in sizes.KINDS.items())
    add("--sizes", default="mlperf", metavar="TEXT", help=f"of queries (default mlperf). {kinds}")
    add("--data", type=Path, metavar="DATASET", help="whose rows are sent (default: generated ones)")
    add("--seed", type=at_least(0), default=0, metavar="N", help="default 0")
    add("--logs", type=Path, metavar="FOLDER", help="keep LoadGen's own logs here")
    add("--record", type=output_file, metavar="FILE", help="write the result here, too")
    add(
        "--token-file",
        type=Path,
        metavar="FILE",
        help=f"has the server's token (default: the environment's {VARIABLE}, else none)",
    )


def run(args: argparse.Namespace) -> Outcome:
    """Runs LoadGen; the exit code is 1 where its result is not VALID."""
    from recsys_opt.bench.loadgen import drive
    from recsys_opt.integrations.loadgen import ServerScenario

    host, port = args.http
    target = Target(host, port, read_token(args.token_file))
    scenario = ServerScenario(
        args.qps, args.sla, args.percentile / 100, args.seconds, args.queries, args.seed
    )
    with contextlib.ExitStack() as stack:
        logs = args.logs or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        try:
            logs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{logs} cannot be made for LoadGen's logs: {error}") from None
        found = drive(target, scenario, samples_for(target, args.data), sizes.parse_sizes(args.sizes), logs)
    if args.record is not None:
        write_record(args.record, "loadgen", [found])
    return Outcome("\n".join(lines_of(found)), found, exit_code=0 if found["valid"] else 1)


def lines_of(found: dict[str, Any]) -> list[str]:
    """For a person."""
    loadgen = found["loadgen"]
    lines = [f"result     {loadgen['Result is']}, as LoadGen says"]
    if found["loadgen_valid"] and not found["valid"]:
        lines[0] += "; but queries failed, were lost or were answered twice"
    lines.append(
        f"queries    {found['issued']:,} issued, {found['answered']:,} answered, {found['refused']:,} "
        f"refused (late, to LoadGen), {found['failed']:,} failed"
    )
    for name in _SHOWN:
        if name in loadgen:
            value = loadgen[name]
            shown = f"{int(value) / 1e6:.3f} ms" if name.endswith("(ns)") else value
            lines.append(f"{name.removesuffix('(ns)').strip():<33}{shown}")
    return lines


_SHOWN = (
    "Scheduled samples per second",
    "Completed samples per second",
    "Min duration satisfied",
    "Min queries satisfied",
    "Early stopping satisfied",
    "Mean latency (ns)",
    "50.00 percentile latency (ns)",
    "99.00 percentile latency (ns)",
    "99.90 percentile latency (ns)",
)
