"""`recsys-opt data compare`: how alike two Criteo-like data sets are, column by column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import recsys_opt._synth as _synth
from recsys_opt.data.calibration_ids import pair_agreement, unseen_share
from recsys_opt.data.criteo import DENSE_COLUMNS, SPARSE_COLUMNS
from recsys_opt.data.dataset import Dataset
from recsys_opt.data.sample import read_sample
from recsys_opt.data.synth import SyntheticCriteo
from recsys_opt.errors import InputError

Array = NDArray[Any]
# Fine -> coarse: what holds exactly in the Criteo rows, and some that nearly holds.
DEPENDENCES = (
    ("C3", "C12"), ("C12", "C21"), ("C21", "C16"), ("C16", "C4"), ("C3", "C4"), ("C4", "C24"), ("C7", "C9"),
    ("C11", "C13"), ("C15", "C14"), ("C15", "C18"), ("C18", "C2"), ("C7", "C11"), ("C7", "C13"),
    ("C7", "C17"), ("C7", "C23"), ("C3", "C15"), ("C3", "C2"), ("C24", "C26"), ("C2", "C25"), ("C15", "C19"),
)  # fmt: skip
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)


@dataclass(frozen=True)
class Table:
    """Labelled rows in time order, ready to be measured."""

    ids: Array  # [N, 26] 0 is missing
    integers: Array | None  # [N, 13] NaN where missing; None where only transformed values are known
    labels: Array  # [N]


def load_table(path: Path, rows: int | None = None) -> Table:
    """Reads a Criteo text file (small ones), or a dataset folder; with `rows`, that many of them, evenly."""
    if path.is_dir():
        table = _from_dataset(Dataset(path))
    else:
        sample = read_sample(path)
        table = Table(sample.ids, sample.integers, sample.labels)
    if rows is None or rows >= len(table.labels):
        return table
    keep = np.arange(rows) * len(table.labels) // rows
    integers = None if table.integers is None else table.integers[keep]
    return Table(table.ids[keep], integers, table.labels[keep])


def _from_dataset(dataset: Dataset) -> Table:
    info = dataset.info
    names = tuple(c.name for c in info.sparse_columns)
    if names != SPARSE_COLUMNS or info.dense_columns != DENSE_COLUMNS:
        raise InputError(f"{dataset.path} does not have Criteo's columns I1 .. I13 and C1 .. C26")
    parts = dataset.labelled_arrays()
    ids = np.concatenate([p.sparse for p in parts]).astype(np.int64)
    for name in info.ids.get("never_missing", ()):
        ids[:, names.index(name)] += 1  # there the most frequent id is 0
    integers = None
    source = SyntheticCriteo.of_dataset(info)
    if source is not None:  # the generator knows what the transform hides
        made = source.rows(0, source.num_rows).integers
        integers = np.where(made == _synth.MISSING, np.nan, made.astype(np.float64))
    labels = np.concatenate([p.labels for p in parts if p.labels is not None]).ravel()
    return Table(ids, integers, labels)


def top_share(counts: Array, ids: float) -> float:
    """Occurrences of the `ids` most frequent ids, at least one; the last one in part if `ids` is broken."""
    ids = max(ids, 1.0)
    whole = int(ids)
    rest = float(counts[whole]) * (ids - whole) if whole < len(counts) else 0.0
    return float(counts[:whole].sum()) + rest


def sparse_measures(ids: Array) -> dict[str, float]:
    """What the comparison says of a categorical column; shares of all rows, "missing" being no id."""
    present = ids[ids > 0]
    counts: Array = np.sort(np.unique(present, return_counts=True)[1])[::-1]
    n, distinct = max(len(ids), 1), len(counts)
    return {
        "distinct": distinct,
        "top_1": float(counts[:1].sum() / n),
        "top_1_percent": top_share(counts, distinct / 100) / n,
        "top_10_percent": top_share(counts, distinct / 10) / n,
        "singletons": int((counts == 1).sum()),
        "missing": float((ids == 0).mean()) if len(ids) else 0.0,
        "unseen": unseen_share(ids),
    }


def dense_measures(values: Array | None) -> dict[str, float | None]:
    """What the comparison says of an integer column; None where the folder does not tell."""
    keys = ["missing", *(f"q{round(100 * q)}" for q in QUANTILES)]
    if values is None:
        return dict.fromkeys(keys, None)
    present = values[~np.isnan(values)]
    found = np.quantile(present, QUANTILES, method="lower") if len(present) else np.zeros(len(QUANTILES))
    return dict(zip(keys, [float(np.isnan(values).mean()), *map(float, found)], strict=True))


def integer_correlations(table: Table) -> Array | None:
    """Rank correlations of all pairs of integer columns, over rows with both present."""
    if table.integers is None:
        return None
    ranks: Array = np.full(table.integers.shape, np.nan)
    for j in range(table.integers.shape[1]):
        present = ~np.isnan(table.integers[:, j])
        _, inverse, counts = np.unique(table.integers[present, j], return_inverse=True, return_counts=True)
        ranks[present, j] = (np.cumsum(counts) - 0.5 * counts)[inverse]
    result = []
    for a in range(ranks.shape[1]):
        for b in range(a):
            both = ~np.isnan(ranks[:, a]) & ~np.isnan(ranks[:, b])
            varies = both.sum() > 2 and np.ptp(ranks[both, a]) > 0 and np.ptp(ranks[both, b]) > 0
            result.append(np.corrcoef(ranks[both, a], ranks[both, b])[0, 1] if varies else 0.0)
    return np.array(result)


def compare(a: Table, b: Table) -> dict[str, Any]:
    """All measures of both, JSON values only."""
    pair: Sequence[Table] = (a, b)
    sparse = [
        {"column": name, "a": sparse_measures(a.ids[:, c]), "b": sparse_measures(b.ids[:, c])}
        for c, name in enumerate(SPARSE_COLUMNS)
    ]
    dense = []
    for j, name in enumerate(DENSE_COLUMNS):
        of = [dense_measures(None if t.integers is None else t.integers[:, j]) for t in pair]
        dense.append({"column": name, "a": of[0], "b": of[1]})
    dependences = []
    for fine, coarse in DEPENDENCES:
        i, k = SPARSE_COLUMNS.index(fine), SPARSE_COLUMNS.index(coarse)
        found: dict[str, Any] = {"fine": fine, "coarse": coarse}
        for key, t in zip("ab", pair, strict=True):
            found[key] = {
                "forward": pair_agreement(t.ids[:, i], t.ids[:, k]),
                "back": pair_agreement(t.ids[:, k], t.ids[:, i]),
            }
        dependences.append(found)
    correlations = [integer_correlations(t) for t in pair]
    gap = None
    if correlations[0] is not None and correlations[1] is not None:
        gap = {
            "mean_absolute_a": float(np.abs(correlations[0]).mean()),
            "mean_absolute_difference": float(np.abs(correlations[0] - correlations[1]).mean()),
        }
    return {
        "rows": {"a": len(a.labels), "b": len(b.labels)},
        "click_rate": {"a": float(a.labels.mean()), "b": float(b.labels.mean())},
        "sparse": sparse,
        "dense": dense,
        "dependences": dependences,
        "integer_rank_correlations": gap,
        "worst": worst(sparse, dense, dependences),
    }


def worst(
    sparse: Sequence[dict[str, Any]], dense: Sequence[dict[str, Any]], dependences: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The largest differences: of shares in points, of distinct ids relative to `a`."""

    def largest(entries: list[tuple[float, str]]) -> dict[str, Any]:
        value, where = max(entries, default=(0.0, ""))
        return {"difference": value, "column": where}

    shares = ("top_1", "top_1_percent", "top_10_percent", "missing", "unseen")
    result = {key: largest([(abs(s["a"][key] - s["b"][key]), s["column"]) for s in sparse]) for key in shares}
    result["distinct"] = largest(
        [(abs(s["b"]["distinct"] / max(s["a"]["distinct"], 1) - 1), s["column"]) for s in sparse]
    )
    result["singletons_of_rows"] = largest(
        [
            (abs(s["b"]["singletons"] - s["a"]["singletons"]) / max(s["a"]["distinct"], 1), s["column"])
            for s in sparse
        ]
    )
    if all(d[k]["missing"] is not None for d in dense for k in "ab"):
        result["missing_integer"] = largest(
            [(abs(d["a"]["missing"] - d["b"]["missing"]), d["column"]) for d in dense]
        )
    for way in ("forward", "back"):
        result[f"dependence_{way}"] = largest(
            [(abs(d["a"][way] - d["b"][way]), f"{d['fine']}->{d['coarse']}") for d in dependences]
        )
    return result


