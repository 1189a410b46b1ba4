"""Planning problems for measuring the planner: drawn at random from a seed, and Criteo's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recsys_opt.data.descriptor import published_cardinalities
from recsys_opt.errors import InputError
from recsys_opt.planner.hardware import Hardware
from recsys_opt.planner.problem import PlannedTable, PlanSettings
from recsys_opt.tables import TableConfig

CRITEO = {"kaggle": 16, "terabyte-10m": 64, "terabyte-40m": 64}
"""Published table sizes (`recsys_opt.data.descriptor`) -> embedding_dim of the DLRM for them."""
SAMPLES_PER_DEVICE = 2048


@dataclass(frozen=True)
class Case:
    """A planning problem."""

    name: str
    tables: tuple[PlannedTable, ...]
    hardware: Hardware
    settings: PlanSettings


def zipf_curve(rows: int, exponent: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(rows, share): points of the access curve of a table whose r-th row is looked up as r ** -exponent.

    The sum of the power law is taken as its integral from half a row below to half a row above; 64 points for
    the first 64 rows and 16 an octave after.
    """
    head = np.arange(min(rows, 64) + 1, dtype=np.float64)
    tail = np.geomspace(64, rows, max(2, int(16 * np.log2(rows / 64)))).round() if rows > 64 else head[-1:]
    points = np.unique(np.concatenate([head, tail]))
    power = 1.0 - exponent if abs(1.0 - exponent) > 1e-6 else 1e-6
    integral = ((points + 0.5) ** power - 0.5**power) / power
    return points, integral / integral[-1]


def zipf_table(
    name: str, rows: int, embedding_dim: int, exponent: float, lookups_per_sample: float = 1.0
) -> PlannedTable:
    """A table with the access curve of `zipf_curve`."""
    config = TableConfig(name, rows, embedding_dim)
    return PlannedTable.from_curve(config, lookups_per_sample, *zipf_curve(rows, exponent))


def criteo_case(data: str, devices: int, hbm_share: float, *, preset: str = "h100", seed: int = 0) -> Case:
    """Criteo's tables, one id per sample, Zipf exponents drawn from .7 to 1.3; nodes of up to 8 devices.

    hbm_share  of the model, optimizer state included: what the devices' HBM together holds
    """
    if data not in CRITEO:
        raise InputError(f"there is no Criteo case {data!r}; choose one of {', '.join(CRITEO)}")
    dim, rows = CRITEO[data], published_cardinalities()[data]
    random = np.random.default_rng([seed, 26])
    tables = tuple(
        zipf_table(f"C{i + 1}", n, dim, float(random.uniform(0.7, 1.3))) for i, n in enumerate(rows)
    )
    return _case(f"{data}, {devices} devices, {hbm_share:.0%}", tables, devices, hbm_share, preset)


def random_case(seed: int, *, tables: int | None = None, devices: int | None = None) -> Case:
    """26 to 2,000 tables on 2 to 128 devices with at least 6 tables a device, HBM for 5 to 60 % of the model.

    Rows are log-normal (median 100 k, at most 40 M), ids per sample too (median 2), Zipf exponents from .6 to
    1.4; columns are 32, 64 or 128, as one choice for all tables or each its own.
    """
    random = np.random.default_rng([seed, 4])
    if devices is None:
        devices = int(random.choice([2, 4, 8, 16, 32, 64, 128]))
    if tables is None:
        tables = int(np.exp(random.uniform(np.log(max(26, 6 * devices)), np.log(2000))))
    rows = np.clip(random.lognormal(np.log(1e5), 2.2, tables), 10, 4e7).astype(int)
    dims = random.choice([32, 64, 128], tables if random.random() < 0.5 else 1)
    dims = np.broadcast_to(dims, tables)
    pooling = np.clip(random.lognormal(np.log(2.0), 1.2, tables), 0.01, 200)
    exponents = random.uniform(0.6, 1.4, tables)
    made = tuple(
        zipf_table(f"t{i}", int(rows[i]), int(dims[i]), float(exponents[i]), float(pooling[i]))
        for i in range(tables)
    )
    preset = str(random.choice(["a100-40gb", "a100-80gb", "h100", "h200"]))
    share = float(random.uniform(0.05, 0.6))
    return _case(
        f"seed {seed}: {tables} tables, {devices} devices, {share:.0%}", made, devices, share, preset
    )


def _case(name: str, tables: Sequence[PlannedTable], devices: int, hbm_share: float, preset: str) -> Case:
    settings = PlanSettings(batch_size=devices * SAMPLES_PER_DEVICE)
    size = sum(t.config.num_embeddings * settings.row_bytes(t.config.embedding_dim) for t in tables)
    nodes, per_node = max(1, devices // 8), min(devices, 8)
    hbm = int(size * hbm_share / devices)
    hardware = Hardware.load(f"{preset}:nodes={nodes},devices={per_node},hbm={hbm}")
    if hardware.slow.capacity_bytes * devices < 2 * size:
        hardware = Hardware.load(
            f"{preset}:nodes={nodes},devices={per_node},hbm={hbm},uvm={2 * size // devices}"
        )
    return Case(name, tuple(tables), hardware, settings)
