"""Small planning problems, and their optimum by trying everything."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from recsys_opt.bench.plan_cases import zipf_table
from recsys_opt.planner.cost import CostModel
from recsys_opt.planner.hardware import Hardware
from recsys_opt.planner.options import ANY, EVERYWHERE, FAST, SLOW, make_options
from recsys_opt.planner.problem import PlannedTable, PlanSettings


def small_problem(
    seed: int, tables: int, devices: int, *, nodes: int = 1, hbm_share: float | None = None, cells: int = 0
) -> tuple[list[PlannedTable], Hardware, PlanSettings]:
    """Tables of some thousand rows on devices whose fast memory holds a part of them."""
    random = np.random.default_rng(seed)
    settings = PlanSettings(batch_size=4096, replicate_rows=500, min_columns=8)
    made = [
        zipf_table(
            f"t{i}",
            int(random.integers(100, 20_000)),
            int(random.choice([8, 16])),
            float(random.uniform(0.6, 1.4)),
            float(random.uniform(0.2, 8)),
        )
        for i in range(tables)
    ]
    if cells:
        made = [coarse(t, cells) for t in made]
    size = sum(t.config.num_embeddings * settings.row_bytes(t.config.embedding_dim) for t in made)
    share = float(random.uniform(0.1, 1.2)) if hbm_share is None else hbm_share
    hardware = Hardware.load(
        f"h100:nodes={nodes},devices={devices // nodes},hbm={int(size * share / devices)},uvm={10 * size}"
    )
    return made, hardware, settings


def coarse(table: PlannedTable, cells: int) -> PlannedTable:
    """The table with its access curve in a few cells."""
    groups = np.array_split(np.arange(len(table.rows)), cells)
    rows = np.array([table.rows[g].sum() for g in groups])
    share = np.array([table.share[g].sum() for g in groups])
    return PlannedTable(table.config, table.lookups_per_sample, rows, share)


class Enumerated:
    """Every assignment of a problem, each device split at best."""

    def __init__(self, tables: Sequence[PlannedTable], hardware: Hardware, settings: PlanSettings) -> None:
        self.tables, self.hardware = tables, hardware
        self.options = make_options(CostModel(hardware, settings), tables)
        lookups = [t.lookups_per_sample * settings.batch_size for t in tables]
        self.rate = [t.share / t.rows * n for t, n in zip(tables, lookups, strict=True)]

    def placements(self, table: int) -> Iterator[tuple[int, tuple[int, ...]]]:
        """(option, device of each of its pieces) of one table."""
        a, h = self.options.arrays, self.hardware
        everything = tuple(range(h.num_devices))
        for option in np.flatnonzero(a["table"] == table).tolist():
            pieces, striped = int(a["pieces"][option]), a["parts"][option] > 1
            orders = itertools.permutations if striped else itertools.combinations
            if a["place"][option] in (ANY, EVERYWHERE):
                for devices in orders(everything, pieces):
                    yield option, devices
            else:
                for node in range(h.nodes):
                    first = node * h.devices_per_node
                    for devices in orders(everything[first : first + h.devices_per_node], pieces):
                        yield option, devices

    def stripe(self, option: int, piece: int) -> np.ndarray:
        """Rows of each cell that a piece of a striped option has."""
        a = self.options.arrays
        k = int(a["parts"][option])
        ends = np.rint(np.cumsum(self.tables[int(a["table"][option])].rows))
        return np.diff(np.maximum(np.ceil((ends - piece % k) / k), 0), prepend=0)

    def device_seconds(self, held: Sequence[tuple[int, int]]) -> float:
        """The least time of a device that holds (option, piece) each; infinity where they do not fit."""
        a = self.options.arrays
        seconds, room = 0.0, float(self.hardware.fast.capacity_bytes)
        total = room + self.hardware.slow.capacity_bytes
        cells = []
        for o, piece in held:
            t = int(a["table"][o])
            rows, rate = self.stripe(o, piece), self.rate[t]
            touched = -np.expm1(-rate)
            slow = rate * a["read_slow"][o] + touched * a["update_slow"][o]
            fast = rate * a["read_fast"][o] + touched * a["update_fast"][o]
            size = rows.sum() * a["bytes_per_row"][o]
            total -= size
            seconds += a["communication"][o]
            if a["tiers"][o] == FAST:
                seconds += float((rows * fast).sum())
                room -= size
                continue
            seconds += float((rows * slow).sum())
            if a["tiers"][o] != SLOW:
                cells.append(
                    np.stack([(slow - fast) / a["bytes_per_row"][o], rows * a["bytes_per_row"][o]], axis=1)
                )
        if room < 0 or total < 0:
            return float("inf")
        if cells:
            both = np.concatenate(cells)
            both = both[np.argsort(-both[:, 0])]
            taken = np.clip(room - (np.cumsum(both[:, 1]) - both[:, 1]), 0, both[:, 1])
            seconds -= float((both[:, 0] * taken).sum())
        return seconds

    def optimum(self) -> float:
        """The least time of the slowest device over all assignments."""
        best = float("inf")
        known: dict[tuple[tuple[int, int], ...], float] = {}
        for choice in itertools.product(*(list(self.placements(t)) for t in range(len(self.tables)))):
            slowest = 0.0
            for device in range(self.hardware.num_devices):
                held = tuple((o, on.index(device)) for o, on in choice if device in on)
                if held not in known:
                    known[held] = self.device_seconds(held)
                slowest = max(slowest, known[held])
                if slowest >= best:
                    break
            best = min(best, slowest)
        return best
