"""`recsys-opt bench placement`: plans of several planners, held against later lookups."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recsys_opt.bench.placement import Settings, measure, summary
from recsys_opt.bench.record import write_record
from recsys_opt.cli.arguments import add_record_argument
from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.plan_replay import batch_range
from recsys_opt.cli.progress import ConsoleProgress
from recsys_opt.data.access_statistics import AccessStatistics
from recsys_opt.planner.lookup_trace import open_trace

EXAMPLE = "recsys-opt bench placement stats.npz trace/ --batches 8: --hbm-share .1 .3 .5"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    default = Settings()
    parser.add_argument("statistics", type=Path, metavar="STATS", help="stats.npz of lookups that were seen")
    parser.add_argument(
        "trace", type=Path, metavar="TRACE", help="later lookups: a dataset folder or a trace folder"
    )
    parser.add_argument("--split", default="test", help="of a dataset (%(default)s)")
    parser.add_argument(
        "--batch-size", type=int, default=65536, metavar="B", help="of a dataset (%(default)s)"
    )
    parser.add_argument(
        "--batches", type=batch_range, metavar="FIRST:LAST", help="of the trace, LAST left out (default: all)"
    )
    parser.add_argument(
        "--embedding-dim",
        type=int,
        default=default.embedding_dim,
        metavar="D",
        help="of all tables (%(default)s)",
    )
    parser.add_argument(
        "--hardware",
        default=default.hardware,
        metavar="NAME",
        help="a preset or a file, as for `plan`; its fast tier's size is set below (%(default)s)",
    )
    parser.add_argument(
        "--hbm-share",
        type=float,
        nargs="+",
        default=list(default.hbm_shares),
        metavar="S",
        help="of the model that all fast tiers hold together (%(default)s)",
    )
    parser.add_argument(
        "--planner", nargs="+", default=list(default.planners), metavar="P", help="%(default)s"
    )
    parser.add_argument(
        "--torchrec-seconds",
        type=float,
        default=default.torchrec_seconds,
        metavar="S",
        help="limit of TorchRec's search for each share (%(default)s)",
    )
    parser.add_argument(
        "--torchrec-sharding",
        nargs="+",
        default=list(default.torchrec_shardings),
        metavar="T",
        help="that TorchRec chooses from (%(default)s)",
    )
    add_record_argument(parser, "placement.json")


def run(args: argparse.Namespace) -> Outcome:
    """Measures, writes the record, prints a table."""
    settings = Settings(
        embedding_dim=args.embedding_dim,
        hardware=args.hardware,
        hbm_shares=tuple(args.hbm_share),
        planners=tuple(args.planner),
        torchrec_seconds=args.torchrec_seconds,
        torchrec_shardings=tuple(args.torchrec_sharding),
        threads=len(os.sched_getaffinity(0)),
    )
    statistics = AccessStatistics.load(args.statistics)
    trace = open_trace(args.trace, batch_size=args.batch_size, split=args.split)
    if args.batches is not None:
        trace = trace.between(*args.batches)
    with ConsoleProgress() as progress:
        rows = measure(statistics, trace, settings, progress)
    found = summary(rows)
    about = {
        "tables": len(statistics.tables),
        "table_rows": sum(t.num_embeddings for t in statistics.tables.values()),
        "samples_seen": statistics.samples,
        "later_batches": trace.batches,
        "batch_size": trace.batch_size,
        "hardware": args.hardware,
        "embedding_dim": args.embedding_dim,
    }
    write_record(args.record, "placement", rows, **about, summary=found)
    lines = [*_table(rows), "", *_summary(found), f"record     {args.record}"]
    return Outcome("\n".join(lines), {"rows": rows, "summary": found, **about, "record": str(args.record)})


def _table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        f"{'HBM':>5} {'planner':<14}{'planned':>9}{'ms, predicted':>15}{'replayed':>10}"
        f"{'slow %, predicted':>19}{'replayed':>10}{'max/mean':>10}{'gap %':>7}"
    ]
    for r in rows:
        start = f"{100 * r['hbm_share']:>3.0f} % {r['planner']:<14}"
        if "failed" in r:
            lines.append(f"{start}  {r['failed']}"[:100])
            continue
        gap = f"{100 * r['gap']:.2f}" if "gap" in r else ""
        lines.append(
            f"{start}{r['plan_seconds']:>7.2f} s{1e3 * r['predicted_seconds']:>15.4g}"
            f"{1e3 * r['replayed_seconds']:>10.4g}{100 * r['predicted_slow_share']:>19.3f}"
            f"{100 * r['replayed_slow_share']:>10.3f}{r['max_over_mean']:>10.3f}{gap:>7}"
        )
    return lines


def _summary(found: Mapping[str, Any]) -> list[str]:
    return [
        f"{key.replace('_', ' '):<36}{'-' if value is None else f'{value:.4g}':>10}"
        for key, value in found.items()
    ]
