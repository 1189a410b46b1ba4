"""Readers of the values that the sub-verbs of `recsys-opt profile` share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from recsys_opt.cli.values import memory_size
from recsys_opt.errors import InputError
from recsys_opt.serving.spec import seconds

_NAMES = {"cpu": "cpu", "cuda": "gpu"}


def pairs(text: str, example: str) -> dict[str, str]:
    """NAME=VALUE,NAME=VALUE as a mapping."""
    found: dict[str, str] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if not name or not equals or not value:
            raise argparse.ArgumentTypeError(f"{part!r}; it must be NAME=VALUE, e.g. {example}")
        if name in found:
            raise argparse.ArgumentTypeError(f"{name} is given twice")
        found[name] = value
    return found


def accuracies(text: str) -> dict[str, float]:
    """table=0.7879,dhe=0.7894."""
    found = {}
    for name, value in pairs(text, "table=0.7879").items():
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = -1.0
        if not 0 <= found[name] <= 1:
            raise argparse.ArgumentTypeError(f"{name}={value}; an accuracy is a share, e.g. 0.7879")
    return found


def memories(text: str) -> dict[str, int]:
    """cpu=2GB,gpu=200MB."""
    return {name: memory_size(value) for name, value in pairs(text, "cpu=2GB").items()}


def duration(text: str) -> float:
    """25ms: seconds."""
    try:
        return seconds(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def devices(text: str) -> dict[str, str]:
    """cpu,cuda=gpu0: kind -> name."""
    found: dict[str, str] = {}
    for part in text.split(","):
        kind, _, name = part.partition("=")
        if kind not in _NAMES:
            raise argparse.ArgumentTypeError(
                f"{part!r}; a device is cpu or cuda, with =NAME if it is to have one"
            )
        if kind in found:
            raise argparse.ArgumentTypeError(f"{kind} is given twice")
        found[kind] = name or _NAMES[kind]
    return found


def named_runs(texts: Sequence[str]) -> list[tuple[str | None, str]]:
    """[NAME=]RUN as (name or None, run)."""
    found: list[tuple[str | None, str]] = []
    for text in texts:
        name, equals, run = text.partition("=")
        is_named = equals and "/" not in name
        found.append((name, run) if is_named else (None, text))
    return found
