"""One candidate of `bench prepare`, in a process of its own: python -m recsys_opt.bench.prepare_once ...

Prints its CPU time (user and system, without the interpreter's start) and the process's peak memory.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

from recsys_opt.data.criteo import HashedIds, VocabularyIds
from recsys_opt.data.descriptor import load_descriptor
from recsys_opt.data.prepare import PrepareOptions, prepare
from recsys_opt.integrations.dataframes import PEERS, prepare_with


def peak_rss_bytes() -> int:
    """Of this process, from the kernel."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main(candidate: str, threads: int, path: Path, out: Path) -> None:
    """Does the work once and prints what it took."""
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    if candidate in PEERS:
        prepare_with(candidate, path)
    else:
        hashed = HashedIds(load_descriptor("criteo_kaggle").cardinalities["kaggle"])
        ids = hashed if candidate.endswith("hash") else VocabularyIds(min_count=1)
        prepare([path], out, PrepareOptions(ids=ids, threads=threads))
    after = resource.getrusage(resource.RUSAGE_SELF)
    result = {
        "user_s": after.ru_utime - before.ru_utime,
        "sys_s": after.ru_stime - before.ru_stime,
        "wall_s": time.perf_counter() - began,
        "peak_rss_bytes": peak_rss_bytes(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
