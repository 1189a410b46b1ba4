"""How the C library and the system are to hold the memory of tensors."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

import torch
from torch import Tensor

# mallopt's parameters (malloc.h of the GNU C library), and what they are at first.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_FIRST_MMAP_MAX = 65536
_LARGEST_MMAP_THRESHOLD = 32 << 20
_MADV_HUGEPAGE = 14
_HUGE_PAGE = 2 << 20


def empty_in_huge_pages(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """torch.empty, on a CPU in pages of 2 MB where the system has them for the asking.

    Rows read at random from a large table miss the translation cache less often.
    """
    tensor = torch.empty(shape, dtype=dtype, device=device)
    begin = -(-tensor.data_ptr() // _HUGE_PAGE) * _HUGE_PAGE
    size = (tensor.data_ptr() + tensor.nbytes) // _HUGE_PAGE * _HUGE_PAGE - begin
    if device.type == "cpu" and size > 0:
        with contextlib.suppress(OSError, AttributeError, TypeError):  # a system without madvise
            advise = ctypes.CDLL(None).madvise
            advise(ctypes.c_void_p(begin), ctypes.c_size_t(size), _MADV_HUGEPAGE)  # it is advice: may fail
    return tensor


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
