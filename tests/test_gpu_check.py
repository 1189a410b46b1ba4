"""scripts/gpu_check.sh and what it runs, as far as a machine without a GPU can: flags, files, arithmetic."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from recsys_opt.cli.main import build_parser

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = "scripts/gpu_check.sh"
SECTIONS = ("build", "tests", "kernels", "tt", "tiered", "profile", "sanitizer")


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", SCRIPT, *words],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def commands() -> dict[str, list[str]]:
    """What each section would run."""
    done = run("--dry-run")
    assert done.returncode == 0, done.stderr
    found = re.findall(r"^([a-z ]+): (.*)$", done.stdout, flags=re.MULTILINE)
    return {name: shlex.split(command) for name, command in found}


def test_every_section_has_a_command(commands):
    names = set(commands)
    assert {"build", "tests", "kernels", "tt", "tiered", "profile"} <= names
    assert {f"sanitizer {tool}" for tool in ("memcheck", "racecheck", "initcheck")} <= names


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_alone(section, commands):
    done = run("--dry-run", section)
    assert done.returncode == 0
    own = {"build": {"environment", "build", "registers"}}.get(section, {section})
    named = set(re.findall(r"^([a-z ]+): ", done.stdout, flags=re.MULTILINE))
    assert named == {name for name in commands if name in own or name.startswith(f"{section} ")}


def test_an_unknown_section_is_refused():
    done = run("benchmarks")
    assert done.returncode == 2
    assert (
        "there is no section benchmarks; there are build tests kernels tt tiered profile sanitizer"
        in done.stderr
    )


def test_without_a_gpu_it_says_so_and_fails(tmp_path):
    fake = tmp_path / "bin"
    fake.mkdir()
    (fake / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    (fake / "nvidia-smi").chmod(0o755)
    done = run("tests", OUT=str(tmp_path / "out"), PATH=f"{fake}:{os.environ['PATH']}")
    assert done.returncode == 1
    assert "nvidia-smi finds no GPU here" in (tmp_path / "out/summary.txt").read_text()


def test_the_files_and_flags_that_it_names_exist(commands):
    for command in commands.values():
        for word in command:
            if word.startswith(("tests", "benchmarks/tt", "scripts/")) and "results" not in word:
                assert (ROOT / word).exists(), word
    arguments = build_parser("bench").parse_args(commands["tt"][1:])
    assert set(arguments.candidates) >= {"dense", "torch", "tt", "tt-fused", "tt-graph"}
    assert set(arguments.batch_size) == {512, 65536}
    assert build_parser("bench").parse_args(commands["tiered"][1:]).tables > 1


def test_the_tests_that_it_chooses_exist(commands):
    chosen = commands["sanitizer memcheck"]
    files = [word for word in chosen if word.endswith(".py")]
    text = "".join((ROOT / file).read_text() for file in files)
    for word in re.findall(r"\w+", chosen[-1]):
        assert word in ("or", "and") or word in text, word


@pytest.mark.slow
@pytest.mark.parametrize("quick", [False, True])
def test_the_kernels_measurements_run_in_small_on_the_cpu(tmp_path, quick):
    out = tmp_path / "kernels.json"
    words = [sys.executable, "benchmarks/tt_cuda_kernels.py", str(out), "--dry-run", *["--quick"] * quick]
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
    assert out.exists() != quick
    if quick:
        return
    rows = json.loads(out.read_text())["rows"]
    assert {row["sweep"] for row in rows} == {"direct", "run", "precision", "tables"}
    assert all(row["median_us"] > 0 for row in rows)
    found = {row["precision"]: max(row["errors_output_and_cores"]) for row in rows if "precision" in row}
    assert found["fp64"] == 0
    assert found["fp32"] < 1e-6 < found["fp16"] < found["bf16"] < 0.02
