"""A profile's columns with other table sizes: rows shaped like a data set whose statistics are not at hand.

Criteo Kaggle's and Terabyte's columns are the same kinds of things under other numbers and in other sizes, so
the largest column of the setting is drawn as the profile's largest, the next as the next, and so on.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from recsys_opt.data.descriptor import published_cardinalities
from recsys_opt.data.statistics import SparseStatistics, Statistics
from recsys_opt.errors import InputError


def resized(statistics: Statistics, setting: str) -> Statistics:
    """The statistics with the table sizes of a published setting, e.g. "terabyte-10m".

    A column keeps its frequent ids; its rare ones become more or fewer, and as much rarer or more frequent.
    Dependences, missing patterns and effects go where their columns go.
    """
    published = published_cardinalities()
    if setting not in published:
        raise InputError(f"there are no table sizes {setting!r}; choose one of {', '.join(published)}")
    sizes = published[setting]
    if len(sizes) != len(statistics.sparse):
        raise InputError(
            f"{setting} has {len(sizes)} columns, the profile {statistics.name!r} "
            f"{len(statistics.sparse)}; choose table sizes with as many"
        )
    own = np.argsort([c.num_embeddings for c in statistics.sparse], kind="stable")
    wanted = np.argsort(sizes, kind="stable")
    source = {int(new): int(old) for new, old in zip(wanted, own, strict=True)}  # place -> the profile's
    names = {statistics.sparse[old].name: statistics.sparse[new].name for new, old in source.items()}
    first = len(statistics.dense)
    place = {old: new for new, old in source.items()}

    def moved(mask: int) -> int:
        integers = mask & ((1 << first) - 1)
        return integers | sum(1 << first + place[c] for c in place if mask >> (first + c) & 1)

    columns = []
    for new in range(len(sizes)):
        column = _with_size(statistics.sparse[source[new]], sizes[new])
        if column.dependence is not None:
            parent = names[column.dependence.parent]
            column = replace(column, dependence=replace(column.dependence, parent=parent))
        columns.append(replace(column, name=statistics.sparse[new].name))
    return replace(
        statistics,
        name=f"{statistics.name}, {setting}",
        dense=tuple(
            d if d.tied_to is None else replace(d, tied_to=names[d.tied_to]) for d in statistics.dense
        ),
        sparse=tuple(columns),
        patterns=tuple((moved(mask), rows) for mask, rows in statistics.patterns),
    )


def _with_size(column: SparseStatistics, num_embeddings: int) -> SparseStatistics:
    ids = num_embeddings - (not column.never_missing)
    head = column.head[:ids]
    rest = ids - len(head)
    tail = column.tail
    if rest and tail:
        widths = np.array([n for n, _ in tail], dtype=float)
        mass = widths * [rate for _, rate in tail]
        ends = np.rint(np.cumsum(widths) / widths.sum() * rest)
        scaled = np.diff(ends, prepend=0)
        there = scaled > 0
        rates = np.minimum.accumulate(mass[there] / scaled[there])
        tail = tuple((int(n), float(rate)) for n, rate in zip(scaled[there], rates, strict=True))
    elif rest:
        tail = ((rest, head[-1] / 2),)
    else:
        tail = ()
    return replace(column, num_embeddings=num_embeddings, head=head, tail=tail)
