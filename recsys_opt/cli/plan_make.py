"""`recsys-opt plan [make]`: a plan from access statistics, with its certificate."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.plan_from import add_from_arguments, inputs_of, run_from
from recsys_opt.cli.plan_text import certificate, clipped, device_lines, kinds, table_lines
from recsys_opt.cli.plan_text import table_seconds as seconds_of_tables
from recsys_opt.cli.values import at_least, output_file
from recsys_opt.errors import InputError, RecsysOptError
from recsys_opt.plan import Plan, slow_share
from recsys_opt.planner.baselines import BASELINES, greedy_plan
from recsys_opt.planner.cost import CostModel
from recsys_opt.planner.hardware import PRESETS, Hardware
from recsys_opt.planner.inputs import PlanInputs, read_tables, settings_of
from recsys_opt.planner.problem import Optimizer, PlanSettings, Sharding
from recsys_opt.planner.solve import make_plan
from recsys_opt.report.page import milliseconds

EXAMPLE = """recsys-opt plan stats.npz --hardware h100:devices=8,hbm=24GB --embedding-dim 64 --out plan.json
  recsys-opt plan stats.npz --tables trace/tables.json --hardware hardware.toml --baselines
  recsys-opt plan stats.npz --embedding-dim 16 --pin 'C3={"devices": [0], "tier": "fast"}'
  recsys-opt plan today.npz --from plan.json --move-limit 5% --out plan2.json"""
HARDWARE = "h100"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("stats", type=Path, metavar="STATS", help="statistics of recsys-opt stats")
    tables = parser.add_mutually_exclusive_group()
    tables.add_argument("--embedding-dim", type=int, metavar="D", help="columns of every table")
    tables.add_argument(
        "--tables",
        type=Path,
        metavar="JSON",
        help="tables.json of the model (data tables writes one): name, num_embeddings, embedding_dim of each",
    )
    parser.add_argument(
        "--hardware",
        metavar="HW",
        help=f"hardware.toml, or a preset ({', '.join(PRESETS)}) with changes behind a colon: "
        f"h100:nodes=2,devices=8,hbm=24GB,uvm=128GB,reserved=8GB (default {HARDWARE})",
    )
    parser.add_argument("--out", type=output_file, metavar="FILE", help="plan.json to write")
    parser.add_argument(
        "--html", type=output_file, metavar="FILE", help="page to write: curves, thresholds, loads"
    )
    parser.add_argument(
        "--baselines",
        action="store_true",
        help="also price what Size, Lookup, Size-Lookup and, where it is installed, TorchRec's planner make",
    )
    parser.add_argument(
        "--torchrec-seconds",
        type=float,
        default=120.0,
        metavar="S",
        help="limit of TorchRec's planner; 0 leaves it out (default 120)",
    )
    parser.add_argument(
        "--top", type=at_least(1), default=10, metavar="N", help="tables to print (default 10)"
    )
    add_from_arguments(parser)
    add_setting_arguments(parser, PlanSettings())


def add_setting_arguments(parser: argparse.ArgumentParser, default: PlanSettings | None = None) -> None:
    """Adds those that become `PlanSettings`; where no default is named, it is that of a plan."""

    def otherwise(name: str) -> str:
        return "" if default is None else f" (default {getattr(default, name)})"

    group = parser.add_argument_group("settings" if default else "settings (default: the plan's)")
    group.add_argument(
        "--batch-size",
        type=int,
        metavar="B",
        help=f"samples of an iteration, over all devices{otherwise('batch_size')}",
    )
    group.add_argument(
        "--optimizer",
        choices=get_args(Optimizer),
        help=f"its state lies beside the rows{otherwise('optimizer')}",
    )
    group.add_argument(
        "--weight-bytes", type=int, metavar="N", help=f"of a weight{otherwise('weight_bytes')}"
    )
    group.add_argument(
        "--shardings",
        type=lambda text: tuple(text.split(",")),
        metavar="A,B",
        help=f"ways to cut a table that are allowed, of {', '.join(get_args(Sharding))}"
        + (" (all)" if default else ""),
    )
    group.add_argument(
        "--pin",
        action="append",
        default=[],
        metavar="TABLE=JSON",
        help='e.g. C3={"devices": [0, 1], "sharding": "column_wise", "tier": "fast"}; may be repeated',
    )
    group.add_argument("--effort", type=float, metavar="X", help="of the search; 10 tries ten times as much")
    group.add_argument("--seed", type=int, help=f"of the search{otherwise('seed')}")


def changed_settings(settings: PlanSettings, args: argparse.Namespace) -> PlanSettings:
    """With what the command line says."""
    names = ("batch_size", "optimizer", "weight_bytes", "shardings", "effort", "seed")
    given = {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}
    pins = dict(settings.pins)
    for text in args.pin:
        table, equals, value = text.partition("=")
        try:
            pin = json.loads(value)
        except json.JSONDecodeError as error:
            raise InputError(f'--pin {text}: {error}; write TABLE=JSON, e.g. C3={{"tier": "fast"}}') from None
        if not equals or not isinstance(pin, dict):
            raise InputError(f'--pin {text}: write TABLE=JSON, e.g. C3={{"tier": "fast"}}')
        pins[table] = pin
    return replace(settings, **given, pins=pins)


def run(args: argparse.Namespace) -> Outcome:
    """Plans."""
    if args.old is not None:
        old = Plan.load(args.old)
        return run_from(args, old, inputs_of(args, old, changed_settings(settings_of(old), args)))
    _check_arguments(args)
    name = args.hardware or HARDWARE
    hardware = Hardware.load(name)
    settings = changed_settings(PlanSettings(), args)
    tables = args.embedding_dim if args.tables is None else read_tables(args.tables)
    inputs = PlanInputs.gather(args.stats, tables, hardware, settings, hardware_name=name)
    start = time.perf_counter()
    plan = make_plan(inputs.tables, hardware, settings, inputs=inputs.files)
    took = time.perf_counter() - start
    model = CostModel(hardware, settings)
    seconds = seconds_of_tables(plan, model, inputs.tables)
    lines = [
        clipped(
            f"{len(plan.tables):,} tables on {plan.num_devices} devices ({hardware.name}): {kinds(plan)}"
        ),
        *certificate(plan),
        f"planned in {took:.2f} s",
        "",
        *device_lines(plan),
        "",
        *table_lines(plan, args.top, seconds),
    ]
    if not hardware.measured:
        lines.append(
            clipped("bandwidths are assumed, not measured: recsys-opt bench hardware measures a machine")
        )
    result: dict[str, Any] = {
        "seconds": plan.seconds,
        "bound_seconds": plan.bound_seconds,
        "gap": plan.gap,
        "planning_seconds": took,
        "devices": plan.to_json()["devices"],
        "out": None if args.out is None else str(args.out),
    }
    if args.baselines:
        rows = baseline_rows(inputs, args.torchrec_seconds)
        result["baselines"] = rows
        lines += ["", *_baseline_lines(plan, rows)]
    if args.out is not None:
        plan.save(args.out)
    if args.html is not None:
        from recsys_opt.report.plan import write_plan_page

        write_plan_page(plan, {t.config.name: (t.rows, t.share) for t in inputs.tables}, args.html)
        result["html"] = str(args.html)
    return Outcome("\n".join(lines), result)


def _check_arguments(args: argparse.Namespace) -> None:
    """Without --from."""
    if args.tables is None and args.embedding_dim is None:
        raise InputError("say which tables to plan: --embedding-dim D, --tables JSON, or --from PLAN")
    for flag in ("move_limit", "min_gain", "from_stats"):
        if getattr(args, flag) is not None:
            raise InputError(f"--{flag.replace('_', '-')} goes with --from PLAN, the plan that runs now")


def baseline_rows(inputs: PlanInputs, torchrec_seconds: float) -> list[dict[str, Any]]:
    """What other planners make of the same problem, priced by the same model."""
    model = CostModel(inputs.hardware, inputs.settings)
    configs = [t.config for t in inputs.tables]
    lookups = [t.lookups_per_sample for t in inputs.tables]
    batch = inputs.settings.batch_size
    row_bytes = [inputs.settings.row_bytes(c.embedding_dim) for c in configs]

    def torchrec() -> Plan:
        from recsys_opt.planner.torchrec_baseline import torchrec_plan

        plan, placement = torchrec_plan(
            configs,
            lookups,
            inputs.hardware,
            batch_size=batch,
            curves={t.config.name: t.curve for t in inputs.tables},
            time_limit=torchrec_seconds,
        )
        searched["torchrec"] = (placement.seconds, placement.finished)
        return plan

    searched: dict[str, tuple[float, bool]] = {}

    makers: dict[str, Callable[[], Plan]] = {
        name: lambda name=name: greedy_plan(  # type: ignore[misc]
            name, configs, lookups, row_bytes, inputs.hardware, batch_size=batch
        )
        for name in BASELINES
    }
    rows = []
    if torchrec_seconds > 0:
        makers["torchrec"] = torchrec
    for name, make in makers.items():
        start = time.perf_counter()
        row: dict[str, Any] = {"planner": name}
        try:
            loads = model.loads(make(), inputs.tables)
            row |= {
                "seconds": max(d.seconds for d in loads),
                "slow_share": slow_share(loads),
            }
        except RecsysOptError as error:
            row["error"] = str(error)
        seconds, finished = searched.get(name, (time.perf_counter() - start, True))
        row |= {"planning_seconds": seconds, "finished": finished}
        rows.append(row)
    return rows


def _baseline_lines(plan: Plan, rows: list[dict[str, Any]]) -> list[str]:
    share = slow_share(plan.devices)
    tier = plan.hardware["slow"]["name"]
    lines = [
        f"{'planner':<14}{'slowest device':>16}{'to this plan':>14}{tier + ' reads':>12}{'planned in':>12}"
    ]
    lines.append(f"{'this plan':<14}{milliseconds(plan.seconds):>16}{1:>14.2f}{share:>12.2%}")
    for row in rows:
        if "error" in row:
            lines.append(clipped(f"{row['planner']:<14}{row['error']}"))
            continue
        lines.append(
            f"{row['planner']:<14}{milliseconds(row['seconds']):>16}{row['seconds'] / plan.seconds:>14.2f}"
            f"{row['slow_share']:>12.2%}{row['planning_seconds']:>10.1f} s"
            f"{'' if row['finished'] else '  (its search was cut off)'}"
        )
    return lines
