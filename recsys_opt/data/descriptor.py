"""Where the dataset descriptors and derived statistics are: `datasets/` of the repository or of the wheel."""

from __future__ import annotations

from pathlib import Path

from recsys_opt.errors import InputError

_PACKAGE = Path(__file__).resolve().parent.parent


def datasets_dir() -> Path:
    """The folder of descriptors: inside an installed wheel, else at the top of the source tree."""
    for folder in (_PACKAGE / "_datasets", _PACKAGE.parent / "datasets"):
        if folder.is_dir():
            return folder
    raise InputError("the dataset descriptors are missing from this installation; install recsys_opt again")
