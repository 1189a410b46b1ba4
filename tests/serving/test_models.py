import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys_opt import ops
from recsys_opt.data.batches import BatchStream
from recsys_opt.data.dataset import Dataset
from recsys_opt.errors import InputError
from recsys_opt.models.dlrm import DLRM, vector_order
from recsys_opt.models.saved import load_model
from recsys_opt.run_folder import RunFolder
from recsys_opt.serving.dense_net import PackedNet, PlainNet, interaction, plain_interaction
from recsys_opt.serving.frozen_tables import StackedTables, freeze_tables
from recsys_opt.serving.models import ServingOptions, load_frozen, representation_of, weights_fingerprint
from recsys_opt.tables import TableConfig
from recsys_opt.tensor_files import write_tensors
from recsys_opt.training.config import HashingConfig
from tests.serving.runs import make_run

SIZES = (1, 2, 47, 48, 600)


def requests_of(run, sizes=SIZES):
    """Requests of test rows, as (dense, ids) each."""
    dataset = Dataset(run.parent / "data")
    start, stop = dataset.split("test")
    stream = BatchStream(dataset, start, stop, 1)
    for size in sizes:
        batch = stream.read(start, start + size)
        yield batch.dense.numpy(), batch.values.view(-1, size).numpy()


def trained_probabilities(model, dense, ids):
    with torch.inference_mode():
        values = torch.from_numpy(ids).reshape(-1)
        return model(torch.from_numpy(dense), values).sigmoid().numpy()


@pytest.mark.parametrize("kind", ["table", "tt"])
@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({}, 1e-6),
        ({"tensor_trains": "cores"}, 1e-6),
        ({"tensor_trains": "dense"}, 1e-6),
        ({"tensor_trains": "dense", "tables": "fp16"}, 2e-3),
        ({"tables": "fp16"}, 2e-3),
        ({"tables": "bf16"}, 1e-2),
        ({"products": "bf16"}, 2e-2),
    ],
)
def test_equals_the_trained_model(request, kind, options, tolerance):
    run = request.getfixturevalue(f"{kind}_run")
    model, frozen = load_model(run), load_frozen(run, ServingOptions.from_json(options))
    assert frozen.representation == kind
    frozen.warm_up((1, 600))
    for dense, ids in requests_of(run):
        found = frozen.predict(dense, ids)
        assert found.dtype == np.float32
        assert found.shape == (len(dense),)
        np.testing.assert_allclose(found, trained_probabilities(model, dense, ids), atol=tolerance)
        np.testing.assert_array_equal(frozen.predict(dense, ids.astype(np.int64), checked=True), found)


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [("dhe", {}, 1e-6), ("hybrid", {}, 1e-6), ("select", {}, 1e-6), ("select", {"tables": "fp16"}, 2e-3)],
)
def test_hashed_tables_equal_the_trained_models(table_run, kind, options, tolerance):
    folder = table_run.parent
    deep = HashingConfig(dhe_hashes=16, dhe_widths=(8,), dhe_largest=2)
    run = folder / f"{kind}_run"
    if not run.exists():
        make_run(folder, run.name, {"representation": kind, "hashing": deep})
    model, frozen = load_model(run), load_frozen(run, ServingOptions.from_json(options))
    assert (frozen.representation, frozen.request.embedding_dim) == (kind, 16)
    for dense, ids in requests_of(run):
        np.testing.assert_allclose(
            frozen.predict(dense, ids), trained_probabilities(model, dense, ids), atol=tolerance
        )


def test_tensor_trains_with_held_rows(table_run):
    """Such a table holds what no file has, and is built before its weights are read."""
    folder = table_run.parent
    own = {"tt_threshold": 500, "tt_rank": 4, "tt_cache_rows": 20, "tt_cache_refresh_every": 5}
    run = make_run(folder, "tt_cached", {f"compression.{name}": value for name, value in own.items()})
    model, frozen = load_model(run), load_frozen(run)
    assert frozen.representation == "tt"
    for dense, ids in requests_of(run):
        expected = trained_probabilities(model, dense, ids)
        np.testing.assert_allclose(frozen.predict(dense, ids), expected, atol=1e-6)


