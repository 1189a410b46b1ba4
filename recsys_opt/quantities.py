"""Numbers as people write them: 200k rows, 16 GiB."""

from __future__ import annotations

import re
from fractions import Fraction


def whole_number(text: str) -> int:
    """Accepts 1000000, 1_000_000, 1e6, 1M and 200k."""
    factor = {"k": 1_000, "K": 1_000, "M": 1_000_000, "G": 1_000_000_000}.get(text[-1:], 1)
    number = text[:-1] if factor > 1 else text
    try:
        return int(number) * factor
    except ValueError:
        value = float(number) * factor
        if not value.is_integer():
            raise ValueError(f"{text} is no whole number") from None
        return int(value)


def byte_size(text: str) -> int:
    """Accepts 20MB (20,000,000), 16MiB (16,777,216), 1.5GB, 512KiB, 100B and plain numbers of bytes."""
    match = re.fullmatch(r"([0-9][0-9_]*(?:\.[0-9]+)?(?:e[0-9]+)?) ?([kKMGT]i?)?B?", text.strip())
    if match is None:
        raise ValueError(f"{text} is no number of bytes")
    prefix = match[2] or ""
    power = "kMGT".index(prefix[0].replace("K", "k")) + 1 if prefix else 0
    value = Fraction(match[1].replace("_", "")) * (1024 if prefix.endswith("i") else 1000) ** power
    if value.denominator > 1:
        raise ValueError(f"{text} is no whole number of bytes")
    return int(value)
