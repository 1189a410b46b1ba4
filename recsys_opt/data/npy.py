"""Arrays of .npy files, mapped into memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_opt.errors import InputError

_MAGIC = b"\x93NUMPY"


def mapped_array(path: Path, remedy: str, *, empty: bool = False) -> NDArray[Any]:
    """The array of a file; raises InputError with the remedy where it cannot be read.

    empty  whether it has no numbers: numpy cannot map nothing, and reads it
    """
    try:
        with open(path, "rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:  # numpy would ask whether to trust a pickle
                raise ValueError("it does not begin as one")
        array: NDArray[Any] = np.load(path, mmap_mode=None if empty else "r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"{path} cannot be read as a .npy array: {why}; {remedy}") from None
    return array
