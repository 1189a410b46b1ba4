"""Verbs and sub-verbs: a module each, which becomes one sub-parser."""

from __future__ import annotations

import argparse
import copy
import importlib
import shutil
import textwrap
from collections.abc import Mapping
from typing import Any


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Lines of at most 100 columns; examples keep theirs; lists and long choices as a person writes them."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=min(shutil.get_terminal_size().columns - 2, 100))

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        kept = len(text.splitlines()) > 1
        return super()._fill_text(text, width, indent) if kept else textwrap.fill(text, width)

    def _metavar_formatter(self, action: argparse.Action, default_metavar: str) -> Any:
        if _has_many_choices(action):
            return lambda size: (default_metavar,) * size
        return super()._metavar_formatter(action, default_metavar)

    def _expand_help(self, action: argparse.Action) -> str:
        shown = copy.copy(action)
        if isinstance(action.default, (list, tuple)):
            shown.default = " ".join(map(str, action.default)) or "none"
        text, choices = super()._expand_help(shown), [*map(str, action.choices or ())]
        if _has_many_choices(action) and not all(choice in text for choice in choices):
            text += f"; one of {', '.join(choices)}"
        return text


def _has_many_choices(action: argparse.Action) -> bool:
    """Whether they are too long for a line of the usage, where those of a list stand twice."""
    if action.metavar is not None:
        return False
    return len(", ".join(map(str, action.choices or ()))) * (2 if action.nargs in ("+", "*") else 1) > 60


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
        formatter_class=HelpFormatter,
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
