"""Compiles the CUDA sources of tt, hot_rows, tiered and dhe as C++ against the shim: ops for CPU tensors.

The library is kept in build/simt under a hash of all that goes into it. As a command: prints its path.
"""

import fcntl
import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SIMT = ROOT / "tests" / "simt"
CSRC = ROOT / "csrc"
FLAGS = [
    "-std=c++20",
    "-O1",
    "-g1",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-strict-aliasing",
    "-U_FORTIFY_SOURCE",  # its longjmp refuses to change stacks
    "-DRECSYS_OPT_SIMT",
    "-DTORCH_TARGET_VERSION=0x020b000000000000",
]


def schemas() -> str:
    """The schemas of the ops with CUDA kernels, out of csrc/library.cpp."""
    found = re.findall(
        r'm\.def\(\s*"(?:tt_|hot_rows_|tiered_|dhe_encode).*?"\);',
        (CSRC / "library.cpp").read_text(),
        flags=re.DOTALL,
    )
    assert found, "csrc/library.cpp defines no tt_ op"
    return "\n".join(found)


def build() -> Path:
    """The library, compiled if it is not there yet."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    torch = Path(str(spec.origin)).parent
    kernels = sorted([*CSRC.glob("tt/*_cuda.cu"), *CSRC.glob("hot_rows/*_cuda.cu")])
    kernels += sorted([*CSRC.glob("tiered/*_cuda.cu"), *CSRC.glob("dhe/*_cuda.cu")])
    sources = [*kernels, SIMT / "simt.cpp", SIMT / "library.cpp"]
    read = [*sources, *sorted(CSRC.glob("tt/*.cuh")), *sorted(CSRC.glob("hot_rows/*.h"))]
    read += [*sorted(CSRC.glob("tiered/*.h")), *sorted(CSRC.glob("tiered/*.cuh")), CSRC / "dense/dense_bag.h"]
    read += [CSRC / "dhe/dhe.h"]
    read += [*sorted(CSRC.glob("*.h")), CSRC / "tt/tt_embedding_bag.h", CSRC / "tt/tt_prefix.h"]
    read += [SIMT / "simt.h"]
    key = hashlib.sha256(" ".join([*FLAGS, str(torch), schemas()]).encode())
    for path in read:
        key.update(path.read_bytes())
    folder = ROOT / "build" / "simt"
    library = folder / f"librecsys_opt_simt-{key.hexdigest()[:16]}.so"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several test processes the first compiles, the others wait
        if not library.exists():
            compile_library(sources, library, torch)
    return library


def compile_library(sources: list[Path], library: Path, torch: Path) -> None:
    """Compiles into `library`, and removes those of other sources."""
    folder = library.parent
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        Path(scratch, "schemas.inc").write_text(schemas())
        include = [f"-I{CSRC}", f"-I{SIMT}", f"-I{scratch}", "-isystem", str(torch / "include")]
        objects = [Path(scratch, f"{source.stem}.o") for source in sources]

        def compile_one(source: Path, target: Path) -> None:
            compiler = os.environ.get("CXX", "g++")
            command = [compiler, "-x", "c++", *FLAGS, *include, "-c", str(source), "-o", str(target)]
            subprocess.run(command, check=True)

        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            list(pool.map(compile_one, sources, objects))
        made = Path(scratch, "library.so")
        link = [os.environ.get("CXX", "g++"), "-shared", *map(str, objects), "-o", str(made)]
        subprocess.run([*link, f"-L{torch / 'lib'}", "-ltorch_cpu"], check=True)
        made.replace(library)
    for old in folder.glob("librecsys_opt_simt-*.so"):
        if old != library:
            old.unlink(missing_ok=True)


if __name__ == "__main__":
    print(build(), file=sys.stdout)
