"""The cost model: what a piece of a table costs its device in an iteration, and what a whole plan costs.

A device's time is the sum over its pieces of

    lookups * read(row bytes, tier)             the forward pass gathers a row for each lookup
    distinct rows * update(row bytes, tier)     the backward pass reads and writes each row once, and its
                                                optimizer state
    communication                               ids in, pooled rows out, their gradients back

Of a row that an iteration looks up `rate` times on average, 1 - exp(-rate) is the chance to be touched at all
(lookups arrive as a Poisson process). Communication of a piece, for B samples on n = nodes * g devices, is
counted where its rows are, as TorchRec does:

    pooled rows of w columns     every other device receives those of its B / n samples, in both passes;
                                 traffic within a node and between nodes runs at the same time
    rows over the node's devices sums are reduced within the node, then sent on between nodes
    replicated                   gradients of the whole table are all-reduced
    ids                          those of other devices' samples come in
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recsys_opt.errors import InputError
from recsys_opt.plan import DeviceLoad, Piece, Plan, TablePlan
from recsys_opt.planner.hardware import Hardware, Tier
from recsys_opt.planner.problem import PlannedTable, PlanSettings

ID_BYTES = 8


@dataclass(frozen=True)
class RowCosts:
    """Seconds of one row of so many columns."""

    read_fast: float
    read_slow: float
    update_fast: float
    update_slow: float


class CostModel:
    """Seconds on given hardware, for given settings."""

    def __init__(self, hardware: Hardware, settings: PlanSettings) -> None:
        self.hardware = hardware
        self.settings = settings
        self._rows: dict[int, RowCosts] = {}

    def row_costs(self, columns: int) -> RowCosts:
        """Of a row, or a part of one, of so many columns."""
        if columns not in self._rows:
            fast, slow = self.hardware.fast, self.hardware.slow
            weight = self.settings.weight_bytes * columns
            self._rows[columns] = RowCosts(
                fast.read_seconds(weight),
                max(slow.read_seconds(weight), fast.read_seconds(weight)),
                self._update(fast, columns),
                max(self._update(slow, columns), self._update(fast, columns)),
            )
        return self._rows[columns]

    def _update(self, tier: Tier, columns: int) -> float:
        state = self.settings.state_bytes(columns)
        seconds = tier.update_seconds(self.settings.weight_bytes * columns)
        return seconds + (tier.update_seconds(state) if state else 0.0)

    def exchange_seconds(self, sent: float) -> float:
        """A device hands bytes out in equal parts to all devices, itself among them."""
        h = self.hardware
        n, g = h.num_devices, h.devices_per_node
        within = sent * (g - 1) / n / h.intra_node.bytes_per_s
        between = sent * (n - g) / n / h.inter_node.bytes_per_s if h.nodes > 1 else 0.0
        return max(within, between)

    def node_reduce_seconds(self, sent: float) -> float:
        """Sums of a node's devices are reduced among them, then handed out to the other nodes."""
        h = self.hardware
        g = h.devices_per_node
        within = sent * (g - 1) / g / h.intra_node.bytes_per_s
        between = sent / g * (h.nodes - 1) / h.nodes / h.inter_node.bytes_per_s if h.nodes > 1 else 0.0
        return within + between

    def all_reduce_seconds(self, size: float) -> float:
        """Of so many bytes on every device: reduced and gathered, within nodes and between them."""
        return 2 * self.node_reduce_seconds(size)

    @property
    def id_seconds(self) -> float:
        """Of a lookup: its id comes from the device that has the sample."""
        return self.exchange_seconds(ID_BYTES)

    def pooled_seconds(self, columns: int, *, over_node: bool) -> float:
        """Of the pooled rows of a piece with so many columns, and their gradients.

        over_node  whether the table's rows are over the devices of a node, which sums them
        """
        sent = float(self.settings.batch_size * columns * self.settings.output_bytes)
        return 2 * (self.node_reduce_seconds(sent) if over_node else self.exchange_seconds(sent))

    def replicated_seconds(self, rows: float, columns: int, lookups: float) -> tuple[float, float]:
        """(rows in the fast tier, communication) of a replica; its gradient and its update are dense."""
        costs = self.row_costs(columns)
        local = lookups / self.hardware.num_devices * costs.read_fast + rows * costs.update_fast
        return local, self.all_reduce_seconds(rows * columns * 4.0)

    def replica_row_bytes(self, columns: int) -> int:
        """A row of a replicated table: weights, optimizer state and its gradient."""
        return self.settings.row_bytes(columns) + 4 * columns

    def over_node(self, table: TablePlan) -> bool:
        """Whether a table's row shards are the devices of one node, so that the node reduces their sums."""
        g = self.hardware.devices_per_node
        if self.hardware.nodes == 1 or table.replicated or table.row_shards != g:
            return False
        groups = [table.devices[i : i + g] for i in range(0, len(table.devices), g)]
        return all(
            sorted(group) == list(range(group[0] // g * g, group[0] // g * g + g))
            for group in map(sorted, groups)
        )

    def loads(
        self,
        plan: Plan,
        tables: Sequence[PlannedTable],
        hot_cells: Mapping[str, NDArray[np.float64]] | None = None,
    ) -> tuple[DeviceLoad, ...]:
        """What each device of a plan holds and how long an iteration takes it.

        Computed piece by piece from the definition above, with the actual rows of every stripe.

        hot_cells  table -> [pieces, K] rows of each cell that are fast, where these are not the hottest: of a
                   plan by other statistics
        """
        known = {t.config.name: t for t in tables}
        sums = np.zeros((self.hardware.num_devices, 7))
        for placed in plan.tables:
            table = known.get(placed.name)
            if table is None:
                raise InputError(f"the plan's table {placed.name} is not among the statistics' tables")
            over_node = self.over_node(placed)
            hot = (hot_cells or {}).get(placed.name)
            for at, piece in enumerate(placed.pieces()):
                sums[piece.device] += self._piece(
                    placed, piece, table, over_node, None if hot is None else hot[at]
                )
        return tuple(
            DeviceLoad(float(r[0]), float(r[1]), float(r[2]), int(r[3]), int(r[4]), float(r[5]), float(r[6]))
            for r in sums
        )

    def table_seconds(self, placed: TablePlan, table: PlannedTable) -> float:
        """Of one table over all its pieces."""
        over_node = self.over_node(placed)
        return float(sum(sum(self._piece(placed, p, table, over_node)[:3]) for p in placed.pieces()))

    def _piece(
        self,
        placed: TablePlan,
        piece: Piece,
        table: PlannedTable,
        over_node: bool,
        hot_cells: NDArray[np.float64] | None = None,
    ) -> tuple[float, ...]:
        lookups = self.settings.batch_size * table.lookups_per_sample
        if placed.replicated:
            local, reduce = self.replicated_seconds(piece.rows, piece.width, lookups)
            size = piece.rows * self.replica_row_bytes(piece.width)
            return local, 0.0, reduce, size, 0, lookups / self.hardware.num_devices, 0.0
        costs = self.row_costs(piece.width)
        row_bytes = self.settings.row_bytes(piece.width)
        (fast, fast_rows), (slow, slow_rows) = accesses(
            table, lookups, piece.stripe, piece.hot_rows, dealt=bool(placed.striped_by), hot_cells=hot_cells
        )
        return (
            fast * costs.read_fast + fast_rows * costs.update_fast,
            slow * costs.read_slow + slow_rows * costs.update_slow,
            self.pooled_seconds(piece.width, over_node=over_node) + (fast + slow) * self.id_seconds,
            piece.hot_rows * row_bytes,
            piece.cold_rows * row_bytes,
            fast,
            slow,
        )


def accesses(
    table: PlannedTable,
    lookups: float,
    stripe: tuple[int, int],
    hot_rows: int,
    *,
    dealt: bool = False,
    hot_cells: NDArray[np.float64] | None = None,
) -> tuple[tuple[float, float], tuple[float, float]]:
    """((lookups, distinct rows) of a stripe's first `hot_rows` rows, the same of its others) in an iteration.

    lookups  of the whole table in an iteration
    dealt    as for `PlannedTable.stripe_rows`
    hot_cells  [K] rows of each cell among the first; None: the hottest
    """
    rate = table.share / table.rows * lookups
    in_stripe = table.stripe_rows(stripe, dealt=dealt)
    before = np.cumsum(in_stripe) - in_stripe
    hot = np.clip(hot_rows - before, 0.0, in_stripe) if hot_cells is None else hot_cells
    touched = -np.expm1(-rate)
    cold = in_stripe - hot
    return (
        (float((hot * rate).sum()), float((hot * touched).sum())),
        (float((cold * rate).sum()), float((cold * touched).sum())),
    )
