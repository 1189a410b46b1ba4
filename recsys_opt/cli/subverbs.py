"""Sub-verbs of a verb: a table of modules, one sub-parser each."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping


def add_subverbs(parser: argparse.ArgumentParser, table: Mapping[str, tuple[str, str]]) -> None:
    """Adds a sub-parser for each `name: (module, one line of help)`.

    A module has EXAMPLE (a command line), add_arguments(parser) and run(args) -> Outcome.
    """
    subverbs = parser.add_subparsers(dest="subverb", metavar="WHAT", required=True)
    for name, (module_name, summary) in table.items():
        module = importlib.import_module(module_name)
        sub = subverbs.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=f"example:\n  {module.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(sub)
        sub.set_defaults(handler=module.run)
