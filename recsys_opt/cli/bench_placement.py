"""`recsys-opt bench placement`: plans of several planners, held against later lookups."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recsys_opt.bench.placement import Settings, measure, summary
from recsys_opt.bench.placement_torchrec import TorchRecSettings
from recsys_opt.bench.record import read_record, write_record
from recsys_opt.cli.arguments import add_record_argument
from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.plan_replay import batch_range
from recsys_opt.cli.progress import ConsoleProgress
from recsys_opt.data.access_statistics import AccessStatistics
from recsys_opt.errors import InputError
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
        "--batches",
        type=batch_range,
        metavar="FIRST:LAST",
        help="the later ones of the trace, LAST left out (default: all); those before FIRST, which the "
        "statistics are of, fill TorchRec's caches",
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
        default=default.torchrec.seconds,
        metavar="S",
        help="limit of the CPU time of TorchRec's search for each share (%(default)s)",
    )
    parser.add_argument(
        "--torchrec-sharding",
        nargs="+",
        default=list(default.torchrec.shardings),
        metavar="T",
        help="that TorchRec chooses from (%(default)s)",
    )
    parser.add_argument(
        "--torchrec-keep",
        type=Path,
        metavar="DIR",
        help="keep TorchRec's answers in this folder, and search for none that is there",
    )
    parser.add_argument(
        "--case",
        metavar="NAME",
        help='what the lookups are, e.g. "seed 5"; tells the cases of a record apart',
    )
    parser.add_argument(
        "--add",
        action="store_true",
        help="keep what the record has of other cases, shares and planners; without, it is written anew",
    )
    add_record_argument(parser, "placement.json")


def run(args: argparse.Namespace) -> Outcome:
    """Measures, writes the record, prints a table."""
    settings = Settings(
        embedding_dim=args.embedding_dim,
        hardware=args.hardware,
        hbm_shares=tuple(args.hbm_share),
        planners=tuple(args.planner),
        torchrec=TorchRecSettings(args.torchrec_seconds, tuple(args.torchrec_sharding), args.torchrec_keep),
        threads=len(os.sched_getaffinity(0)),
    )
    if args.add and args.case is None:
        raise InputError("--add tells the record's cases apart by their names: give --case")
    statistics = AccessStatistics.load(args.statistics)
    trace = open_trace(args.trace, batch_size=args.batch_size, split=args.split)
    first, last = args.batches or (0, None)
    later = trace.between(first, last)
    with ConsoleProgress() as progress:
        rows = measure(statistics, trace.between(0, last), settings, progress, warm=first)
    case = {
        "case": args.case,
        "tables": len(statistics.tables),
        "table_rows": sum(t.num_embeddings for t in statistics.tables.values()),
        "samples_seen": statistics.samples,
        "later_batches": later.batches,
        "batch_size": later.batch_size,
        "hardware": args.hardware,
        "embedding_dim": args.embedding_dim,
    }
    rows = [{"case": args.case, **row} for row in rows]
    found = summary(rows)
    cases, all_rows, together = [case], rows, found
    if args.add and args.record.exists():
        before = read_record(args.record)
        known = {c["case"]: c for c in before.get("cases", ())}
        cases = list((known | {args.case: known.get(args.case, {}) | case}).values())
        again = {_key(r) for r in rows}
        all_rows = [*(r for r in before["rows"] if _key(r) not in again), *rows]
        together = summary(all_rows)
    write_record(args.record, "placement", all_rows, cases=cases, summary=together)
    lines = [*_table(rows), "", *_summary(together), f"record     {args.record}"]
    result = {"rows": rows, "summary": found, **case, "record": str(args.record)}
    return Outcome("\n".join(lines), result)


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row.get("case"), row["hbm_share"], row["planner"]


def _table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        f"{'HBM':>5} {'planner':<14}{'planned':>9}{'ms, predicted':>14}{'replayed':>9}"
        f"{'slow %, predicted':>18}{'replayed':>9}{'max/mean':>9}{'gap %':>6}"
    ]
    for r in rows:
        start = f"{100 * r['hbm_share']:>3.0f} % {r['planner']:<14}"
        if "failed" in r:
            lines.append(f"{start}  {r['failed']}"[:100])
            continue
        cells = (
            ("plan_seconds", 1, ".2f", 9),
            ("predicted_seconds", 1e3, ".4g", 14),
            ("replayed_seconds", 1e3, ".4g", 9),
            ("predicted_slow_share", 100, ".3f", 18),
            ("replayed_slow_share", 100, ".3f", 9),
            ("max_over_mean", 1, ".3f", 9),
            ("gap", 100, ".2f", 6),
        )
        lines.append(
            start
            + "".join(
                f"{unit * r[key]:>{width}{form}}" if key in r else " " * width
                for key, unit, form, width in cells
            )
        )
    return lines


def _summary(found: Mapping[str, Any]) -> list[str]:
    return [f"{key.replace('_', ' '):<44}{value:>10.4g}" for key, value in found.items() if value is not None]
