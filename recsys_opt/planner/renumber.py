"""Devices of a node are alike, and nodes are: the numbers of a plan's devices that leave most bytes in place.

Two plans that differ by a permutation of nodes, or of devices within a node, are as fast and hold as much.
Which device of the new plan takes which number is an assignment problem, solved exactly: within each pair of
nodes for their devices, then for the nodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

import recsys_opt._planner as _planner
from recsys_opt.plan import Plan, TablePlan
from recsys_opt.planner.compare import same_tables
from recsys_opt.planner.overlap import Orders, overlap


def renumbered(before: Plan, after: Plan, row_bytes: Mapping[str, int], orders: Orders | None = None) -> Plan:
    """`after` with its devices renumbered so that the fewest bytes have to leave their device of `before`.

    Pinned tables stay on devices that they are pinned to. The stripes of a table stay what they are; each
    goes where its device goes. Numbers are kept where that spares as much.

    row_bytes  of a whole row of each table, optimizer state included
    orders     as for `compare_plans`
    """
    number = numbering(_kept(before, after, row_bytes, orders), _forbidden(after), _per_node(after))
    return with_numbers(after, number)


def with_numbers(plan: Plan, number: list[int]) -> Plan:
    """The plan with device d called number[d]."""
    if number == sorted(number):
        return plan
    loads = {number[d]: load for d, load in enumerate(plan.devices)}
    return replace(
        plan,
        tables=tuple(_table(t, number) for t in plan.tables),
        devices=tuple(loads[d] for d in sorted(loads)),
    )


def numbering(kept: NDArray[np.float64], forbidden: NDArray[np.bool_], per_node: int) -> list[int]:
    """The new number of each device, for the most kept bytes.

    kept       [devices, numbers] bytes that stay if the device takes the number
    forbidden  [devices, numbers] pairs that must not be
    per_node   devices with consecutive numbers that are one node
    """
    n = len(kept)
    # Half a byte if all keep their numbers: of equal numberings, that which changes least.
    worth = np.where(forbidden, -(kept.sum() + n), kept + 0.5 / n * np.eye(n))
    blocks = worth.reshape(n // per_node, per_node, n // per_node, per_node).swapaxes(1, 2)
    within = [[_planner.assign(block) for block in row] for row in blocks]
    each = np.arange(per_node)
    sums = np.array(
        [[b[each, w].sum() for b, w in zip(*pair, strict=True)] for pair in zip(blocks, within, strict=True)]
    )
    return [
        node * per_node + device
        for at, node in enumerate(_planner.assign(sums))
        for device in within[at][node]
    ]


def _kept(
    before: Plan, after: Plan, row_bytes: Mapping[str, int], orders: Orders | None
) -> NDArray[np.float64]:
    """[devices after, the same numbers] bytes that device d of `after` finds on the device of each number."""
    kept = np.zeros((after.num_devices, max(after.num_devices, before.num_devices)))
    after_of = same_tables(before, after)
    for old in before.tables:
        new = after_of[old.name]
        if new.replicated:
            continue  # on every device, whatever its number
        common = overlap(old, new, None if orders is None else orders(old.name))
        kept[np.array(new.devices)[:, None], np.array(old.devices)] += common.kept(row_bytes[old.name])
    return kept[:, : after.num_devices]


def _forbidden(plan: Plan) -> NDArray[np.bool_]:
    """[devices, numbers] that would take a pinned table off the devices of its pin."""
    forbidden = np.zeros((plan.num_devices, plan.num_devices), dtype=np.bool_)
    for name, pin in plan.settings.get("pins", {}).items():
        if "devices" in pin:
            others = np.setdiff1d(np.arange(plan.num_devices), pin["devices"])
            forbidden[np.array(plan.table(name).devices)[:, None], others] = True
    return forbidden


def _per_node(plan: Plan) -> int:
    return int(plan.hardware.get("devices_per_node", plan.num_devices))


def _table(table: TablePlan, number: list[int]) -> TablePlan:
    if table.replicated:
        return table
    return replace(table, devices=tuple(number[d] for d in table.devices))
