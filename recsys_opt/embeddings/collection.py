"""Many tables behind one call, in torchrec's memory order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from recsys_opt.embeddings.base import EmbeddingRepresentation
from recsys_opt.embeddings.registry import build_embedding, representation_class
from recsys_opt.errors import InputError
from recsys_opt.tables import TableConfig


class _Tables(nn.Module):
    """Modules by table name. An nn.ModuleDict refuses names such as "items" and "type"."""

    def add(self, name: str, table: EmbeddingRepresentation) -> None:
        """Adds a table."""
        self._modules[name] = table

    def __getitem__(self, name: str) -> EmbeddingRepresentation:
        found = self._modules[name]
        assert isinstance(found, EmbeddingRepresentation)
        return found

    def of(self, names: Sequence[str]) -> list[EmbeddingRepresentation]:
        """The tables of these names; one by one they take Python 1 us each to find."""
        return cast("list[EmbeddingRepresentation]", [self._modules[name] for name in names])

    def __contains__(self, name: str) -> bool:
        return name in self._modules

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)


class EmbeddingCollection(nn.Module):
    """Tables of mixed representations, looked up together; tables of one representation run as one group.

    Features are the tables' features in order: of table 0 first, then of table 1, and so on. A table is
    `collection.tables[name]`. torch.compile and torch.export make one graph of it.
    """

    def __init__(
        self,
        tables: Sequence[TableConfig],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.configs = tuple(tables)
        _check_tables(self.configs)
        self.tables = _Tables()
        for config in self.configs:
            self.tables.add(config.name, build_embedding(config, device=device, dtype=dtype))
        owners = [(config, feature) for config in self.configs for feature in config.feature_names]
        self.feature_names = tuple(feature for _, feature in owners)
        """Features in the order of `values` and of the output's columns."""
        self.feature_dims = tuple(config.embedding_dim for config, _ in owners)
        """Columns of the output per feature."""
        self._table_of = tuple(config.name for config, _ in owners)
        self.group_order: tuple[int, ...]
        """Where each feature is in the outputs of `forward_groups`, side by side."""
        self._group([representation_class(config.representation) for config, _ in owners])

    def _group(self, kinds: Sequence[type[EmbeddingRepresentation]]) -> None:
        """Puts features of one kind into a group; `kinds` has each feature's."""
        groups: dict[type[EmbeddingRepresentation], list[int]] = defaultdict(list)
        for position, kind in enumerate(kinds):
            groups[kind].append(position)
        self._groups = tuple((kind, tuple(positions)) for kind, positions in groups.items())
        blocks = [position for _, positions in self._groups for position in positions]
        self.group_order = tuple(blocks.index(f) for f in range(len(kinds)))

    def with_tables(self, bags: Mapping[str, EmbeddingRepresentation]) -> EmbeddingCollection:
        """A collection with some tables replaced by modules of the same rows and columns, the others shared.

        Its `configs` stay as they are: they say what the tables were before.
        """
        found = EmbeddingCollection(self.configs, device="meta")
        for name in self.tables:
            found.tables.add(name, bags.get(name, self.tables[name]))
        found._group([type(found.tables[name]) for name in found._table_of])
        return found.train(self.training)

    @property
    def output_dim(self) -> int:
        """Columns of the output: the sum of the features' dimensions."""
        return sum(self.feature_dims)

    def table(self, name: str) -> EmbeddingRepresentation:
        """A table by name."""
        if name not in self.tables:
            raise InputError(f"there is no table {name!r}; the tables are {', '.join(self.tables)}")
        return self.tables[name]

    def forward(
        self, values: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        """Pooled rows of every feature.

        values              [N] int32 or int64 ids, feature-major: all of feature 0's batch first
        offsets             [F * B + 1] bag f * B + b is values[offsets[f * B + b] : offsets[f * B + b + 1]];
                            None: every bag has exactly one id, N = F * B
        per_sample_weights  [N] factors of the rows; tables with sum pooling only
        returns             [B, output_dim], features side by side in the order of `feature_names`
        """
        groups = self.forward_groups(values, offsets, per_sample_weights)
        if len(groups) == 1:
            return groups[0]
        columns = [
            column
            for output, (_, positions) in zip(groups, self._groups, strict=True)
            for column in output.split([self.feature_dims[p] for p in positions], dim=1)
        ]
        return torch.cat([columns[i] for i in self.group_order], dim=1)

    def forward_groups(
        self, values: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> list[Tensor]:
        """The output of each representation's tables, before they are put into the order of the features.

        Takes what `forward` takes. Feature f is column block `group_order[f]` of the outputs side by side; a
        consumer that can read the blocks in any order saves the copy.
        """
        batch = self._check(values, offsets, per_sample_weights)
        if torch.compiler.is_compiling():
            return self._run_groups(batch, values, offsets, per_sample_weights)
        try:
            return self._run_groups(batch, values, offsets, per_sample_weights)
        except (RuntimeError, IndexError, ValueError):
            self._refuse_bad_ids(batch, values, offsets)
            raise

    def storage_bytes(self) -> dict[str, int]:
        """Bytes of the parameters of each table."""
        return {config.name: self.table(config.name).storage_bytes() for config in self.configs}

    def dense_bytes(self) -> dict[str, int]:
        """Bytes that each table would have as plain fp32 rows."""
        return {config.name: config.dense_bytes for config in self.configs}

    def _run_groups(
        self, batch: int, values: Tensor, offsets: Tensor | None, weights: Tensor | None
    ) -> list[Tensor]:
        outputs = []
        for representation, positions in self._groups:
            part = (values, offsets, weights)
            if len(self._groups) > 1:
                part = self._select(positions, batch, values, offsets, weights)
            bags = self.tables.of([self._table_of[p] for p in positions])
            outputs.append(representation.forward_group(bags, *part))
        return outputs

    def _refuse_bad_ids(self, batch: int, values: Tensor, offsets: Tensor | None) -> None:
        """Raises an InputError that names the first id outside its table, if there is one.

        The kernels check every id; this runs after one of them has failed, to name the table.
        """
        for f, feature in enumerate(self.feature_names):
            start, stop = f * batch, (f + 1) * batch
            if offsets is not None:
                start, stop = int(offsets[start]), int(offsets[stop])
            name = self._table_of[f]
            rows = self.tables[name].num_embeddings
            part = values[start:stop]
            bad = ((part < 0) | (part >= rows)).nonzero()
            if bad.numel():
                k = start + int(bad[0])
                where = name if feature == name else f"{name}, looked up by feature {feature}"
                raise InputError(
                    f"values[{k}] = {int(values[k])} is outside the {rows} rows of table {where}; ids must "
                    f"be 0 .. {rows - 1}"
                )

    def _select(
        self,
        positions: tuple[int, ...],
        batch: int,
        values: Tensor,
        offsets: Tensor | None,
        weights: Tensor | None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The part of a jagged batch that belongs to the features at `positions`, in the same form."""
        if offsets is None:
            rows = torch.tensor(positions, device=values.device)
            picked = values.view(len(self.feature_names), batch).index_select(0, rows).view(-1)
            factors = (
                None
                if weights is None
                else weights.view(len(self.feature_names), batch).index_select(0, rows).view(-1)
            )
            return picked, None, factors
        lengths = offsets.diff().view(len(self.feature_names), batch)[list(positions)].view(-1)
        starts = torch.cat([lengths.new_zeros(1), lengths.cumsum(0, dtype=lengths.dtype)])
        if offsets.device.type != "cpu" or torch.compiler.is_compiling():
            return _picked_without_reading(positions, batch, values, offsets, starts, weights)
        bounds = offsets[::batch].tolist() if batch else [0] * (len(self.feature_names) + 1)
        spans = [slice(bounds[p], bounds[p + 1]) for p in positions]
        factors = None if weights is None else torch.cat([weights[s] for s in spans])
        return torch.cat([values[s] for s in spans]), starts, factors

    def _check(self, values: Tensor, offsets: Tensor | None, weights: Tensor | None) -> int:
        """Checks shapes and types; returns the batch size."""
        features = len(self.feature_names)
        if values.dim() != 1 or values.dtype not in (torch.int32, torch.int64):
            raise InputError(
                f"values must be 1-D int32 or int64 ids, but is {values.dtype} {list(values.shape)}"
            )
        if weights is not None and weights.shape != values.shape:
            raise InputError(
                f"per_sample_weights has shape {list(weights.shape)}; it must have that of values, "
                f"{list(values.shape)}"
            )
        if weights is not None and any(config.pooling != "sum" for config in self.configs):
            mean = next(config.name for config in self.configs if config.pooling != "sum")
            raise InputError(f"per_sample_weights needs sum pooling, but table {mean} averages")
        if offsets is None:
            if values.numel() % features:
                raise InputError(
                    f"values has {values.numel()} ids, which is no multiple of the {features} features; "
                    "without offsets every feature has one id per sample"
                )
            return values.numel() // features
        if offsets.dim() != 1 or offsets.dtype not in (torch.int32, torch.int64):
            raise InputError(
                f"offsets must be 1-D int32 or int64, but is {offsets.dtype} {list(offsets.shape)}"
            )
        if offsets.numel() < 1 or (offsets.numel() - 1) % features:
            raise InputError(
                f"offsets has {offsets.numel()} entries; {features} features need {features} * batch + 1"
            )
        if offsets.device.type == "cpu" and not torch.compiler.is_compiling():
            first, last = int(offsets[0]), int(offsets[-1])
            if first != 0 or last != values.numel():  # ids outside would be left out without a word
                raise InputError(
                    f"offsets run from {first} to {last}; they must run from 0 to the number of values, "
                    f"{values.numel()}"
                )
        return (offsets.numel() - 1) // features


def _picked_without_reading(
    positions: tuple[int, ...],
    batch: int,
    values: Tensor,
    offsets: Tensor,
    starts: Tensor,
    weights: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The features' part of a batch, of a size that does not depend on the offsets.

    No number is read from a tensor: a graph can hold it, and a CUDA stream runs on. The result is as long as
    `values`; what lies behind the last of `starts` repeats the first ids and is of no bag.
    """
    features = torch.tensor(positions, device=values.device)
    firsts = starts[torch.arange(len(positions) + 1, device=values.device) * batch]  # in the result
    place = torch.arange(values.shape[0], device=values.device)
    part = torch.bucketize(place, firsts[1:], right=True).clamp(max=len(positions) - 1)
    source = place - firsts[part] + offsets[features * batch][part]
    source = torch.where(place < firsts[-1], source, 0)
    return values[source], starts, None if weights is None else weights[source]


def _check_tables(configs: tuple[TableConfig, ...]) -> None:
    if not configs:
        raise InputError("a collection needs at least one table")
    seen: set[str] = set()
    for config in configs:
        if config.name in seen:
            raise InputError(f"two tables are called {config.name!r}; give each its own name")
        if "." in config.name:
            raise InputError(f"the table name {config.name!r} contains '.', which parameter names cannot")
        seen.add(config.name)
    features: dict[str, str] = {}
    for config in configs:
        for feature in config.feature_names:
            if feature in features:
                raise InputError(
                    f"feature {feature!r} is listed by the tables {features[feature]} and {config.name}; "
                    "a feature looks up one table"
                )
            features[feature] = config.name
