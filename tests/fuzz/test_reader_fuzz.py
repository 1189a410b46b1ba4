"""The fuzzing harness on its committed corpus (invented lines), under g++'s sanitizers."""

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CSRC = HERE.parent.parent / "csrc"
SOURCES = ("row", "chunker", "batch", "count_table", "vocabulary")


@pytest.mark.slow
def test_the_corpus_passes_under_sanitizers(tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ here: the harness cannot be compiled")
    flags = ["-std=c++20", "-O1", "-pthread", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    probe = tmp_path / "probe.cpp"
    probe.write_text("int main() {}")
    if subprocess.run([compiler, *flags, probe, "-o", tmp_path / "probe"], capture_output=True).returncode:
        pytest.skip("this g++ has no address and undefined-behaviour sanitizers")
    harness = tmp_path / "reader_fuzz"
    sources = [HERE / "reader_fuzz.cpp", *(CSRC / "criteo" / f"{name}.cpp" for name in SOURCES)]
    subprocess.run(
        [
            compiler,
            *flags,
            "-DREPLAY",
            "-DCRITEO_MAX_LINE_BYTES=600",
            "-DCRITEO_COUNT_LIMIT=2",
            f"-I{CSRC}",
            *sources,
            "-o",
            harness,
        ],
        check=True,
    )
    corpus = sorted((HERE / "corpus").iterdir())
    done = subprocess.run([harness, *corpus], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{len(corpus)} inputs\n"
