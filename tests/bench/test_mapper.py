import numpy as np

from recsys_opt.bench.mapper import random_profile, run, text
from recsys_opt.cli.main import main
from tests.serving.profiles import cpu_gpu_profile


def test_rows():
    rows = run(3, [2, 4], cpu_gpu_profile(), seed=1)
    assert {r["case"] for r in rows if r["case"].startswith("profile")}
    assert all(0 < r["mp-rec"] <= 1 + 1e-6 and 0 < r["ours"] <= 1 + 1e-6 for r in rows)
    assert len(text(rows).splitlines()) == 1 + len({r["case"] for r in rows})
    assert [(r["case"], r["ours"]) for r in run(3, [2, 4], None, seed=1)] == [
        (r["case"], r["ours"]) for r in rows if r["case"].startswith("random")
    ]


def test_random_profiles():
    profile = random_profile(np.random.default_rng(3), 2, 5)
    assert len(profile.paths) == 10
    assert len(profile.devices) == 2
    assert len({p.accuracy for p in profile.paths}) == 10


def test_the_command(tmp_path, capsys):
    command = ["bench", "mapper", "--cases", "2", "--paths", "3", "--record", str(tmp_path / "m.json")]
    assert main(command) == 0
    assert "ours worst" in capsys.readouterr().out
    assert (tmp_path / "m.json").exists()
