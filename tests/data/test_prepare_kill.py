"""kill -9 at any moment of prepare: the resumed result equals the uninterrupted one, byte for byte."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from recsys_opt.bench.criteo_text import write_rows
from recsys_opt.data.criteo import HashedIds, VocabularyIds
from recsys_opt.data.dataset import Dataset
from recsys_opt.data.descriptor import load_descriptor
from recsys_opt.data.prepare import PrepareOptions, prepare
from recsys_opt.errors import InputError

KILLS = 20
IDS = {
    "vocabulary": VocabularyIds(2),
    "hash": HashedIds(load_descriptor("criteo_terabyte").cardinalities["terabyte-10m"]),
}


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("days")
    for day, suffix in enumerate(("", ".gz", "", ".gz")):
        write_rows(folder / f"day_{day}{suffix}", 8000 + 1000 * day, seed=day)
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.name != ".lock"
    }


def killed_after(seconds: float, days: Path, out: Path, options: PrepareOptions) -> bool:
    """Runs prepare in a process and kills it; whether the kill came before its end."""
    pid = os.fork()
    if pid == 0:
        try:
            prepare([days], out, options)
        finally:
            os._exit(0)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


@pytest.mark.slow
@pytest.mark.parametrize("method", IDS)
def test_killed_and_resumed(days: Path, tmp_path: Path, method: str) -> None:
    options = PrepareOptions(ids=IDS[method], threads=2)
    began = time.perf_counter()
    prepare([days], tmp_path / "whole", options)
    duration = time.perf_counter() - began
    expected = tree(tmp_path / "whole")
    moments = random.Random(7)
    kills = resumed = 0
    for attempt in range(10 * KILLS):
        out = tmp_path / f"out_{attempt}"
        if not killed_after(moments.uniform(0, duration), days, out, options):
            continue  # it was done before
        kills += 1
        if not (out / "dataset.json").exists():
            with pytest.raises(InputError):
                Dataset(out)
        # Sometimes killed once more on the way.
        if kills % 3 == 0:
            killed_after(moments.uniform(0, duration), days, out, options)
        resumed += prepare([days], out, options).decision == "resumed"
        assert tree(out) == expected
        if kills == KILLS:
            break
    assert kills == KILLS
    assert resumed > 0
