"""A plan on DistributedModelParallel, in 2 and 4 processes, against unsharded tables in one."""

import dataclasses
import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("torchrec")

from safetensors.torch import load_file
from torch import distributed, nn
from torchrec.datasets.utils import Batch
from torchrec.distributed import comm
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.optim import RowWiseAdagrad
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.optimizers import in_backward_optimizer_filter

from recsys_opt.cli import plan_export
from recsys_opt.data.access_statistics import AccessStatistics, TableStatistics
from recsys_opt.errors import InputError, RecsysOptError
from recsys_opt.integrations.plan_export import export_plan
from recsys_opt.integrations.torchrec import (
    PlannedEmbeddingBagCollection,
    PlanRemap,
    TierTablesSharder,
    load_tables,
    load_weights,
    move_tables,
    save_tables,
    sharding_plan,
    tier_parameters,
)
from recsys_opt.integrations.torchrec.sharding import ShardedTierTables
from recsys_opt.plan import Plan
from tests.integrations.torchrec.plans import (
    PER_NODE,
    Reference,
    batch,
    loss,
    plan_of_all_kinds,
    random_plan,
    rankings_of,
    unsharded,
)

RATE, EPS = 0.3, 1e-8


class Sharded:
    """A plan's tables on this process's device, as a user's script makes them."""

    def __init__(
        self,
        plan: Plan,
        algorithm: str,
        holder: Callable[[nn.Module], nn.Module] | None = None,
        is_weighted: bool = False,
        seed: int = 1,
    ) -> None:
        rankings = rankings_of(plan, seed)
        self.plan, self.algorithm = plan, algorithm
        self.remap = PlanRemap(plan, rankings)
        tables = PlannedEmbeddingBagCollection(
            plan, rankings, is_weighted=is_weighted, device=torch.device("meta")
        )
        tables = tables if holder is None else holder(tables)
        kind, options = (torch.optim.SGD, {}) if algorithm == "sgd" else (RowWiseAdagrad, {"eps": EPS})
        apply_optimizer_in_backward(kind, tier_parameters(tables), {"lr": RATE, **options})
        self.model = DistributedModelParallel(
            tables, plan=sharding_plan(tables), sharders=[TierTablesSharder()]
        )
        dense = dict(in_backward_optimizer_filter(self.model.named_parameters()))
        assert [name.split(".")[-2] for name in dense] == [t.name for t in plan.tables if t.replicated]
        # An optimizer wants a parameter; a plan without replicated tables has none for it.
        self.optimizer = torch.optim.SGD([*dense.values(), nn.Parameter(torch.zeros(1))], lr=RATE)

    def forward(self, part) -> torch.Tensor:
        return self.model(self.remap(part)).values()

    def step(self, part) -> None:
        self.optimizer.zero_grad()
        loss(self.forward(part)).backward()
        self.optimizer.step()


def work(rank: int, world: int, folder: Path, port: int) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(PER_NODE))
    os.environ.update(LOCAL_RANK=str(rank % PER_NODE), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=world)
    plan, other = plan_of_all_kinds(world), plan_of_all_kinds(world, other=True)
    for algorithm in ("sgd", "adagrad"):
        reference = Reference(plan, algorithm, RATE, EPS)
        ours = Sharded(plan, algorithm)
        load_weights(ours.model, reference.tables.state_dict())
        for step in range(3):
            parts = batch(plan, step)
            torch.testing.assert_close(ours.forward(parts[rank]), reference.forward(parts)[rank])
            ours.step(parts[rank])
            reference.step(parts)
        file = folder / f"{algorithm}.safetensors"
        save_tables(ours.model, file)
        saved = load_file(file)
        for name, weight in reference.tables.state_dict().items():
            torch.testing.assert_close(saved[name], weight, msg=lambda m, name=name: f"{name}: {m}")
        goes_on_after_a_reload(reference, plan, file, rank)
        another_plan_reads_it(other, algorithm, file, rank, parts, reference.forward(parts)[rank])
        rows_go_to_another_plans_model(ours, other, file, parts[rank], folder)
        if algorithm == "sgd":
            exchanges_one_output_of_a_piece(ours, plan, parts[rank])
            torchrecs_pipeline_trains_it(plan, rank)
        else:
            states_are_in_the_order_of_ids(reference, saved)
            bad_input_is_named(ours, other, file, rank, folder)
    for seed in range(8):
        any_plan_trains_as_unsharded_tables_do(random_plan(seed, world), ("sgd", "adagrad")[seed % 2], rank)
    weights_multiply_rows(plan, rank)
    distributed.destroy_process_group()
    the_script_of_the_help_runs(plan, folder)
    (folder / f"equal_{rank}").touch()


