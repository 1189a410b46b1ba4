"""Every CUDA op refuses tensors that are not all on one device, and names the tensor and both devices."""

import re
from typing import Any

import pytest
import torch

from tests.simt import ops
from tests.simt.build import schemas

TT: dict[str, Any] = {
    "indices": torch.tensor([0, 1]),
    "offsets": torch.tensor([0, 1, 2]),
    "cores": [torch.ones(2, 1, 1, 2), torch.ones(2, 2, 2, 1)],
    "cores_per_table": [2],
    "num_embeddings": [4],
    "pooling_modes": [0],
    "padding_idx": [-1],
    "per_sample_weights": torch.ones(2),
}
GRAD = {"grad": torch.ones(2, 2)}
LOOKUPS: dict[str, Any] = {"offsets": torch.tensor([0, 1, 2])}
BAG: dict[str, Any] = {"weights": [torch.ones(2, 3)], "slots": torch.zeros(2, dtype=torch.int32), **LOOKUPS}
CALLS: dict[str, dict[str, Any]] = {
    "tt_embedding_bag": TT,
    "tt_embedding_bag_backward": {**GRAD, **TT, "weights_grad": True},
    "tt_embedding_bag_backward_update": {
        **GRAD,
        **TT,
        "states": [torch.zeros(4), torch.zeros(8)],
        "weights_grad": False,
        "algorithm": 1,
        "hyperparameters": torch.ones(6, dtype=torch.float64),
    },
    "tt_prefix_bag": {
        "indices": torch.tensor([0, 1]),
        "offsets": torch.tensor([0, 1, 2]),
        "prefixes": [torch.ones(2, 1, 2, 1, 1)],
        "lasts": [torch.ones(2, 1, 2, 2, 1)],
        "num_embeddings": [4],
        "pooling_modes": [0],
        "padding_idx": [-1],
        "per_sample_weights": torch.ones(2),
        "include_last_offset": True,
    },
    "hot_rows_split": {
        "indices": torch.tensor([0, 1]),
        **LOOKUPS,
        "keys": [torch.tensor([1])],
        "directories": [torch.full((2,), -1, dtype=torch.int32)],
        "num_embeddings": [4],
        "padding_idx": [-1],
    },
    "hot_rows_directory_": {"directory": torch.zeros(2, dtype=torch.int32), "keys": torch.tensor([1])},
    "hot_rows_count_": {
        "hot_counts": [torch.zeros(1, dtype=torch.int32)],
        "counts": [torch.zeros(1, 4, dtype=torch.int32)],
        "candidates": [torch.zeros(0, dtype=torch.int64)],
        "indices": torch.tensor([0, 1]),
        "slots": torch.full((2,), -1, dtype=torch.int32),
        **LOOKUPS,
        "num_embeddings": [4],
        "stride": 1,
        "phase": 0,
    },
    "hot_rows_bag": {"base": torch.ones(2, 3), **BAG, "per_sample_weights": torch.ones(2), "mean": [0]},
    "hot_rows_bag_row_gradients": {
        "grad": torch.ones(2, 3),
        **BAG,
        "per_sample_weights": torch.ones(2),
        "mean": [0],
    },
    "hot_rows_bag_base_gradient": {"grad": torch.ones(2, 3), **BAG, "mean": [0]},
    "hot_rows_bag_factor_gradients": {"grad": torch.ones(2, 3), **BAG},
}
PLACES = [
    (op, name, i)
    for op, arguments in CALLS.items()
    for name, value in arguments.items()
    for i in range(len(value) if isinstance(value, list) else 1)
    if isinstance(value[0] if isinstance(value, list) else value, torch.Tensor)
]


def test_every_op_with_a_cuda_kernel_is_here():
    defined = set(re.findall(r"\b((?:tt|hot_rows)_\w+)\((?=Tensor)", schemas()))
    eager_on_the_cpu = {"tt_lookup", "tt_lookup_backward", "tt_lookup_update"}
    assert defined - eager_on_the_cpu == set(CALLS)


@pytest.mark.parametrize("op", CALLS)
def test_on_one_device_they_run(op):
    with ops.running():
        getattr(ops.library(), op)(**CALLS[op])


@pytest.mark.parametrize(("op", "name", "i"), PLACES)
def test_a_tensor_elsewhere_is_refused(op, name, i):
    arguments = dict(CALLS[op])
    value = arguments[name]
    if isinstance(value, list):
        arguments[name] = [t.to("meta") if k == i else t for k, t in enumerate(value)]
        name = f"{name}[{i}]"
    else:
        arguments[name] = value.to("meta")
    with pytest.raises(RuntimeError, match="all tensors of a call must be on one device") as refused:
        getattr(ops.library(), op)(**arguments)
    said = str(refused.value).splitlines()[0]
    named = re.search(rf"{op}: (\S+) is on (cpu|meta), (\S+) on (cpu|meta);", said)
    assert named is not None, said
    where = {named[1]: named[2], named[3]: named[4]}
    # Where the first of all is elsewhere, any other is named beside it.
    assert where[name] == "meta"
    assert sorted(where.values()) == ["cpu", "meta"]
