"""DistributedDataParallel: two processes on halves of a batch are one process on the whole of it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

from recsys_opt import DLRM, TableConfig, TTEmbeddingBag
from recsys_opt.embeddings.hot_rows import CachedTTEmbeddingBag
from recsys_opt.errors import InputError
from recsys_opt.training.optimizers import ModelOptimizer, OptimizerConfig

ROWS = (7, 30, 3, 500)
TABLES = [
    TableConfig(f"t{i}", n, 4, representation="tt", options={"tt_ranks": 3}) if i in (1, 3)
    else TableConfig(f"t{i}", n, 4)
    for i, n in enumerate(ROWS)
]  # fmt: skip
BATCH, STEPS = 8, 3


def model() -> DLRM:
    torch.manual_seed(0)
    return DLRM(TABLES, dense_features=5, bottom_mlp=(8, 4), top_mlp=(6, 1), dtype=torch.float64)


def samples(step: int, first: int, last: int) -> tuple[Tensor, Tensor, Tensor]:
    """Samples [first, last) of a batch: dense features, values, offsets."""
    g = torch.Generator().manual_seed(step)
    counts = torch.randint(0, 4, (4, BATCH), generator=g).tolist()
    ids = [
        [torch.randint(0, n, (k,), generator=g) for k in row][first:last]
        for n, row in zip(ROWS, counts, strict=True)
    ]
    lengths = torch.tensor([len(bag) for row in ids for bag in row])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    dense = torch.randn(BATCH, 5, generator=g, dtype=torch.float64)[first:last]
    return dense, torch.cat([bag for row in ids for bag in row]), offsets


def train(ours: torch.nn.Module, algorithm: str, first: int, last: int) -> None:
    optimizer = ModelOptimizer(ours, OptimizerConfig(algorithm=algorithm, table_update="stored"))
    for step in range(STEPS):
        optimizer.zero_grad()
        ours(*samples(step, first, last)).sin().mean().backward()
        optimizer.step()


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    first, last = rank * BATCH // 2, (rank + 1) * BATCH // 2
    for algorithm in ("sgd", "adagrad"):
        together, alone = model(), model()
        train(DistributedDataParallel(together), algorithm, first, last)
        train(alone, algorithm, 0, BATCH)
        for (name, mine), right in zip(together.named_parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(mine.grad.to_dense(), right.grad.to_dense(), msg=f"gradient of {name}")
            torch.testing.assert_close(mine, right, msg=name)
    fused = model()
    ModelOptimizer(fused, OptimizerConfig(table_update="fused"))
    with pytest.raises(InputError, match="would drift apart"):
        fused(*samples(0, first, last))
    with torch.no_grad():
        fused(*samples(0, first, last))
    for table in fused.embeddings.tables.children():
        table.differs_by_process = True
    fused(*samples(0, first, last)).sum().backward()
    cached = CachedTTEmbeddingBag(30, 4, 3, cache_rows=4)
    with pytest.raises(InputError, match="held rows are chosen from the lookups of one process, but 2 train"):
        cached(torch.tensor([[1]]))
    cached.eval()(torch.tensor([[1]]))
    (folder / f"equal_{rank}").touch()
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path):
    torch.multiprocessing.spawn(work, (tmp_path,), nprocs=2)
    assert sorted(p.name for p in tmp_path.glob("equal_*")) == ["equal_0", "equal_1"]


def test_updates_in_the_backward_pass_are_refused_where_copies_would_drift_apart(monkeypatch):
    table = TTEmbeddingBag(30, 4, 3)
    table.refuse_lost_updates()
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    with pytest.raises(InputError, match=r"its copies in 2 processes would drift apart.*differs_by_process"):
        table.refuse_lost_updates()
    with torch.no_grad():
        table.refuse_lost_updates()
    table.differs_by_process = True
    table.refuse_lost_updates()