def goes_on_after_a_reload(reference: Reference, plan: Plan, file: Path, rank: int) -> None:
    """A new model with the weights and states of the file trains on as if nothing had been."""
    again = Sharded(plan, reference.algorithm)
    load_tables(again.model, file)
    parts = batch(plan, 5)
    before = {name: w.clone() for name, w in reference.tables.state_dict().items()}
    squares = {name: s.clone() for name, s in reference.squares.items()}
    again.step(parts[rank])
    reference.step(parts)
    torch.testing.assert_close(again.forward(parts[rank]), reference.forward(parts)[rank])
    reference.tables.load_state_dict(before)
    reference.squares = squares


def another_plan_reads_it(
    plan: Plan, algorithm: str, file: Path, rank: int, parts, wanted: torch.Tensor
) -> None:
    there = Sharded(plan, algorithm)
    if algorithm == "adagrad":
        with pytest.raises(
            InputError, match=r"lacks .*everywhere\.row_momentum1; .* replicated there: states="
        ):
            load_tables(there.model, file)
    load_tables(there.model, file, states=algorithm == "sgd")
    torch.testing.assert_close(there.forward(parts[rank]), wanted)
    if algorithm == "adagrad":
        states_go_over_to_another_plan(plan, file)


def states_go_over_to_another_plan(plan: Plan, file: Path) -> None:
    """Every column shard gets the mean of those that there were."""
    kept = Plan(tuple(t for t in plan.tables if t.name in ("rows", "columns", "shared")), plan.num_devices, 1)
    there = Sharded(kept, "adagrad")
    load_tables(there.model, file)
    save_tables(there.model, file.with_name("again.safetensors"))
    before, after = load_file(file), load_file(file.with_name("again.safetensors"))
    for t in kept.tables:
        name = f"embedding_bags.{t.name}.row_momentum1"
        mean = before[name].reshape(t.num_embeddings, -1).mean(1)
        wanted = mean if t.column_shards == 1 else mean[:, None].expand(-1, t.column_shards)
        torch.testing.assert_close(after[name], wanted)
        assert mean.any()


def rows_go_to_another_plans_model(ours: Sharded, plan: Plan, file: Path, part, folder: Path) -> None:
    """As through the file: there and back again, with every state but those of replicas, which have none."""
    algorithm = ours.algorithm
    there = Sharded(plan, algorithm, seed=2)  # of other statistics, too
    replicas = {t.name for p in (plan, ours.plan) for t in p.tables if t.replicated}
    if algorithm == "adagrad":
        with pytest.raises(InputError, match=r"no .*everywhere\.row_momentum1: .*anew={'everywhere'}"):
            move_tables(ours.model, there.model)
    for _ in range(2):  # what was there before does not matter
        moved = move_tables(ours.model, there.model, anew=replicas)
    assert moved.rows == sum(t.num_embeddings for t in plan.tables)
    assert moved.bytes > 0
    torch.testing.assert_close(there.forward(part), ours.forward(part))
    back = Sharded(ours.plan, algorithm)
    move_tables(there.model, back.model, anew=replicas)
    same = Sharded(ours.plan, algorithm)
    assert move_tables(ours.model, same.model).bytes == 0
    before = load_file(file)
    for name, model in (("there", there), ("back", back), ("same", same)):
        save_tables(model.model, folder / f"{name}.safetensors")
        found = load_file(folder / f"{name}.safetensors")
        for key, tensor in before.items():
            t = plan.table(key.split(".")[1])
            if key.endswith("weight") or name == "same":
                assert torch.equal(found[key], tensor), (name, key)
            elif t.name not in replicas:
                cut = tensor.reshape(t.num_embeddings, -1).double()
                halves = found[key].reshape(t.num_embeddings, -1).double()
                # Means over all columns stay; over a shard's, where shards are as they were.
                torch.testing.assert_close(halves.mean(1), cut.mean(1))
                if halves.shape == cut.shape and t.column_shards == ours.plan.table(t.name).column_shards:
                    torch.testing.assert_close(halves, cut)
    with pytest.raises(InputError, match=r"table whole is \(40, 8\) in one plan and None in the other"):
        fewer = dataclasses.replace(plan, tables=plan.tables[1:])
        move_tables(ours.model, Sharded(fewer, algorithm).model)


