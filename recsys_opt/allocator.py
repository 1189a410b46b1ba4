"""Memory of freed tensors, kept for the next step in place of going back to the system."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

# mallopt's parameters (malloc.h of the GNU C library), and what they are at first.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_FIRST_MMAP_MAX = 65536
_LARGEST_MMAP_THRESHOLD = 32 << 20


@contextlib.contextmanager
def keeping_freed_memory() -> Iterator[bool]:
    """Within, the C library keeps memory that is freed; yields whether it can be told so.

    By itself it maps every block above 32 MB anew and gives it back when it is freed: a training step of
    16,384 Criteo rows then faults in some 10,000 pages, each zeroed first, which is 8 % of its time. The
    process stays as large as it was at its largest. Only the GNU C library has the setting; it holds for the
    whole process, so that it is for a command to choose, not for a library.
    """
    try:
        libc = ctypes.CDLL(None)
        mallopt, trim = libc.mallopt, libc.malloc_trim
    except (OSError, AttributeError, TypeError):  # another C library
        yield False
        return
    try:
        yield bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, -1))
    finally:
        # As the library itself ends up after it has freed a large block.
        mallopt(_MMAP_MAX, _FIRST_MMAP_MAX)
        mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_MMAP_THRESHOLD)
        trim(0)
