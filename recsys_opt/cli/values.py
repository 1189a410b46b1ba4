"""Readers of single values of the command line, whose messages say what a value must be."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from recsys_opt.errors import InputError
from recsys_opt.files import check_target
from recsys_opt.quantities import byte_size, whole_number


def output_file(text: str) -> Path:
    """A file to write; refused before the work is done where it could not be written."""
    path = Path(text)
    try:
        check_target(path)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return path


def whole(text: str) -> int:
    """A whole number, e.g. 200k."""
    try:
        return whole_number(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}; it must be a whole number, e.g. 200k") from None


def at_least(least: int) -> Callable[[str], int]:
    """A reader of whole numbers that are not smaller."""

    def read(text: str) -> int:
        value = whole(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{text}; it must be at least {least}")
        return value

    return read


def memory_size(text: str) -> int:
    """A number of bytes, e.g. 16MiB."""
    try:
        return byte_size(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}; it must be a number of bytes, e.g. 24GB") from None
