"""`recsys-opt data calibrate`: measures the generator's statistics on a sample of real rows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

import recsys_opt._synth as _synth
from recsys_opt.data.bayes import Scores, bayes
from recsys_opt.data.calibration_ids import (
    collision_chance,
    effect_variance,
    fleeting_share,
    frequencies,
    link_strength,
    trend,
)
from recsys_opt.data.calibration_integers import effect_table, factor_loadings, normal_scores, tie
from recsys_opt.data.criteo import DENSE_COLUMNS, SPARSE_COLUMNS
from recsys_opt.data.sample import Sample
from recsys_opt.data.statistics import DenseStatistics, Dependence, SparseStatistics, Statistics
from recsys_opt.data.synth_model import make_generator
from recsys_opt.errors import InputError
from recsys_opt.progress import Progress, SilentProgress

Array = NDArray[Any]
# Child: its nearest parent, by pair agreement (the chance that two rows with one parent id share the child's
# id). The first group is exact in the Criteo rows, the second is not.
PARENTS = {
    "C12": "C3", "C21": "C12", "C16": "C21", "C4": "C16", "C24": "C4",
    "C18": "C15", "C2": "C18", "C14": "C15", "C13": "C11", "C9": "C7",
    "C15": "C4", "C26": "C24", "C25": "C2", "C19": "C18", "C20": "C18",
    "C7": "C10", "C11": "C7", "C17": "C7", "C23": "C7",
}  # fmt: skip
# Columns whose ids interact in the label: of middling size, so that a model can learn them.
INTERACTING = ("C2", "C6", "C7", "C10", "C14", "C17", "C18", "C22", "C23", "C25")
# Variance of the interactions relative to that of the ids' own effects. With it a small DLRM reaches on 137 k
# generated rows about what it reaches on as many real ones (test AUC .755), and more rows bring it further.
INTERACTION_SHARE = 0.6
MIN_PATTERN_ROWS = 4
PROBE_ROWS = 262_144


def missing_patterns(sample: Sample) -> tuple[tuple[int, int], ...]:
    """(mask, rows) of the columns missing together, most frequent first; rarer than 4 rows left out."""
    missing = np.concatenate([np.isnan(sample.integers), sample.ids == 0], axis=1)
    masks = (missing * (1 << np.arange(missing.shape[1], dtype=np.int64))).sum(axis=1)
    values, counts = np.unique(masks, return_counts=True)
    keep = counts >= MIN_PATTERN_ROWS
    order = np.argsort(-counts[keep], kind="stable")
    return tuple((int(m), int(n)) for m, n in zip(values[keep][order], counts[keep][order], strict=True))


def chain_strength(sample: Sample, parent: str, child: str) -> float:
    """`Dependence.strength` of a child; inexact ones count the columns that follow from it too.

    A row may agree on the coarse columns though not on the child, which one strength cannot say: it is the
    mean (of squares, the chance that two rows both follow) over the chain.
    """

    def strength(column: str) -> float:
        return link_strength(sample.ids[:, names.index(parent)], sample.ids[:, names.index(column)])

    names = list(SPARSE_COLUMNS)
    own = strength(child)
    if own == 1:
        return own
    chain, squares = [child], []
    for column in chain:
        ids = sample.ids[:, names.index(column)]
        below = [c for c, of in PARENTS.items() if of == column]
        chain += [c for c in below if link_strength(ids, sample.ids[:, names.index(c)]) == 1]
        if collision_chance(ids) < 0.5:  # else agreement says little
            squares.append(strength(column) ** 2)
    return round(math.sqrt(float(np.mean(squares or [own**2]))), 4)


def sparse_statistics(
    sample: Sample, cardinalities: Sequence[int], progress: Progress
) -> list[SparseStatistics]:
    """Measures the categorical columns."""
    names = list(SPARSE_COLUMNS)
    result = []
    variances = [effect_variance(sample.ids[:, c], sample.labels) for c in range(len(names))]
    for c, name in enumerate(names):
        ids = sample.ids[:, c]
        head, tail = frequencies(ids, cardinalities[c])
        parent = PARENTS.get(name)
        dependence = None if parent is None else Dependence(parent, chain_strength(sample, parent, name))
        exact = dependence is not None and dependence.strength == 1
        # Only rows that do not follow the parent drift by themselves.
        free = 1.0 if dependence is None else 1.0 - dependence.strength
        # What the columns that follow from this one explain already is not this column's own.
        children = [
            variances[names.index(child)]
            for child, of in PARENTS.items()
            if of == name and link_strength(ids, sample.ids[:, names.index(child)]) == 1
        ]
        own = max(variances[c] - max(children, default=0.0), 0.1 * variances[c])
        rate = float(sample.labels.mean())
        result.append(
            SparseStatistics(
                name=name,
                num_embeddings=cardinalities[c],
                never_missing=not bool((ids == 0).any()),
                head=head,
                tail=tail,
                dependence=dependence,
                trend=0.0 if exact else round(min(trend(ids, len(head)) / free, 1.0), 4),
                fleeting=0.0 if exact else fleeting_share(ids, head, tail),
                effect=round(own**0.5 / (rate * (1 - rate)), 4),
                interaction=name in INTERACTING,
            )
        )
        progress.advance(1)
    return result


def dense_statistics(sample: Sample) -> list[DenseStatistics]:
    """Measures the integer columns."""
    scores = np.stack([normal_scores(sample.integers[:, j]) for j in range(len(DENSE_COLUMNS))], axis=1)
    loadings = factor_loadings(scores, _synth.FACTORS)
    result = []
    for j, name in enumerate(DENSE_COLUMNS):
        present = np.sort(sample.integers[~np.isnan(sample.integers[:, j]), j])
        # The last quantile stops short of the largest values: those are single rows'.
        places = np.minimum(np.linspace(0, 1, _synth.QUANTILES + 1), 1 - 1 / 8192)
        quantiles = present[(places * len(present)).astype(np.int64)]
        column, strength = tie(scores[:, j], sample.ids)
        room = 0.98 - float((loadings[j] ** 2).sum())
        edges, effects = effect_table(sample.integers[:, j], sample.labels)
        result.append(
            DenseStatistics(
                name=name,
                quantiles=tuple(int(v) for v in quantiles),
                loadings=tuple(round(float(v), 4) for v in loadings[j]),
                tied_to=SPARSE_COLUMNS[column],
                tie=round(min(strength, max(room, 0.0)) ** 0.5, 4),
                effect_edges=edges,
                effects=effects,
            )
        )
    return result


def probe(statistics: Statistics, seed: int = 7) -> tuple[float, float]:
    """(Bayes AUC, click rate) of generated rows."""
    made = make_generator(statistics, PROBE_ROWS, seed).rows(0, PROBE_ROWS, 2)
    p = made["probabilities"].ravel()
    return bayes(Scores.of_probabilities(p, made["labels"].ravel()))["expected_auc"], float(p.mean())


def solve_label(statistics: Statistics, bayes_auc: float) -> Statistics:
    """Sets the effects' scale and the bias so that Bayes AUC and click rate are as wanted."""
    main = sum(c.effect**2 for c in statistics.sparse)
    count = sum(c.interaction for c in statistics.sparse)
    # sum over pairs of <v_a, v_b> has variance pairs x LATENT x scale^4
    pairs = count * (count - 1) / 2
    base = (INTERACTION_SHARE * main / max(pairs * _synth.LATENT, 1)) ** 0.25

    def scaled(scale: float, bias: float) -> Statistics:
        return dataclasses.replace(
            statistics,
            effect_scale=round(scale, 5),
            interaction_scale=round(base * scale**0.5, 5),
            bias=round(bias, 5),
        )

    bias = 0.0
    low, high = 0.05, 4.0
    for _ in range(18):
        middle = 0.5 * (low + high)
        for _ in range(3):
            auc, rate = probe(scaled(middle, bias))
            bias += np.log(statistics.click_rate / (1 - statistics.click_rate)) - np.log(rate / (1 - rate))
        low, high = (middle, high) if auc < bayes_auc else (low, middle)
    return scaled(middle, float(bias))


