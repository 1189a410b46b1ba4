"""`recsys-opt bench budget-law`: the error of fitted tensor trains beside the law that budgets rest on."""

from __future__ import annotations

import argparse

from recsys_opt.bench import budget_law
from recsys_opt.bench.record import write_record
from recsys_opt.cli.arguments import add_record_argument
from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.progress import ConsoleProgress

EXAMPLE = "recsys-opt bench budget-law --record law.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("--rows", type=int, default=50_000, metavar="N", help="of the table (default 50000)")
    parser.add_argument("--seen", type=int, default=3_000, metavar="N", help="with a target (default 3000)")
    parser.add_argument(
        "--steps", type=int, default=800, metavar="N", help="of gradient descent (default 800)"
    )
    add_record_argument(parser)


def run(args: argparse.Namespace) -> Outcome:
    """Fits and prints a table."""
    settings = budget_law.Settings(num_embeddings=args.rows, seen=args.seen, steps=args.steps)
    with ConsoleProgress() as progress:
        rows = budget_law.run(settings, progress)
    about = {"rows_of_the_table": args.rows, "seen": args.seen, "steps": args.steps}
    if args.record:
        write_record(args.record, "budget_law", rows, **about)
    lines = [
        f"{'weights':<14}{'ids':<11}{'ranks':<8}{'parameters':>11}{'rows kept':>11}{'error':>8}{'law':>8}"
    ]
    lines += [
        f"{'rank^-' + str(r['exponent']):<14}{r['ids']:<11}{','.join(map(str, r['ranks'])):<8}"
        f"{r['parameters']:>11,}{r['rows_kept']:>11,.0f}{r['error']:>8.3f}{r['error_by_the_law']:>8.3f}"
        for r in rows
    ]
    return Outcome("\n".join(lines), {**about, "rows": rows})
