import json

import pytest
import torch

from recsys_opt.bench.tt import GatheredTT, Settings, draw_ids
from recsys_opt.cli.main import main
from recsys_opt.embeddings.tt import TTEmbeddingBag
from recsys_opt.errors import InputError


def test_bench_tt_writes_every_case(tmp_path, capsys):
    out = tmp_path / "tt.json"
    sizes = ["--rows", "5000", "--rank", "4", "8", "--batch-size", "32", "--threads", "1", "2"]
    chosen = ["--candidates", "dense", "torch", "tt", "--repeats", "2", "--out", str(out)]
    assert main(["bench", "tt", *sizes, *chosen, "--json"]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert len(rows) == 2 * 2 * 2 * 2 * 3
    assert {(r["rank"], r["threads"], r["ids"]) for r in rows} == {
        (rank, threads, ids) for rank in (4, 8) for threads in (1, 2) for ids in ("uniform", "zipf")
    }
    assert all(0 < r["p20_us"] <= r["median_us"] <= r["p80_us"] for r in rows)
    assert json.loads(capsys.readouterr().out)["record"] == str(out)


def test_the_torch_candidate_computes_the_same_rows():
    bag = TTEmbeddingBag(5000, 16, 4)
    ids, offsets = torch.randint(0, 5000, (10,)), torch.arange(10)
    torch.testing.assert_close(GatheredTT(bag)(ids, offsets), bag(ids, offsets))


def test_zipf_ids_follow_the_power_law():
    settings = Settings(num_embeddings=1000, zipf_exponent=1.05)
    ids = draw_ids("zipf", 200_000, settings, 0)
    assert int(ids.min()) >= 0
    assert int(ids.max()) < 1000
    counts = torch.bincount(ids, minlength=1000).double().sort(descending=True).values
    share = [k**-0.05 - (k + 1) ** -0.05 for k in range(1, 1001)]  # the integral of x^-1.05
    for k in (0, 1, 10, 100):
        expected = 200_000 * share[k] / sum(share)
        assert abs(float(counts[k]) - expected) < 6 * expected**0.5
    assert torch.equal(ids, draw_ids("zipf", 200_000, settings, 0))


def test_settings_are_checked():
    for bad in ({"ranks": (0,)}, {"zipf_exponent": 0.0}, {"candidates": ("lut",)}):
        with pytest.raises(InputError):
            Settings(**bad)
