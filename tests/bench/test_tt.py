import csv
import json

import pytest
import torch

from recsys_opt.bench.ceilings import Ceilings
from recsys_opt.bench.tt_candidates import GatheredTT, Tables, make_task, works_of
from recsys_opt.bench.tt_cases import GRAPHS, POOL_LOOKUPS, PRESETS, Settings, draw_batches, draw_ids
from recsys_opt.bench.tt_graphs import graph_task
from recsys_opt.bench.tt_report import text
from recsys_opt.cli.main import main
from recsys_opt.embeddings.tt import TTEmbeddingBag
from recsys_opt.errors import InputError
from recsys_opt.ops import has_cuda_kernel


def test_bench_tt_writes_every_case(tmp_path, capsys):
    out = tmp_path / "tt.json"
    sizes = ["--rows", "5000", "--rank", "4", "8", "--batch-size", "32", "--threads", "1"]
    chosen = [
        "--candidates",
        "dense",
        "torch",
        "tt",
        "tt-fused",
        "tt-prefix",
        "tt-prefix-bf16",
        "--rounds",
        "3",
        "--block-ms",
        "0.5",
    ]
    assert main(["bench", "tt", *sizes, *chosen, "--bag-size", "3", "--record", str(out), "--json"]) == 0
    record = json.loads(out.read_text())
    rows = record["rows"]
    found = {(r["rank"], r["threads"], r["ids"], r["work"], r["candidate"]) for r in rows}
    trained = {
        (rank, threads, ids, work, candidate)
        for rank in (4, 8)
        for threads in (1,)
        for ids in ("uniform", "zipf")
        for work in ("forward", "backward", "step")
        for candidate in ("dense", "torch", "tt", "tt-fused")
        if (work, candidate) != ("forward", "tt-fused")
    }
    assert trained <= found
    assert {(w, c) for *_, w, c in found - trained} == {
        ("forward", "tt-prefix"),
        ("forward", "tt-prefix-bf16"),
    }
    assert len(rows) == len(found)
    for r in rows:
        assert 0 < r["p20_us"] <= r["median_us"] <= r["p80_us"]
        assert r["ratio_p20"] <= r["ratio"] <= r["ratio_p80"]
        assert r["rounds"] == 3
        assert r["candidate"] != "dense" or r["ratio"] == 1
        assert r["share_of_roof"] == pytest.approx(r["roof_us"] / r["median_us"], rel=0.05, abs=0.01)
    assert json.loads(capsys.readouterr().out)["record"] == str(out)
    assert record["ceilings"][0]["threads"] == 1
    lines = out.with_suffix(".csv").read_text().splitlines()
    comments = [line for line in lines if line.startswith("#")]
    assert any(line.startswith("# command: ") for line in comments)
    read = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    assert [float(r["median_us"]) for r in read] == [r["median_us"] for r in rows]
    assert out.with_suffix(".svg").read_text().count("<polyline") == 0  # one batch size: dots alone
    ceilings = [Ceilings(**c) for c in record["ceilings"]]
    for line in text(rows, ceilings).splitlines():
        assert len(line) <= 100


def test_a_batch_comes_round_when_the_caches_have_forgotten_it():
    settings = Settings(num_embeddings=5000)
    for case in settings.cases():
        batches = draw_batches(case, settings)
        assert len({b.numel() for b in batches}) == 1
        assert sum(b.numel() for b in batches) >= POOL_LOOKUPS


def test_the_largest_kaggle_table_has_the_published_factors():
    (shape,) = Settings().shapes()
    assert shape.p == (200, 220, 250)
    (other,) = Settings(num_embeddings=1000, embedding_dims=(64,), tt_q_shapes=((4, 4, 4),)).shapes()
    assert other.q == (4, 4, 4)
    with pytest.raises(InputError, match="make 8 columns, not 16"):
        list(Settings(tt_q_shapes=((2, 2, 2),)).shapes())


