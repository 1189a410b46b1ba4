"""Verbs and sub-verbs: a module each, which becomes one sub-parser."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping
from typing import Any


def add_verb(subparsers: Any, name: str, summary: str, module_name: str) -> argparse.ArgumentParser:
    """Adds one sub-parser, filled in by its module.

    A module has EXAMPLE (a command line), add_arguments(parser), and run(args) -> Outcome unless its
    sub-verbs have it.
    """
    module = importlib.import_module(module_name)
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example:\n  {module.EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    if hasattr(module, "run"):
        parser.set_defaults(handler=module.run)
    return parser


def add_subverbs(parser: argparse.ArgumentParser, table: Mapping[str, tuple[str, str]]) -> None:
    """Adds a sub-parser for each `name: (module, one line of help)`."""
    subverbs = parser.add_subparsers(dest="subverb", metavar="WHAT", required=True)
    for name, (module_name, summary) in table.items():
        add_verb(subverbs, name, summary, module_name)