@pytest.mark.parametrize("halves", [False, True])
def test_a_hybrid_that_is_too_large_to_be_stored(halves):
    """Parts are looked up in groups of their own where each is a vector, together where they are halves."""
    own = {"hashes": 16, "widths": [8], "dhe_dim": 8 if halves else 16}
    columns = 16 if halves else 32
    tables = [
        TableConfig("small", 50, columns, representation="hybrid", options=own),
        TableConfig("large", 2_200_000, columns, representation="hybrid", options=own),
        TableConfig("rows", 70, 16),
        TableConfig("large2", 2_200_001, columns, representation="hybrid", options=own),
    ]
    model = DLRM(tables, dense_features=3, bottom_mlp=(8, 16), top_mlp=(8, 1)).eval().requires_grad_(False)
    frozen = freeze_tables(model.embeddings, model.dim, "prefix", None, torch.device("cpu"))
    kinds = sorted(type(group).__name__ for group, _ in frozen.groups)
    assert kinds == (["MadeTables", "RowTables"] if halves else ["MadeTables", "RowTables", "RowTables"])
    net = PackedNet(model, vector_order(frozen.order, frozen.columns, model.dim))
    dense = torch.randn(60, 3)
    ids = torch.stack([torch.randint(t.num_embeddings, (60,)) for t in tables])
    expected = model(dense, ids.reshape(-1)).sigmoid()
    torch.testing.assert_close(net(dense, frozen(ids)), expected, atol=1e-6, rtol=1e-5)


def test_what_it_is(table_run, tt_run):
    table, tt = load_frozen(table_run), load_frozen(tt_run)
    assert table.request.difference(tt.request) is None
    assert table.request.cardinalities == (4, 60, 700, 5000)
    assert table.request.features == ("C1", "C2", "C3", "C4")
    assert (table.request.dense_features, table.request.embedding_dim) == (3, 16)
    assert table.fingerprint != tt.fingerprint
    weights = sum(p.nbytes for p in load_model(table_run).parameters())
    assert table.bytes == weights
    half = load_frozen(table_run, ServingOptions(tables="fp16"))
    assert half.bytes == weights - (4 + 60 + 700 + 5000) * 16 * 2
    assert load_frozen(tt_run, ServingOptions(tensor_trains="cores")).bytes < tt.bytes < weights


def test_tables_are_mapped_not_read(table_run):
    frozen = load_frozen(table_run)
    path = RunFolder(table_run).checkpoint_folder() / "model.safetensors"
    maps = Path("/proc/self/maps").read_text()
    assert str(path) in maps
    assert frozen.predict(np.zeros((1, 3), np.float32), np.zeros((4, 1), np.int32)).shape == (1,)


def test_converted_tables_are_kept_and_of_the_weights(tmp_path, table_run):
    run = tmp_path / "run"
    shutil.copytree(table_run, run, symlinks=True, ignore=shutil.ignore_patterns("served_tables_*"))
    half = ServingOptions(tables="fp16")
    (dense, ids), *_ = requests_of(table_run, (64,))
    first = load_frozen(run, half).predict(dense, ids)
    (kept,) = RunFolder(run).checkpoint_folder().glob("served_tables_*")
    written = kept.stat().st_mtime_ns
    np.testing.assert_array_equal(load_frozen(run, half).predict(dense, ids), first)
    assert kept.stat().st_mtime_ns == written
    assert not list(kept.parent.glob("*partial*"))
    path = kept.parent / "model.safetensors"
    before = weights_fingerprint(path)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1  # a bit of the last weight
    path.write_bytes(data)
    assert weights_fingerprint(path) != before
    load_frozen(run, half)
    assert len(list(kept.parent.glob("served_tables_*"))) == 2


def test_a_large_tensor_is_hashed_in_blocks(tmp_path):
    large = torch.arange(6 << 20, dtype=torch.float32)
    hashes = set()
    for at in (None, 0, 1 << 22, -1):
        other = large.clone()
        if at is not None:
            other[at] = -1.0
        write_tensors(tmp_path / "x.safetensors", {"w": other})
        hashes.add(weights_fingerprint(tmp_path / "x.safetensors"))
    assert len(hashes) >= 3  # the ends are always read


