import pytest

from recsys_opt.bench.tt_cache import Settings, curves, run
from recsys_opt.cli.main import main
from recsys_opt.errors import InputError
from recsys_opt.files import read_json
from recsys_opt.progress import SilentProgress

pytestmark = pytest.mark.usefixtures("one_thread")


def test_rows_say_what_is_held_and_hit(tmp_path):
    settings = Settings(
        num_embeddings=3000,
        embedding_dim=8,
        rank=4,
        fractions=(0.01, 0.5),
        zipf_exponents=(1.2,),
        batch_sizes=(512,),
        rounds=3,
        block_ms=0.1,
    )
    rows = run(settings, SilentProgress())
    assert len(rows) == 2 * 2 * 5
    assert {row["candidate"] for row in rows} == {"dense", "tt", "held 1%", "held 50%", "added"}
    by = {(row["ids"], row["candidate"]): row for row in rows if row["work"] == "step"}
    assert by["Zipf(1.2)", "held 1%"]["held"] == 30
    zipf = [by["Zipf(1.2)", name]["hit_rate"] for name in ("held 1%", "held 50%")]
    uniform = [by["uniform", name]["hit_rate"] for name in ("held 1%", "held 50%")]
    assert 0.3 < zipf[0] < zipf[1]  # the 30 most frequent of Zipf(1.2) have about half of the lookups
    assert 0.005 < uniform[0] < 0.02
    assert 0.4 < uniform[1] < 0.6
    assert all(row["ratio_to_tt"] == 1 for row in rows if row["candidate"] == "tt")
    held = by["uniform", "held 1%"]
    assert held["with_refresh_us"] > held["median_us"] > 0
    picture = curves(rows)
    assert picture.count("<polyline") == 4  # two distributions in two plots


def test_the_command_writes_a_record_and_curves(tmp_path, capsys):
    out = tmp_path / "cache.json"
    table = ["--rows", "500", "--dim", "4", "--rank", "2", "--batch-size", "64"]
    flags = [*table, "--fraction", "0.1", "--zipf", "--rounds", "3"]
    assert main(["bench", "tt-cache", *flags, "--record", str(out)]) == 0
    assert "uniform, 64 ids: step" in capsys.readouterr().out
    assert len(read_json(out, "recsys_opt.measurement", 1)["rows"]) == 8
    assert out.with_suffix(".svg").read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fractions": (0.0,)}, "fraction = 0.0"),
        ({"zipf_exponents": (-1.0,)}, "Zipf exponent = -1.0"),
        ({"rounds": 0}, "must be at least 1"),
    ],
)
def test_bad_settings_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        Settings(**changes)