def calibrate(
    sample: Sample,
    cardinalities: Sequence[int],
    *,
    name: str,
    bayes_auc: float,
    source: Mapping[str, Any],
    progress: Progress | None = None,
) -> Statistics:
    """Measures a sample; `cardinalities` are those of the whole data set, "missing" included."""
    if len(cardinalities) != len(SPARSE_COLUMNS):
        raise InputError(f"{len(cardinalities)} cardinalities; there are {len(SPARSE_COLUMNS)} columns")
    for c, cardinality in enumerate(cardinalities):
        distinct = len(np.unique(sample.ids[:, c]))
        if cardinality < distinct:
            raise InputError(
                f"column {SPARSE_COLUMNS[c]} has {distinct} ids in the sample, missing included, which a "
                f"cardinality of {cardinality} cannot hold"
            )
    if not 0.5 < bayes_auc < 0.95:
        raise InputError(f"a Bayes AUC of {bayes_auc} is out of reach; choose one between 0.5 and 0.95")
    progress = progress or SilentProgress()
    progress.start("measure", len(SPARSE_COLUMNS), "columns")
    measured = Statistics(
        name=name,
        rows=len(sample.labels),
        click_rate=round(float(sample.labels.mean()), 6),
        dense=tuple(dense_statistics(sample)),
        sparse=tuple(sparse_statistics(sample, cardinalities, progress)),
        patterns=missing_patterns(sample),
        source=dict(source),
    )
    progress.finish()
    return solve_label(measured, bayes_auc)
