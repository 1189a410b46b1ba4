import subprocess
import sys

import pytest

from recsys_opt.allocator import keeping_freed_memory

# Page faults of ten rounds of making and freeing 64 MB, after the first.
SCRIPT = """
import resource, sys
import numpy as np
from recsys_opt.allocator import keeping_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        np.empty(1 << 26, dtype=np.uint8).fill(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

plain = faults()
with keeping_freed_memory() as kept:
    faults()
    within = faults()
after = faults()
print(kept, plain, within, after)
"""


def test_memory_is_kept_within_and_given_back_afterwards():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    kept, plain, within, after = done.stdout.split()
    if kept != "True":
        pytest.skip("not the GNU C library")
    assert int(within) < int(plain) / 20
    assert int(after) > int(within)


def test_another_c_library_is_left_alone(monkeypatch):
    def no_library(name):
        raise OSError

    monkeypatch.setattr("ctypes.CDLL", no_library)
    with keeping_freed_memory() as kept:
        assert not kept
