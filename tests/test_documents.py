from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from recsys_opt.documents import from_document
from recsys_opt.errors import InputError


@dataclass(frozen=True)
class Inner:
    x: float
    span: tuple[int, int] = (0, 1)


@dataclass(frozen=True)
class Outer:
    name: str
    parts: tuple[Inner, ...] = ()
    kind: Literal["a", "b"] = "a"
    limit: int | None = None
    on: bool = False
    by_name: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    anything: Any = None

    def __post_init__(self) -> None:
        if self.name == "bad":
            raise InputError("name = 'bad'; choose another")


def test_every_kind_of_field():
    document = {
        "name": "n",
        "parts": [{"x": 1}, {"x": 0.5, "span": [2, 3]}],
        "kind": "b",
        "limit": None,
        "on": True,
        "by_name": {"t": {"k": 3}},
        "anything": [None],
    }
    made = from_document(Outer, document, "file")
    assert made == Outer("n", (Inner(1), Inner(0.5, (2, 3))), "b", None, True, {"t": {"k": 3}}, [None])
    assert from_document(Outer, {"name": "n", "limit": 4}, "file") == Outer("n", limit=4)


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ([], "file = []; it must be an object with name, parts"),
        ({}, "file has no 'name', which it needs"),
        ({"name": 3}, "file: name = 3; it must be a text"),
        ({"name": "n", "nme": 3}, "file has no key 'nme' (did you mean 'name'?)"),
        ({"name": "n", "parts": 3}, "file: parts = 3; it must be a list"),
        ({"name": "n", "parts": [3]}, "file: parts[0] = 3; it must be an object with x, span"),
        ({"name": "n", "parts": [{"x": 1}, {"x": "1"}]}, "file: parts[1].x = '1'; it must be a number"),
        ({"name": "n", "parts": [{"x": True}]}, "file: parts[0].x = True; it must be a number"),
        ({"name": "n", "parts": [{"x": 1, "span": [1]}]}, "parts[0].span = [1]; it must be a list of 2"),
        ({"name": "n", "parts": [{"x": 1, "span": [1, 2.0]}]}, "span[1] = 2.0; it must be a whole number"),
        ({"name": "n", "kind": "c"}, "file: kind = 'c'; it must be one of 'a', 'b'"),
        ({"name": "n", "limit": "4"}, "file: limit = '4'; it must be a whole number"),
        ({"name": "n", "on": 1}, "file: on = 1; it must be true or false"),
        ({"name": "n", "by_name": []}, "file: by_name = []; it must be an object"),
        ({"name": "n", "by_name": {"t": {"k": "3"}}}, "file: by_name['t']['k'] = '3'; it must be a whole"),
        ({"name": "x" * 99, "on": "x" * 99}, "...; it must be true or false"),
        ({"name": "bad"}, "file: name = 'bad'; choose another"),
    ],
)
def test_what_does_not_fit_is_named_with_its_place(document: Any, told: str):
    with pytest.raises(InputError) as error:
        from_document(Outer, document, "file")
    assert told in str(error.value)
