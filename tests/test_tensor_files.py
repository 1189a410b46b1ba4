import itertools
import multiprocessing
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from recsys_opt.errors import InputError
from recsys_opt.files import atomic_path
from recsys_opt.tensor_files import TensorWriter, map_tensors, read_into, read_tensors, write_tensors

TYPES = [
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]


@settings(max_examples=30)
@given(
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=3), max_size=4),
    dtype=st.sampled_from(TYPES),
    seed=st.integers(0, 99),
)
def test_files_are_safetensors(tmp_path_factory, shapes, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    tensors = {f"t.{i}": torch.randint(0, 2, s, generator=generator).to(dtype) for i, s in enumerate(shapes)}
    path = tmp_path_factory.mktemp("t") / "a.safetensors"
    write_tensors(path, tensors)
    rows = tmp_path_factory.mktemp("t") / "b.safetensors"
    kinds = {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()}
    with TensorWriter(rows, kinds, metadata={"a": "b"}) as writer:
        for tensor in tensors.values():
            for row in tensor if tensor.dim() else [tensor]:
                writer.write(row)
    for found in (load_file(path), read_tensors(path), map_tensors(path), load_file(rows), map_tensors(rows)):
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor)


def test_a_mapped_file_does_not_change(tmp_path):
    path = tmp_path / "a"
    write_tensors(path, {"small": torch.ones(3, dtype=torch.uint8), "x": torch.arange(4.0)})
    mapped = map_tensors(path)
    mapped["x"] += 1
    assert mapped["x"].tolist() == [1.0, 2.0, 3.0, 4.0]
    assert read_tensors(path)["x"].tolist() == [0.0, 1.0, 2.0, 3.0]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="is damaged"):
        map_tensors(path)


def test_strided_tensors_are_written_in_order_of_rows(tmp_path):
    tensor = torch.arange(12.0).view(3, 4).T
    write_tensors(tmp_path / "a", {"x": tensor})
    assert torch.equal(read_tensors(tmp_path / "a")["x"], tensor)


def test_reading_into_a_model_refuses_what_does_not_fit(tmp_path):
    path = tmp_path / "a"
    write_tensors(path, {"x": torch.ones(3), "y": torch.zeros(2)})
    x, y = torch.zeros(3), torch.ones(2)
    read_into(path, {"x": x, "y": y})
    assert torch.equal(x, torch.ones(3))
    assert torch.equal(y, torch.zeros(2))
    with pytest.raises(InputError, match=r"missing \['z'\], extra \['y'\]"):
        read_into(path, {"x": x, "z": y})
    with pytest.raises(InputError, match=r"x is torch.float32 \[3\]; the model has torch.float64 \[3\]"):
        read_into(path, {"x": x.double(), "y": y})
    with pytest.raises(InputError, match="does not exist"):
        read_tensors(tmp_path / "b")
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(InputError, match="is damaged"):
        read_tensors(path)
    with pytest.raises(InputError, match=r"type torch\.complex64"):
        write_tensors(path, {"x": torch.zeros(1, dtype=torch.complex64)})


def _write_for_ever(path: Path, first: int) -> None:
    """One file after the other in the place of the last, each of one number."""
    for number in itertools.count(first):
        kinds = {name: (torch.int64, (3000, 20)) for name in ("weight", "state")}
        with atomic_path(path) as temporary, TensorWriter(temporary, kinds) as writer:
            for _ in range(2 * 30):
                writer.write(torch.full((100, 20), number))


def test_a_kill_leaves_the_old_file_or_the_new(tmp_path):
    """As save_tables writes a plan's tables: a migration by file is killed at any moment."""
    path, rng = tmp_path / "tables.safetensors", np.random.default_rng(0)
    for first in range(0, 8_000_000, 1_000_000):
        before = path.stat().st_mtime_ns if path.exists() else None
        process = multiprocessing.get_context("fork").Process(target=_write_for_ever, args=(path, first))
        process.start()
        while not path.exists() or path.stat().st_mtime_ns == before:
            assert process.is_alive()
            time.sleep(0.001)
        time.sleep(rng.uniform(0.0, 0.05))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        tensors = load_file(path)
        numbers = torch.cat([tensors["weight"], tensors["state"]]).unique()
        assert len(numbers) == 1
        assert first <= int(numbers) < first + 1_000_000
