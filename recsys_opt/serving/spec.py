"""Texts such as "lognormal:mean=128,sigma=1": a kind and named values, each checked."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable
from typing import TypeVar

from recsys_opt.errors import InputError

T = TypeVar("T")
_UNITS = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "min": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(text: str) -> float:
    """Accepts 25ms, 1.5s, 200us, 10min, 24h and plain seconds."""
    match = re.fullmatch(r"([0-9]*\.?[0-9]+(?:e[-+]?[0-9]+)?)\s*([a-z]*)", text.strip())
    if match is None or match[2] not in _UNITS:
        raise InputError(f"{text!r} is no time; write e.g. 25ms, 1.5s or 10min")
    value = float(match[1]) * _UNITS[match[2]]
    if not math.isfinite(value):
        raise InputError(f"{text!r} is no time that ends; write e.g. 25ms, 1.5s or 10min")
    return value


class Parameters:
    """The named values of a text; each is asked for once, then `no_more` refuses what nobody asked for."""

    def __init__(self, where: str, values: dict[str, str]) -> None:
        self._where, self._values = where, values
        self._asked: list[str] = []

    @classmethod
    def parse(cls, where: str, text: str, *, first: str | None = None) -> Parameters:
        """Reads "a=1,b=2"; the value without a name, if one may be, is called `first` and comes first."""
        values: dict[str, str] = {}
        for at, part in enumerate(text.split(",") if text else []):
            name, equals, value = part.partition("=")
            if not equals:
                if at or first is None:
                    raise InputError(f"{where}: {part!r} has no name; write NAME=VALUE")
                name, value = first, part
            name = name.strip()
            if name in values:
                raise InputError(f"{where}: {name} is given twice; give it once")
            values[name] = value.strip()
        return cls(where, values)

    def has(self, name: str) -> bool:
        """Whether a value is given."""
        self._asked.append(name)
        return name in self._values

    def text(self, name: str, default: str | None = None) -> str:
        """A value as it stands; without a default it must be there."""
        self._asked.append(name)
        value = self._values.get(name, default)
        if not value:
            raise InputError(f"{self._where} has no {name}, which it needs")
        return value

    def number(
        self, name: str, default: float | None = None, *, above: float = -math.inf, most: float = math.inf
    ) -> float:
        """A number above `above` and at most `most`."""
        return self._number(name, default, lambda v: above < v <= most, _range("above", above, most))

    def share(self, name: str, default: float | None = None, *, most: float = 1.0) -> float:
        """A number from 0 to `most`."""
        return self._number(name, default, lambda v: 0 <= v <= most, f"0 .. {most:g}")

    def whole(self, name: str, default: int | None = None, *, least: int, most: int) -> int:
        """A whole number in a range."""
        wanted = f"a whole number, {least} .. {most}"
        return int(self._number(name, default, lambda v: v.is_integer() and least <= v <= most, wanted))

    def duration(self, name: str, default: float | None = None) -> float:
        """A positive time in seconds."""
        if name not in self._values and default is not None:
            self._asked.append(name)
            return default
        text = self.text(name)
        try:
            value = seconds(text)
        except InputError as error:
            raise InputError(f"{self._where}: {name} = {error}") from None
        if value <= 0:
            raise InputError(f"{self._where}: {name} = {text}; it must be longer than 0 s")
        return value

    def checked(self, make: Callable[[], T]) -> T:
        """What `make` makes; its complaint says where the values came from."""
        try:
            return make()
        except InputError as error:
            raise InputError(f"{self._where}: {error}") from None

    def no_more(self) -> None:
        """Refuses values that were not asked for."""
        for name in self._values:
            if name not in self._asked:
                close = difflib.get_close_matches(name, self._asked, 1)
                meant = f" (did you mean {close[0]}?)" if close else ""
                takes = ", ".join(dict.fromkeys(self._asked)) or "nothing"
                raise InputError(f"{self._where} takes no {name!r}{meant}; it takes {takes}")

    def _number(self, name: str, default: float | None, fits: Callable[[float], bool], wanted: str) -> float:
        self._asked.append(name)
        text = self._values.get(name)
        if text is None:
            if default is None:
                raise InputError(f"{self._where} has no {name}, which it needs")
            return float(default)
        try:
            value = float(text)
        except ValueError:
            raise InputError(f"{self._where}: {name} = {text!r} is no number; it must be {wanted}") from None
        if not math.isfinite(value) or not fits(value):
            raise InputError(f"{self._where}: {name} = {text}; it must be {wanted}")
        return value


def _range(word: str, low: float, high: float) -> str:
    parts = [f"{word} {low:g}"] if low > -math.inf else []
    parts += [f"at most {high:g}"] if high < math.inf else []
    return " and ".join(parts) or "a number"
