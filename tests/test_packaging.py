"""`pip install .`, used from another folder, finds its native code, descriptors and statistics."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import recsys_opt

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the package's wheel is installed into."""
    folder = tmp_path_factory.mktemp("wheel")
    # The isolated build would fetch the newest torch; the tree's own build folder spares compiling again.
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    subprocess.run([*pip, *build], check=True, env={**os.environ, "PATH": path})
    (wheel,) = folder.glob("*.whl")
    assert wheel.name.startswith(f"recsys_opt-{recsys_opt.__version__}-")
    names = zipfile.ZipFile(wheel).namelist()
    assert "recsys_opt/librecsys_opt.so" in names
    assert "recsys_opt/py.typed" in names
    assert {"recsys_opt/planner/presets/h100.toml", "recsys_opt/serving/presets/h100.toml"} <= set(names)
    assert not [n for n in names if n.startswith(("tests/", "datasets/", "csrc/"))]
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_changelog_begins_with_the_version():
    first = next(line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## "))
    version, _, state = first.removeprefix("## ").partition(" ")
    base, _, development = recsys_opt.__version__.partition(".dev")
    assert (version, state) == (base, "(unreleased)" if development else "")


def run_installed(site: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "recsys_opt.cli.main", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_installed_wheel_works_from_another_folder(installed: Path, tmp_path: Path):
    doctor = run_installed(installed, tmp_path, "doctor")
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr
    assert str(installed / "recsys_opt" / "_datasets") in doctor.stdout
    synth = run_installed(installed, tmp_path, "data", "synth", "--rows", "2000", "--out", "generated")
    assert synth.returncode == 0, synth.stderr
    assert (tmp_path / "generated" / "dataset.json").exists()
