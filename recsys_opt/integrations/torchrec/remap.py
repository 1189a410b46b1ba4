"""Ids as they are in the data -> rows of a plan's tier tables, once per batch, where data is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys_opt.errors import BatchError
from recsys_opt.integrations.plan_layout import PlanLayout
from recsys_opt.integrations.torchrec.rankings import Rankings, check_rankings, table_order
from recsys_opt.plan import Plan
from recsys_opt.ranks import rank_of


class PlanRemap:
    """Turns a KeyedJaggedTensor of ids into one of rows of the plan's tier tables.

    Each id goes, by its rank, to the key of its stripe and tier, and becomes the row there; the bags of the
    other keys do not see it. Weights go with their ids. Ids of replicated tables stay what they are. All
    features are done together: one gather from the ranks (4 bytes a row of the tables) and one sort by key.

        remap = PlanRemap(plan, rankings)  # as PlannedEmbeddingBagCollection's
        pooled = model(dense, remap(batch.sparse_features))
    """

    def __init__(self, plan: Plan, rankings: Rankings) -> None:
        self.layout = layout = PlanLayout(plan)
        check_rankings(plan, rankings)
        position = {key: at for at, key in enumerate(layout.keys)}
        rows_of = {t.name: t.num_embeddings for t in plan.tables}
        bases: dict[str, int] = {}
        ranks: list[NDArray[Any]] = []
        for lane in layout.lanes:
            if lane.table not in bases:
                bases[lane.table] = sum(map(len, ranks))
                order = table_order(rankings, lane.table, rows_of[lane.table])
                ranks.append(rank_of(order))
        self._ranks = torch.from_numpy(np.concatenate(ranks) if ranks else np.empty(0, np.int32))
        self._sent = len(layout.keys) - len(layout.copied_features)
        self._rows = torch.tensor([rows_of[lane.table] for lane in layout.lanes], dtype=torch.int64)
        self._bases = torch.tensor([bases[lane.table] for lane in layout.lanes], dtype=torch.int64)
        stripes = [len(lane.hot_rows) for lane in layout.lanes]
        self._stripes = torch.tensor(stripes, dtype=torch.int32)
        self._striped = any(k > 1 for k in stripes)
        # Of each stripe of each lane: its hot rows, and the positions of its two keys.
        self._cells = torch.tensor(np.cumsum([0, *stripes])[:-1], dtype=torch.int32)
        cells = [(lane, s) for lane in layout.lanes for s in range(len(lane.hot_rows))]
        self._hot_rows = torch.tensor([lane.hot_rows[s] for lane, s in cells], dtype=torch.int32)
        self._key_of = torch.tensor(
            [position.get(lane.keys.get((s, tier), ""), 0) for lane, s in cells for tier in ("hot", "cold")],
            dtype=torch.int32,
        )

    def to(self, device: torch.device | str) -> PlanRemap:
        """Moves the ranks, for batches that are on a device already."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))
        return self

    @torch.no_grad()
    def __call__(self, features: KeyedJaggedTensor) -> KeyedJaggedTensor:
        """The same bags over `layout.keys`; raises BatchError for ids that a table does not have."""
        layout = self.layout
        keys = features.keys()
        missing = [name for name in layout.features if name not in keys]
        if missing:
            raise BatchError(
                f"the KeyedJaggedTensor lacks {', '.join(missing)}; its keys are {', '.join(keys)}"
            )
        if features.variable_stride_per_key():
            raise BatchError(
                "the KeyedJaggedTensor has a batch size for each key; give every key the same batch size"
            )
        batch = features.stride()
        lanes = _only(features, [lane.feature for lane in layout.lanes])
        lengths = lanes.lengths().view(len(layout.lanes), batch)
        ids, weights = lanes.values(), lanes.weights_or_none()
        counts = lengths.sum(1)
        self._check(ids, counts)
        # All below are [N], one of each id.
        rank = self._ranks.index_select(0, torch.repeat_interleave(self._bases, counts) + ids)
        cell = torch.repeat_interleave(self._cells, counts)
        if self._striped:
            stripes = torch.repeat_interleave(self._stripes, counts)
            cell = cell + rank % stripes
            rank = rank // stripes
        hot_rows = self._hot_rows.index_select(0, cell)
        cold = rank >= hot_rows
        row = torch.where(cold, rank - hot_rows, rank)
        key = self._key_of.index_select(0, 2 * cell + cold)
        order = torch.argsort(key, stable=True)
        samples = torch.arange(batch, device=ids.device).repeat(len(counts))
        sample = torch.repeat_interleave(samples, lengths.reshape(-1))
        moved = torch.bincount(key * batch + sample, minlength=self._sent * batch)
        values, lengths = row.index_select(0, order).to(ids.dtype), moved.to(lanes.lengths().dtype)
        weights = None if weights is None else weights[order]
        if layout.copied_features:
            same = _only(features, layout.copied_features)
            values = torch.cat([values, same.values()])
            lengths = torch.cat([lengths, same.lengths()])
            weights = None if weights is None else torch.cat([weights, same.weights()])
        return KeyedJaggedTensor(
            keys=list(layout.keys), values=values, lengths=lengths, weights=weights, stride=batch
        )

    def _check(self, ids: Tensor, counts: Tensor) -> None:
        outside = (ids < 0) | (ids >= torch.repeat_interleave(self._rows, counts))
        if outside.any():
            at = int(outside.nonzero()[0, 0])
            lane = self.layout.lanes[int((counts.cumsum(0) <= at).sum())]
            raise BatchError(
                f"feature {lane.feature} has the id {int(ids[at])}, outside the "
                f"{self.layout.plan.table(lane.table).num_embeddings} rows of table {lane.table}"
            )


def _only(features: KeyedJaggedTensor, names: Sequence[str]) -> KeyedJaggedTensor:
    """These keys, in this order; a name may come twice."""
    keys = list(features.keys())
    if keys == list(names):
        return features
    if names:
        return features.permute([keys.index(name) for name in names])
    weights = features.weights_or_none()
    return KeyedJaggedTensor(
        keys=[],
        values=features.values()[:0],
        lengths=features.lengths()[:0],
        weights=None if weights is None else weights[:0],
        stride=features.stride(),
    )
