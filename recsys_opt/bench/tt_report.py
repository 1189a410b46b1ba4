"""`bench tt` for people: a table of ratios, and a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recsys_opt.bench.ceilings import Ceilings
from recsys_opt.bench.tt_candidates import FROZEN
from recsys_opt.report.figure import figure
from recsys_opt.report.svg import Series, chart

Row = Mapping[str, Any]
_DRAWN = (
    "dense",
    "fbgemm",
    "torch",
    "tt",
    "tt-bf16",
    "tt-fused",
    "tt-fused-bf16",
    "tt-prefix",
    "tt-prefix-bf16",
    "tt-graph",
    "tt-fused-graph",
)
_NAMES = {
    "dense": "nn.EmbeddingBag",
    "fbgemm": "FBGEMM",
    "torch": "TT in torch",
    "tt": "TTEmbeddingBag",
    "tt-fused": "TTEmbeddingBag, fused SGD",
    "tt-bf16": "TTEmbeddingBag, bf16 products",
    "tt-fused-bf16": "fused SGD, bf16 products",
    "tt-prefix": "frozen to prefixes",
    "tt-prefix-bf16": "frozen to prefixes, bf16",
    "tt-graph": "TTEmbeddingBag, CUDA graph",
    "tt-fused-graph": "fused SGD, CUDA graph",
}
_HEADS = {"tt-cores": "cores", "tt-prefix": "prefix", "tt-prefix-bf16": "bf16", "tt-dense": "whole"}
_TABLE = ("device", "num_embeddings", "embedding_dim", "shapes", "work", "caches")
_CASE = ("rank", "threads", "ids", "bag_size", "batch_size")


def text(rows: Sequence[Row], ceilings: Sequence[Ceilings]) -> str:
    """A line per case, at most 120 columns: nn.EmbeddingBag's time, the others' as multiples of it.

    Tensor trains that train also have the 20 % and 80 % quantiles of the rounds' ratios; the last column is
    the best of these' share of the time that the machine's ceilings allow.
    """
    tables: dict[tuple[Any, ...], dict[tuple[Any, ...], dict[str, Row]]] = {}
    for row in rows:
        cases = tables.setdefault(tuple(row[key] for key in _TABLE), {})
        cases.setdefault(tuple(row[key] for key in _CASE), {})[row["candidate"]] = row
    lines = [_ceiling(c) for c in ceilings]
    for cases in tables.values():
        names = list(dict.fromkeys(n for found in cases.values() for n in found if n != "dense"))
        row = next(iter(next(iter(cases.values())).values()))
        table = f"{row['num_embeddings']:,} x {row['embedding_dim']}, TT {row['shapes']}, {row['device']}"
        heads = "".join(f"{_HEADS.get(name, name):>{_width(name)}}" for name in names)
        lines += ["", f"{row['work']}, {row['caches']} caches: {table}"]
        lines.append(f"{'R   ids         bag x B thr':28}{'nn.Emb us':>10}{heads}{'roof':>6}")
        lines += [_line(case, found, names) for case, found in cases.items()]
    return "\n".join(lines)


def _line(case: tuple[Any, ...], found: Mapping[str, Row], names: Sequence[str]) -> str:
    rank, threads, ids, bag_size, batch_size = case
    dense = found.get("dense")
    first = f"{dense['median_us']:>10,.0f}" if dense else f"{'':10}"
    trained = [row for name, row in found.items() if name.startswith("tt") and name not in FROZEN]
    roof = max((row["share_of_roof"] for row in trained), default=None)
    share = "" if roof is None else f"{100 * roof:.0f} %"
    where = f"{rank:<4}{ids:8}{f'{bag_size} x {batch_size}':>11}{threads:>4}"
    return f"{where:28}{first}{''.join(_cell(found.get(n), n) for n in names)}{share:>6}".rstrip()


def _width(name: str) -> int:
    return max(14, len(name) + 1) if name.startswith("tt") and name not in FROZEN else 7


def _cell(row: Row | None, name: str) -> str:
    width = _width(name)
    if row is None:
        return " " * width
    if "ratio" not in row:
        return f"{row['median_us']:,.0f} us".rjust(width)
    if width < 13:
        return f"{row['ratio']:>{width}.{0 if row['ratio'] >= 100 else 2}f}"
    return f"{row['ratio']:.2f} {row['ratio_p20']:.1f}-{row['ratio_p80']:.1f}".rjust(width)


def _ceiling(c: Ceilings) -> str:
    read = ", ".join(f"{level} {rate / 1e9:.0f}" for level, rate in c.read_bytes_per_s.items())
    gather = ", ".join(f"{size} B {rate / 1e9:.1f}" for size, rate in c.gather_bytes_per_s.items())
    where = f"{c.threads} thread{'s' * (c.threads != 1)}" if c.threads else "GPU"
    return (
        f"{where}: fp32 {c.fp32_flops_per_s / 1e9:,.0f} GFLOP/s, bf16 {c.bf16_flops_per_s / 1e9:,.0f}\n"
        f"  GB/s in order: {read}; rows at random: {gather}"
    )


def plot(rows: Sequence[Row]) -> str:
    """Nanoseconds per id against the batch size, a plot per work and distribution of ids.

    Of the first row's table, rank, number of threads and bag size.
    """
    first = rows[0]
    keys = ("num_embeddings", "embedding_dim", "shapes", "rank", "threads", "bag_size", "caches")
    shown = [row for row in rows if all(row[key] == first[key] for key in keys)]
    names = [name for name in _DRAWN if any(row["candidate"] == name for row in shown)]
    sizes = sorted({float(row["batch_size"]) for row in shown})
    plots = []
    for work in ("forward", "step"):
        for ids in dict.fromkeys(row["ids"] for row in shown):
            series = []
            for colour, name in enumerate(names):
                own = [r for r in shown if (r["work"], r["ids"], r["candidate"]) == (work, ids, name)]
                own.sort(key=lambda r: int(r["batch_size"]))
                x = [float(r["batch_size"]) for r in own]
                y = [1e3 * r["median_us"] / (r["batch_size"] * r["bag_size"]) for r in own]
                series.append(Series(_NAMES[name], x, y, colour, markers=True))
            drawn = chart(
                series, x_label="batch size", y_label="ns per id", log_x=True, log_y=True, x_ticks=sizes
            )
            if drawn:
                plots.append((f"{work}, {ids} ids: ns per id", drawn))
    where = first["device"] if first["device"] != "cpu" else f"{first['threads']} thread(s)"
    table = f"{first['num_embeddings']:,} x {first['embedding_dim']}"
    return figure(
        f"{table}: tensor train of rank {first['rank']} beside dense tables",
        f"TT {first['shapes']}; {first['bag_size']} id(s) a bag; {where}; {first['caches']} caches; medians; "
        "less is better",
        plots,
        [(_NAMES[name], colour) for colour, name in enumerate(names)],
    )
