"""`recsys-opt bench`: the benchmarks, one module each."""

from __future__ import annotations

import argparse

from recsys_opt.cli.subverbs import add_subverbs

EXAMPLE = "recsys-opt bench train --batch-size 2048"

SUBVERBS: dict[str, tuple[str, str]] = {
    "prepare": ("recsys_opt.cli.bench_prepare", "measure data prepare, beside pandas and polars"),
    "train": (
        "recsys_opt.cli.bench_train",
        "time a training step with dense tables of three makes and with tensor trains",
    ),
    "tt": ("recsys_opt.cli.bench_tt", "time a tensor-train table beside dense ones"),
    "budget-law": (
        "recsys_opt.cli.bench_budget_law",
        "how many rows a tensor train holds, fitted and by the law",
    ),
    "order": ("recsys_opt.cli.bench_order", "what the order of ids does to tensor trains' work"),
    "tt-fit": ("recsys_opt.cli.bench_tt_fit", "time, memory and error of fitting tensor trains to tables"),
    "tt-freeze": ("recsys_opt.cli.bench_tt_freeze", "bytes, error and time of the serving levels"),
    "convert": ("recsys_opt.cli.bench_convert", "AUC of a trained model at less rank, without training"),
    "tt-cache": ("recsys_opt.cli.bench_tt_cache", "when holding frequent rows of a tensor train pays"),
    "dhe": (
        "recsys_opt.cli.bench_dhe",
        "time deep hash embeddings and hybrids beside their plain form, on the CPU",
    ),
    "dhe-tiers": (
        "recsys_opt.cli.bench_dhe_tiers",
        "what a cache of stored and of approximate rows does to a trained model",
    ),
    "tiered": ("recsys_opt.cli.bench_tiered", "time tables in two tiers, in memory and in files"),
    "quality": ("recsys_opt.cli.bench_quality", "compare dense tables and tensor trains over several seeds"),
    "hardware": (
        "recsys_opt.cli.bench_hardware",
        "bandwidth of memory and disk by the size of a row, as the planner reads it",
    ),
    "serving-engines": (
        "recsys_opt.cli.bench_serving_engines",
        "time a DLRM without its tables, by torch's compilers and as it is served",
    ),
    "mapper": ("recsys_opt.cli.bench_mapper", "how near the choice of a device's paths is to the best"),
    "torchrec": (
        "recsys_opt.cli.bench_torchrec",
        "what a plan exchanges on TorchRec, and how long its steps take there",
    ),
    "plan": ("recsys_opt.cli.bench_plan", "how near plans are to their certified bounds"),
    "placement": (
        "recsys_opt.cli.bench_placement",
        "plans of ours, of greedy baselines and of TorchRec, held against later lookups",
    ),
    "replan": (
        "recsys_opt.cli.bench_replan",
        "what plans that go on from yesterday's gain, by replay of later lookups",
    ),
    "replay": ("recsys_opt.cli.bench_replay", "lookups a second that a replay takes through a plan"),
    "policies": (
        "recsys_opt.cli.bench_policies",
        "serving policies side by side: loads held, accuracy, bursts, lost devices",
    ),
    "against": (
        "recsys_opt.cli.bench_against",
        "real runs of the server beside what simulation says of them, and the machine's noise",
    ),
    "server": (
        "recsys_opt.cli.bench_server",
        "what the server adds to its models' own time, and what it holds when full",
    ),
    "load": (
        "recsys_opt.cli.bench_load",
        "send a server queries at the times of a workload, and record them",
    ),
    "loadgen": ("recsys_opt.cli.bench_loadgen", "MLPerf LoadGen's Server scenario on a running server"),
    "soak": (
        "recsys_opt.cli.bench_soak",
        "a server under load for long, with workers killed and rude clients beside it",
    ),
    "serving": ("recsys_opt.cli.bench_serving", "queries simulated a second, beside SimPy"),
    "stats": ("recsys_opt.cli.bench_stats", "lookups counted a second, beside numpy and polars"),
    "curves": (
        "recsys_opt.cli.bench_curves",
        "curves of access, each held against lookups that came later",
    ),
    "synth": ("recsys_opt.cli.bench_synth", "rows a second of the generator, made and written"),
    "synth-gap": (
        "recsys_opt.cli.bench_synth_gap",
        "a small DLRM's distance to the best AUC of generated rows",
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the benchmarks."""
    add_subverbs(parser, SUBVERBS)
