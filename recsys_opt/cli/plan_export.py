"""`recsys-opt plan export`: a plan for TorchRec, or piece by piece for other programs."""

from __future__ import annotations

import argparse

from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.values import output_file
from recsys_opt.integrations.plan_export import FORMATS, export_plan
from recsys_opt.plan import Plan

SCRIPT = """import os
import torch
from torchrec.distributed import DistributedModelParallel
from torchrec.optim import RowWiseAdagrad
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from recsys_opt.integrations import torchrec as planned

torch.distributed.init_process_group()
device = torch.device(f"cuda:{os.environ['LOCAL_RANK']}" if torch.cuda.is_available() else "cpu")
tables, remap = planned.load_plan("plan.torchrec.json")
# Replicated tables have plain gradients: give them to the optimizer of the dense parameters.
apply_optimizer_in_backward(RowWiseAdagrad, planned.tier_parameters(tables), {"lr": 0.02})
model = DistributedModelParallel(
    tables,  # or a model that holds them in place of its collection
    device=device,
    plan=planned.sharding_plan(tables, device),
    sharders=[planned.TierTablesSharder()],
)
for features in batches():  # KeyedJaggedTensors with the ids as they are in the data
    pooled = model(remap(features).to(device))
    pooled.values().square().mean().backward()
planned.save_tables(model, "tables.safetensors")"""

EXAMPLE = """recsys-opt plan export torchrec plan.json --out plan.torchrec.json

then, in a script of your own, started with torchrun as many times as the plan has devices:
  """ + SCRIPT.replace("\n", "\n  ")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the form, the plan and where to write."""
    parser.add_argument(
        "form",
        choices=sorted(FORMATS),
        metavar="FORM",
        help="torchrec: hot and cold tables, a ShardingPlan's content and how ids are remapped, for "
        "recsys_opt.integrations.torchrec.load_plan; json: one entry for each piece",
    )
    parser.add_argument("plan", metavar="PLAN", help="plan.json")
    parser.add_argument("--out", type=output_file, required=True, metavar="FILE", help="the file to write")
    parser.add_argument(
        "--stats",
        metavar="NPZ",
        help="the statistics that the plan was made from (default: where they were then); the export refers "
        "to them, for they rank the rows",
    )


def run(args: argparse.Namespace) -> Outcome:
    """Writes the file."""
    plan = Plan.load(args.plan)
    export_plan(plan, args.out, args.form, args.stats)
    pieces = sum(1 for table in plan.tables for _ in table.pieces())
    return Outcome(
        f"written: {args.out} ({len(plan.tables)} tables in {pieces} pieces on {plan.num_devices} devices)",
        {"export": str(args.out), "form": args.form, "tables": len(plan.tables), "pieces": pieces},
    )
