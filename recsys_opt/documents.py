"""Dataclasses from JSON documents: every value has its field's type, or the message says where it has not."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar

from recsys_opt.errors import InputError

T = TypeVar("T")

_PLAIN = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def from_document(cls: type[T], document: Any, where: str) -> T:
    """A dataclass whose fields have what a JSON object says of them; `where` begins every message.

    Fields may be int, float, str, bool, Any, X | None, Literal, tuple[X, ...], tuple[X, Y], Mapping[str, X]
    and dataclasses of these.
    """
    known = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    if not isinstance(document, Mapping):
        raise _wrong(where, document, f"an object with {', '.join(known)}")
    for key in document:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, 1)
            meant = f" (did you mean {close[0]!r}?)" if close else ""
            raise InputError(f"{where} has no key {key!r}{meant}; its keys are {', '.join(known)}")
    for f in fields(cls):  # type: ignore[arg-type]
        if f.name not in document and f.default is MISSING and f.default_factory is MISSING:
            raise InputError(f"{where} has no {f.name!r}, which it needs")
    hints = _hints(cls)
    values = {key: _value(hints[key], value, _below(where, key)) for key, value in document.items()}
    try:
        return cls(**values)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


_hints: Callable[[Any], dict[str, Any]] = cache(typing.get_type_hints)


def _below(where: str, key: str) -> str:
    return f"{where}{'.' if ': ' in where else ': '}{key}"


def _wrong(where: str, value: Any, wanted: str) -> InputError:
    shown = repr(value)
    return InputError(f"{where} = {shown if len(shown) <= 60 else shown[:57] + '...'}; it must be {wanted}")


def _value(hint: Any, value: Any, where: str) -> Any:
    if hint is Any:
        return value
    if hint in _PLAIN:
        fits = isinstance(value, (int, float) if hint is float else hint)
        if not fits or (isinstance(value, bool) and hint is not bool):
            raise _wrong(where, value, _PLAIN[hint])
        return value
    if is_dataclass(hint):
        return from_document(typing.cast(type[Any], hint), value, where)
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value not in inner:
            raise _wrong(where, value, f"one of {', '.join(map(repr, inner))}")
        return value
    if origin in (types.UnionType, typing.Union):
        (own,) = (t for t in inner if t is not type(None))
        return None if value is None else _value(own, value, where)
    if origin is tuple:
        return _items(inner, value, where)
    if not isinstance(value, Mapping):
        raise _wrong(where, value, "an object")
    return {key: _value(inner[1], v, f"{where}[{key!r}]") for key, v in value.items()}


def _items(hints: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise _wrong(where, value, "a list")
    if hints[-1] is not ...:
        if len(value) != len(hints):
            raise _wrong(where, value, f"a list of {len(hints)}")
    else:
        hints = (hints[0],) * len(value)
    return tuple(
        _value(hint, v, f"{where}[{at}]") for at, (hint, v) in enumerate(zip(hints, value, strict=True))
    )
