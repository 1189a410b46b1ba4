import pytest

from recsys_opt.data.splits import Split
from recsys_opt.errors import InputError


def test_shares() -> None:
    split = Split.parse("80/10/10")
    assert str(split) == "80/10/10"
    assert split.ranges([137_139]) == {
        "train": (0, 109_711),
        "validation": (109_711, 123_425),
        "test": (123_425, 137_139),
    }
    assert Split.parse("1/0/0").ranges([3, 4]) == {"train": (0, 7), "validation": (7, 7), "test": (7, 7)}


def test_last_day() -> None:
    split = Split.parse("last-day")
    assert str(split) == "last-day"
    assert split.ranges([10, 20, 5]) == {"train": (0, 30), "validation": (30, 33), "test": (33, 35)}
    with pytest.raises(InputError, match="needs at least two days"):
        split.ranges([10])


@pytest.mark.parametrize("text", ["80/20", "80/10/x", "0/50/50", "-1/1/1", ""])
def test_nonsense(text: str) -> None:
    with pytest.raises(InputError, match="it must be like 80/10/10"):
        Split.parse(text)