def test_the_wrong_run(tmp_path, table_run, tt_run):
    with pytest.raises(InputError, match="has no checkpoint; train it first"):
        load_frozen(tmp_path)
    found = load_frozen(tt_run).fingerprint
    with pytest.raises(InputError, match=f"are not those that were profiled .*, not {found}"):
        load_frozen(table_run, fingerprint=found)
    assert load_frozen(tt_run, fingerprint=found).fingerprint == found
    with pytest.raises(InputError, match="tables = 'int8'; it must be one of"):
        ServingOptions.from_json({"tables": "int8"})


def test_a_processor_or_a_torch_without_the_products(table_run, monkeypatch):
    """The modules serve then, in fp32."""
    (request,) = requests_of(table_run, (100,))
    packed = load_frozen(table_run).predict(*request)
    monkeypatch.setattr("recsys_opt.serving.models.has_packed_products", lambda dtype: False)
    np.testing.assert_allclose(load_frozen(table_run).predict(*request), packed, atol=1e-6)
    with pytest.raises(InputError, match=r"products in torch\.bfloat16 need oneDNN and a processor"):
        load_frozen(table_run, ServingOptions(products="bf16"))


def test_a_checkpoint_of_another_model(tmp_path, table_run, tt_run):
    run = tmp_path / "run"
    shutil.copytree(table_run, run, symlinks=True)
    ours, theirs = (RunFolder(r).checkpoint_folder() / "model.safetensors" for r in (run, tt_run))
    shutil.copy(theirs, ours)
    with pytest.raises(InputError, match="does not fit the model that its checkpoint describes"):
        load_frozen(run)


def test_bad_requests(table_run):
    frozen = load_frozen(table_run)
    with pytest.raises(InputError, match="is outside the 60 rows of feature C2"):
        frozen.predict(
            np.zeros((2, 3), np.float32), np.full((4, 2), 60, np.int32).clip(0, [[3], [60], [9], [9]])
        )
    with pytest.raises(InputError, match="must be a number"):
        frozen.predict(np.full((2, 3), np.nan, np.float32), np.zeros((4, 2), np.int32))


@pytest.mark.parametrize(
    ("kinds", "name"),
    [
        (["dense", "dense"], "table"),
        (["dense", "tiered"], "table"),
        (["tt", "dense"], "tt"),
        (["tt", "tt_cached"], "tt"),
        (["dhe", "dhe"], "dhe"),
        (["dhe", "dense"], "select"),
        (["dhe", "tt"], "select"),
        (["hybrid", "hybrid"], "hybrid"),
    ],
)
def test_names_of_representations(kinds, name):
    tables = [TableConfig(f"C{k}", 10, 4, representation=kind) for k, kind in enumerate(kinds)]
    assert representation_of(tables) == name


def test_plain_and_packed_products_agree(table_run):
    model = load_model(table_run).requires_grad_(False)
    order = [2, 0, 1, 3]
    for batch in SIZES:
        dense, rows = torch.randn(batch, 3), torch.randn(batch, 64)
        groups = [rows[:, :32], rows[:, 32:]]
        plain, packed = PlainNet(model, order)(dense, groups), PackedNet(model, order)(dense, groups)
        torch.testing.assert_close(packed, plain, atol=1e-6, rtol=1e-5)


def test_interaction_without_a_kernel():
    order = [1, 2, 0]
    dense, groups = torch.randn(5, 8), [torch.randn(5, 16), torch.randn(5, 8)]
    plain = plain_interaction(order, dense.device)(dense, groups)
    torch.testing.assert_close(plain, ops.dot_interaction(dense, groups, order))
    assert torch.equal(
        interaction(order, dense.device)(dense, groups), ops.dot_interaction(dense, groups, order)
    )


def test_stacked_tables():
    tables = [torch.randn(n, 4) for n in (3, 9, 5)]
    stacked = StackedTables(torch.cat(tables), [0, 3, 12])
    ids = torch.stack([torch.randint(n, (6,)) for n in (3, 9, 5)])
    wanted = torch.cat([t[i] for t, i in zip(tables, ids, strict=True)], dim=1)
    assert torch.equal(stacked(ids), wanted)