def test_presets_cover_the_promised_directions():
    for make in PRESETS.values():
        cases = [case for settings in make(Settings()) for case in settings.cases()]
        assert {c.rank for c in cases} == {16, 32, 64}
        assert {c.shape.embedding_dim for c in cases} == {16, 64, 128}
        assert {c.bag_size for c in cases} == {1, 20}
        assert {c.threads for c in cases} == {1, 2}
        assert {c.ids for c in cases} == {"uniform", "zipf"}
        assert {2048, 65536} <= {c.batch_size for c in cases}


def test_the_torch_candidate_computes_the_same_rows():
    bag = TTEmbeddingBag(5000, 16, 4)
    ids, offsets = torch.randint(0, 5000, (10,)), torch.arange(0, 10, 2)
    torch.testing.assert_close(GatheredTT(bag)(ids, offsets), bag(ids, offsets))


def test_the_fused_candidate_is_updated_without_gradients():
    case = next(Settings(num_embeddings=5000, batch_sizes=(8,)).cases())
    modules = Tables("cpu").of(case, ["tt", "tt-fused"])
    batch, upstream = torch.arange(8) * 600, torch.randn(8, 16)
    before = modules["tt"](batch, torch.arange(8)).detach()
    for module in modules.values():
        make_task("step", module, case, [batch], upstream).run()
    assert all(core.grad is None for core in modules["tt-fused"].cores)
    after = [module(batch, torch.arange(8)).detach() for module in modules.values()]
    torch.testing.assert_close(after[0], after[1])
    assert not torch.equal(after[0], before)


def test_graphs_are_of_a_gpu_alone():
    with pytest.raises(InputError, match="'tt-graph' is a CUDA graph; device = 'cpu' must be cuda"):
        Settings(candidates=("tt-graph",))
    assert not set(GRAPHS) & set(Settings().candidates)
    settings = Settings(num_embeddings=5000, device="cuda", candidates=("tt-graph", "tt-fused-graph"))
    assert [works_of(name, settings.works) for name in GRAPHS] == [("forward", "step"), ("step",)]
    for make in PRESETS.values():
        assert all({"tt-graph"} <= set(s.candidates) for s in make(settings))


def test_capturing_needs_a_gpu():
    """It says so before anything runs."""
    case = next(Settings(num_embeddings=5000, batch_sizes=(8,)).cases())
    (module,) = Tables("cpu").of(case, ["tt-graph"]).values()
    before = [core.detach().clone() for core in module.cores]
    batches, upstream = [torch.arange(8) * 600], torch.randn(8, 16)
    with pytest.raises(InputError, match="device = 'cpu'; only what runs on a CUDA GPU can be a CUDA graph"):
        graph_task("step", module, case, batches, upstream)
    assert all(map(torch.equal, before, module.cores))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named(capsys):
    assert main(["bench", "tt", "--device", "cuda", "--rows", "100", "--candidates", "tt", "tt-graph"]) == 2
    assert "finds no CUDA GPU here" in capsys.readouterr().err


@pytest.mark.cuda
@pytest.mark.skipif(
    not (torch.cuda.is_available() and has_cuda_kernel("tt_embedding_bag")), reason="needs a GPU"
)
@pytest.mark.parametrize("name", ["tt-graph", "tt-fused-graph"])
def test_a_replayed_step_trains_as_a_call_does(name):
    case = next(Settings(num_embeddings=5000, batch_sizes=(64,), device="cuda").cases())
    upstream = torch.randn(64, 16, device="cuda")
    batches = [torch.randint(0, 5000, (64,), device="cuda") for _ in range(4)]
    graphed, plain = (Tables("cuda").of(case, [name])[name] for _ in range(2))
    replayed = graph_task("step", graphed, case, batches, upstream)
    eager = make_task("step", plain, case, batches, upstream)
    with torch.no_grad():  # the warm-ups before the capture trained it
        for mine, other in zip(graphed.core_tensors(), plain.core_tensors(), strict=True):
            other.copy_(mine)
    for _ in range(6):
        replayed.run()
        eager.run()
    torch.testing.assert_close(list(graphed.core_tensors()), list(plain.core_tensors()))


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
    for bad in (
        {"ranks": (0,)},
        {"zipf_exponent": 0.0},
        {"candidates": ("lut",)},
        {"ids": ("zip",)},
        {"block_ms": 0.0},
    ):
        with pytest.raises(InputError):
            Settings(**bad)