def format_comparison(found: dict[str, Any]) -> str:
    """The comparison for a person, at most 100 columns wide; each cell is `a` above or before `b`."""

    def percent(x: float) -> str:
        return f"{100 * x:.1f}"

    def both(entry: dict[str, Any], key: str) -> str:
        return f"{percent(entry['a'][key]):>6}{percent(entry['b'][key]):>6}"

    lines = [
        f"a: {found['rows']['a']:,} rows, clicks {found['click_rate']['a']:.4f}    "
        f"b: {found['rows']['b']:,} rows, clicks {found['click_rate']['b']:.4f}",
        "",
        "categorical columns, a then b; shares of the rows in %; missing is not an id",
        "         distinct ids      singletons       top 1      top 1 %     top 10 %     missing      unseen",
    ]
    for s in found["sparse"]:
        lines.append(
            f"{s['column']:<4}{s['a']['distinct']:>8}{s['b']['distinct']:>8}"
            f"{s['a']['singletons']:>8}{s['b']['singletons']:>8}"
            + "".join(both(s, k) for k in ("top_1", "top_1_percent", "top_10_percent", "missing", "unseen"))
        )
    lines += ["", "integer columns, a / b: missing in %, quantiles of the present values"]
    keys = ["missing", *(f"q{round(100 * q)}" for q in QUANTILES)]
    lines.append(
        "    " + "".join(f"{k:>14}" for k in ("missing", *(f"{100 * q:g} %" for q in QUANTILES)))[:96]
    )
    for d in found["dense"]:
        cells = []
        for key in keys:
            values = [d[k][key] for k in "ab"]
            shown = ["-" if v is None else percent(v) if key == "missing" else f"{v:.0f}" for v in values]
            cells.append(f"{'/'.join(shown):>13}")
        lines.append(f"{d['column']:<4}" + "".join(cells))
    lines += [
        "",
        "dependences: chance in % that two rows with the same id of one column share the other's, a then b",
        "               fine -> coarse   coarse -> fine",
    ]
    for d in found["dependences"]:
        name = f"{d['fine']} -> {d['coarse']}"
        lines.append(f"{name:<12}   {both(d, 'forward')}     {both(d, 'back')}")
    lines += ["", "largest differences (points; distinct and singletons in % of a's distinct ids)"]
    for key, entry in found["worst"].items():
        lines.append(f"  {key.replace('_', ' '):<22}{100 * entry['difference']:>6.2f}  {entry['column']}")
    return "\n".join(lines)
