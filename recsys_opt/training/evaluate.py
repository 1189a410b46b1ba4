"""Evaluation of a model on a split of a dataset."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from recsys_opt import ops
from recsys_opt.data.batches import BatchStream
from recsys_opt.data.dataset import Dataset
from recsys_opt.errors import InputError
from recsys_opt.models.saved import load_model
from recsys_opt.progress import Progress, SilentProgress
from recsys_opt.run_folder import RunFolder
from recsys_opt.training.config import Precision, TrainingConfig
from recsys_opt.training.metrics import MetricAccumulator, Metrics

EVALUATION_BATCH = 8192


def evaluate(
    model: nn.Module,
    dataset: Dataset,
    split: str,
    *,
    batch_size: int = EVALUATION_BATCH,
    precision: Precision = "fp32",
    progress: Progress | None = None,
) -> Metrics:
    """The model's metrics on all rows of a split; the model is called as `DLRM.forward`."""
    progress = progress or SilentProgress()
    start, stop = dataset.split(split)
    if start == stop:
        raise InputError(f"split {split!r} of {dataset.path} has no rows")
    device = next(model.parameters()).device
    accumulator = MetricAccumulator()
    was_training = model.training
    model.eval()
    progress.start(f"evaluating {split}", stop - start, "samples")
    with torch.inference_mode(), mixed_precision(device, precision):
        for host_batch in BatchStream(dataset, start, stop, batch_size):
            batch = host_batch.to(device)
            accumulator.update(model(batch.dense, batch.values), batch.labels)
            progress.advance(batch.rows)
    progress.finish()
    model.train(was_training)
    return accumulator.compute()


def evaluate_run(
    run: Path | str, dataset: Dataset, split: str, *, progress: Progress | None = None
) -> Metrics:
    """The metrics of a run's last checkpoint, in the precision that it was trained in."""
    config = TrainingConfig.from_json(RunFolder(run).description()["config"])
    model = load_model(run, device=config.device, cold_dir=config.placement.cold_dir)
    tables = [config.num_embeddings for config in model.embeddings.configs]
    columns = [column.num_embeddings for column in dataset.info.sparse_columns]
    if tables != columns:
        raise InputError(
            f"{run} was trained with tables of {tables} rows, but the columns of {dataset.path} have "
            f"{columns} ids; "
            "prepare the dataset in the same way as the training data"
        )
    return evaluate(model, dataset, split, precision=config.precision, progress=progress)


@contextlib.contextmanager
def products_of(precision: Precision) -> Iterator[None]:
    """Products of tensor trains in a precision, forward and backward; then as before."""
    before = ops.tt_allow_bf16(precision == "bf16")
    try:
        yield
    finally:
        ops.tt_allow_bf16(before)


@contextlib.contextmanager
def mixed_precision(device: torch.device, precision: Precision) -> Iterator[None]:
    """The forward pass's matrix products in bfloat16, or as they are: the MLPs' and the tensor trains'."""
    with products_of(precision):
        if precision == "fp32":
            yield
            return
        with torch.autocast(device.type, dtype=torch.bfloat16):
            yield
