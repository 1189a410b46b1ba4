"""Command-line flags derived from configuration dataclasses, the one home of names, types and help."""

from __future__ import annotations

import argparse
import ast
import inspect
import itertools
import textwrap
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from recsys_opt.cli.values import output_file
from recsys_opt.quantities import byte_size, whole_number
from recsys_opt.training.config import ByteSize, optional_type


def add_config_arguments(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup,
    config_class: type[Any],
    *,
    names: Mapping[str, str] | None = None,
    leave_out: frozenset[str] = frozenset(),
) -> None:
    """Adds a flag for every field of a dataclass and of the dataclasses in it.

    The flag of a field is its name with dashes; `names` gives others, by dotted path, and `leave_out` gives
    none. Flags that are not given leave the recipe's value: see `config_changes`.
    """
    _add(parser, config_class, "", names or {}, leave_out)


def add_record_argument(
    parser: argparse.ArgumentParser, default: str | None = None, *, also: str = ""
) -> None:
    """Adds `--record FILE`, where a measurement goes; `--out` is what a verb makes.

    default  a file's name in benchmarks/results; None: no record unless asked for
    also     what comes beside it
    """
    path = None if default is None else Path("benchmarks/results") / default
    parser.add_argument(
        "--record",
        type=output_file,
        metavar="FILE",
        default=path,
        help=f"JSON file for the figures, with machine, date, commit and command{also} (default: "
        f"{path or 'none is written'})",
    )


def shape(text: str) -> tuple[int, ...]:
    """Factors of rows or columns: "2,1,8" -> (2, 1, 8)."""
    return tuple(int(factor) for factor in text.split(","))


def config_changes(args: argparse.Namespace) -> dict[str, Any]:
    """The fields given on the command line, by dotted path; "none" unsets an optional one."""
    return {
        key.removeprefix(_PREFIX): (None if value is _NONE else value)
        for key, value in vars(args).items()
        if key.startswith(_PREFIX) and value is not None
    }


_PREFIX = "config."
_NONE = object()


def _add(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup,
    cls: type[Any],
    prefix: str,
    names: Mapping[str, str],
    leave_out: frozenset[str],
) -> None:
    hints = typing.get_type_hints(cls)
    help_texts = field_docs(cls)
    for f in fields(cls):
        path = prefix + f.name
        hint, optional = optional_type(hints[f.name])
        if path in leave_out:
            continue
        if is_dataclass(hint):
            _add(parser, typing.cast(type[Any], hint), f"{path}.", names, leave_out)
            continue
        is_choice = typing.get_origin(hint) is Literal
        choices = typing.get_args(hint) if is_choice else None
        convert = str if is_choice else _converter(hint)
        parser.add_argument(
            "--" + names.get(path, f.name).replace("_", "-"),
            dest=_PREFIX + path,
            type=_or_none(convert) if optional else convert,
            choices=choices,
            metavar=None if choices else _metavar(hint),
            help=help_texts.get(f.name, "").replace("%", "%%"),
        )


def _converter(hint: Any) -> Callable[[str], Any]:
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]

        def split(text: str) -> tuple[Any, ...]:
            return tuple(item(part.strip()) for part in text.split(",") if part.strip())

        split.__name__ = f"comma-separated {item.__name__}"
        return split
    readers: dict[Any, Callable[[str], Any]] = {int: whole_number, ByteSize: byte_size}
    return readers.get(hint, typing.cast(Callable[[str], Any], hint))


def _or_none(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        return _NONE if text == "none" else convert(text)

    parse.__name__ = convert.__name__
    return parse


def _metavar(hint: Any) -> str:
    if typing.get_origin(hint) is tuple:
        return "A,B,.."
    return {int: "N", float: "X", ByteSize: "BYTES"}.get(hint, "S")


def field_docs(cls: type[Any]) -> dict[str, str]:
    """The string under each field in a class's source, on one line."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    body = typing.cast(ast.ClassDef, tree.body[0]).body
    docs = {}
    for statement, after in itertools.pairwise(body):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        ):
            docs[statement.target.id] = " ".join(str(after.value.value).split())
    return docs