def any_plan_trains_as_unsharded_tables_do(plan: Plan, algorithm: str, rank: int) -> None:
    reference, ours = Reference(plan, algorithm, RATE, EPS), Sharded(plan, algorithm)
    load_weights(ours.model, reference.tables.state_dict())
    for step in range(3):
        parts = batch(plan, step)
        torch.testing.assert_close(ours.forward(parts[rank]), reference.forward(parts)[rank])
        ours.step(parts[rank])
        reference.step(parts)


def weights_multiply_rows(plan: Plan, rank: int) -> None:
    sums = dataclasses.replace(plan, tables=tuple(dataclasses.replace(t, pooling="sum") for t in plan.tables))
    ours, theirs = Sharded(sums, "sgd", is_weighted=True), unsharded(sums, weighted=True)
    load_weights(ours.model, theirs.state_dict())
    part = batch(sums, 1, weighted=True)[rank]
    torch.testing.assert_close(ours.forward(part), theirs(part).values())


class Holder(nn.Module):
    """A model whose loss TorchRec's pipeline takes."""

    def __init__(self, tables: nn.Module) -> None:
        super().__init__()
        self.tables = tables

    def forward(self, given: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        pooled = self.tables(given.sparse_features)
        return loss(pooled.values()), pooled.values()


def torchrecs_pipeline_trains_it(plan: Plan, rank: int) -> None:
    """It exchanges the ids of the next batch while this one is trained, which changes no result."""
    reference = Reference(plan, "sgd", RATE, EPS)
    ours = Sharded(plan, "sgd", Holder)
    load_weights(ours.model, {f"tables.{name}": w for name, w in reference.tables.state_dict().items()})
    steps = [batch(plan, step) for step in range(3)]
    nothing = torch.empty(0)
    given = iter([Batch(nothing, ours.remap(parts[rank]), nothing) for parts in steps])
    pipeline = TrainPipelineSparseDist(ours.model, ours.optimizer, torch.device("cpu"))
    for parts in steps:
        torch.testing.assert_close(pipeline.progress(given), reference.forward(parts)[rank])
        reference.step(parts)
    assert [type(module) for module in pipeline._pipelined_modules] == [ShardedTierTables]


def exchanges_one_output_of_a_piece(ours: Sharded, plan: Plan, part) -> None:
    """The all-to-all of pooled rows sends a piece's columns once for each sample, not once for each tier."""
    sent = []
    plain = distributed.all_to_all_single

    def counted(output, input, *args, **options):
        if input.is_floating_point():
            sent.append(input.numel())
        return plain(output, input, *args, **options)

    distributed.all_to_all_single = counted
    try:
        ours.forward(part)
    finally:
        distributed.all_to_all_single = plain
    rank = distributed.get_rank()
    alone = in_node = 0
    for t in plan.tables:
        columns = sum(p.width for p in t.pieces() if p.device == rank) * len(t.feature_names or "1")
        if t.name in ("node_0", "node_1", "both"):
            in_node += columns
        elif not t.replicated:
            alone += columns
    # What the node has summed leaves it once, not once for each of its devices.
    assert sent == [plan.batch_size * alone] + [plan.batch_size * in_node // PER_NODE] * (
        plan.num_devices > 2
    )


def states_are_in_the_order_of_ids(reference: Reference, saved: dict[str, torch.Tensor]) -> None:
    for name, squares in reference.squares.items():
        state = saved[f"embedding_bags.{name}.row_momentum1"]
        torch.testing.assert_close(state.reshape(squares.shape), squares)
        assert squares.count_nonzero()


def bad_input_is_named(ours: Sharded, other: Plan, file: Path, rank: int, folder: Path) -> None:
    with pytest.raises(InputError, match=r"does not have the keys of the plan's tier tables; remap it first"):
        ours.model(batch(other, 0)[rank])
    with pytest.raises(InputError, match="not sharded yet; call this after DistributedModelParallel"):
        load_weights(PlannedEmbeddingBagCollection(other, {}, device=torch.device("meta")), {})
    with pytest.raises(InputError, match=r"the weights lack embedding_bags\.whole\.weight"):
        load_weights(ours.model, {})
    with pytest.raises(InputError, match=r"whole\.weight is .*\[3, 8\]; the plan has .*\[40, 8\]"):
        load_weights(ours.model, {"embedding_bags.whole.weight": torch.zeros(3, 8)})
    with pytest.raises(InputError, match=r"row_momentum1; a model of other tables or with another optimizer"):
        load_tables(ours.model, folder / "sgd.safetensors")
    with pytest.raises(RecsysOptError, match=r"sgd\.safetensors"):  # a file, no folder
        save_tables(ours.model, folder / "sgd.safetensors" / "t.safetensors")
    if other.num_devices == 4:
        nodes_of_another_size_are_refused(other)
    wrong = dataclasses.replace(other, num_devices=2 * other.num_devices)
    with pytest.raises(InputError, match=r"the plan is for \d devices, but \d processes run"):
        sharding_plan(PlannedEmbeddingBagCollection(wrong, {}, device=torch.device("meta")))


def nodes_of_another_size_are_refused(plan: Plan) -> None:
    groups = comm._INTRA_PG, comm._CROSS_PG
    comm._INTRA_PG = comm._CROSS_PG = None
    os.environ["LOCAL_WORLD_SIZE"] = "4"
    with pytest.raises(InputError, match=r"has 2 devices in a node, but 4 processes run in each"):
        Sharded(plan, "sgd")
    os.environ["LOCAL_WORLD_SIZE"] = str(PER_NODE)
    comm._INTRA_PG, comm._CROSS_PG = groups


def the_script_of_the_help_runs(plan: Plan, folder: Path) -> None:
    """As it stands in `recsys-opt plan export --help`, in the environment that torchrun gives it."""
    os.chdir(folder)
    before = {name: bag.weight.detach() for name, bag in unsharded(plan).embedding_bags.items()}
    rank = int(os.environ["RANK"])
    comm._INTRA_PG = comm._CROSS_PG = None  # of the process group that was
    exec(plan_export.SCRIPT, {"batches": lambda: [batch(plan, step)[rank] for step in range(2)]})
    distributed.destroy_process_group()
    after = load_file(folder / "tables.safetensors")
    assert {name: w.shape for name, w in before.items()} == {
        name: after[f"embedding_bags.{name}.weight"].shape for name in before
    }
    assert all(after[f"embedding_bags.{t.name}.row_momentum1"].any() for t in plan.tables if not t.replicated)


def export_for(plan: Plan, folder: Path) -> None:
    """The plan and the statistics that it says it is from."""
    g = np.random.default_rng(0)
    found = AccessStatistics.of(
        [
            TableStatistics.from_ids(t.name, t.num_embeddings, g.zipf(1.2, 90) % t.num_embeddings)
            for t in plan.tables
        ]
    )
    found.save(folder / "stats.npz")
    said = {"statistics": {"path": str(folder / "stats.npz"), "sha256": found.sha256}}
    export_plan(dataclasses.replace(plan, inputs=said), folder / "plan.torchrec.json", "torchrec")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_a_plan_trains_as_unsharded_tables_do(world: int, tmp_path: Path):
    # One process imports torchrec, the others are its forks: importing takes longer than the test.
    multiprocessing.set_forkserver_preload([__name__])
    export_for(plan_of_all_kinds(world), tmp_path)
    port = free_port()
    torch.multiprocessing.start_processes(
        work, (world, tmp_path, port), nprocs=world, start_method="forkserver"
    )
    assert len(list(tmp_path.glob("equal_*"))) == world
