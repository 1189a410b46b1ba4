"""The `recsys-opt` command: finds the verb's module, runs it, prints its outcome, maps errors to exit codes.

Exit codes: 0 done, 1 a fault, 2 bad arguments or input, 3 infeasible. Results go to stdout (`--json` for a
machine), progress and errors to stderr.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from typing import Any

import recsys_opt
from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.subverbs import HelpFormatter, add_verb
from recsys_opt.errors import InfeasibleError, InputError, RecsysOptError

# verb: (module, one line of help). A module is imported only when its verb is asked for. A verb with
# sub-verbs has a table of its own.
VERBS: dict[str, tuple[str, str]] = {
    "demo": ("recsys_opt.cli.demo", "generate data, train dense and tensor-train tables, compare, report"),
    "doctor": ("recsys_opt.cli.doctor", "print what is installed, what works, and what to do about the rest"),
    "data": ("recsys_opt.cli.data", "prepare Criteo data, or generate data like it"),
    "stats": ("recsys_opt.cli.stats", "count how often the rows of embedding tables are looked up"),
    "plan": ("recsys_opt.cli.plan", "place the rows of embedding tables on devices and memory tiers"),
    "simulate": (
        "recsys_opt.cli.simulate",
        "what serving policies do to a workload, from a profile: latency, accuracy, load held",
    ),
    "train": ("recsys_opt.cli.train", "train and evaluate a DLRM"),
    "convert": (
        "recsys_opt.cli.convert",
        "fit tensor trains to a trained run's tables, cut their ranks, or undo them",
    ),
    "profile": ("recsys_opt.cli.profile", "measure what each representation on each device costs a query"),
    "serve": ("recsys_opt.cli.serve", "answer queries over HTTP and gRPC by the paths of a profile"),
    "bench": ("recsys_opt.cli.bench", "measure speed, side by side with the alternatives"),
}

EXAMPLE = """example, each step usable alone (recsys-opt VERB --help has more):
  recsys-opt demo --max-cardinality 100000 --rows 200000
  recsys-opt data synth --rows 1000000 --out data/
  recsys-opt stats data/ --out stats.npz
  recsys-opt plan stats.npz --embedding-dim 16 --hardware cpu-disk --out plan.json
  recsys-opt train data/ --plan plan.json --cold-dir . --out run/"""


def build_parser(verb: str | None) -> argparse.ArgumentParser:
    """The whole parser; only `verb`'s own arguments are filled in."""
    parser = argparse.ArgumentParser(
        prog="recsys-opt", description=recsys_opt.__doc__, epilog=EXAMPLE, formatter_class=HelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"recsys-opt {recsys_opt.__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, (module_name, summary) in VERBS.items():
        if name != verb:
            verbs.add_parser(name, help=summary, add_help=False)
            continue
        add_json_flag(add_verb(verbs, name, summary, module_name))
    return parser


def add_json_flag(parser: argparse.ArgumentParser) -> None:
    """Adds `--json` to a verb's parser and to those of its sub-verbs."""
    subverbs = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not subverbs:
        parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    for action in subverbs:
        for sub in action.choices.values():
            add_json_flag(sub)


def with_default_subverb(arguments: list[str], verb: str | None) -> list[str]:
    """The command line with the sub-verb that stands for none, where the verb has one."""
    if verb is None:
        return arguments
    module = importlib.import_module(VERBS[verb][0])
    default = getattr(module, "DEFAULT", None)
    after = arguments[arguments.index(verb) + 1 :]
    if default is None or not after or after[0] in ("-h", "--help") or after[0] in module.SUBVERBS:
        return arguments
    at = arguments.index(verb) + 1
    return [*arguments[:at], default, *arguments[at:]]


_SPINS = "3000"  # some tens of microseconds


def let_threads_sleep() -> None:
    """Has threads that wait for each other sleep soon, unless the user's environment says otherwise.

    Torch's OpenMP (libgomp) spins through the waits of a loop. Where another program has one of the cores,
    that takes the time that the last thread needs. To be called before torch is loaded.
    """
    if not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
        os.environ["GOMP_SPINCOUNT"] = _SPINS


def main(argv: list[str] | None = None) -> int:
    """Runs one command line; returns its exit code."""
    let_threads_sleep()
    arguments = sys.argv[1:] if argv is None else argv
    verb = next((a for a in arguments if a in VERBS), None)
    try:
        args = build_parser(verb).parse_args(with_default_subverb(arguments, verb))
        outcome: Outcome = args.handler(args)
        emit(outcome, as_json=args.json)
        return outcome.exit_code
    except InputError as error:
        return fail(error, 2)
    except InfeasibleError as error:
        return fail(error, 3)
    except RecsysOptError as error:
        return fail(error, 1)
    except KeyboardInterrupt:
        return fail("interrupted; data prepare, stats and demo go on when repeated, train with --resume", 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return fail(error, 1)
    except (MemoryError, RuntimeError) as error:
        # torch's allocator raises a plain RuntimeError
        if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):
            raise
        return fail(
            f"out of memory: {str(error) or 'an allocation was refused'}; make the tables smaller: "
            "train --tt-threshold 100k (tensor trains), train --plan with --cold-dir (rows in "
            "files), data synth --max-cardinality",
            1,
        )


def emit(outcome: Outcome, *, as_json: bool) -> None:
    """Prints an outcome on stdout."""
    text = json.dumps(outcome.result, indent=2, allow_nan=False) if as_json else outcome.text
    if text:
        print(text, flush=True)


def fail(error: Any, code: int) -> int:
    """Prints one error on stderr; returns the exit code."""
    print(f"recsys-opt: error: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
