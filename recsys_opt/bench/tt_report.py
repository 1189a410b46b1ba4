"""`bench tt` for people: a table of ratios, and a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recsys_opt.bench.ceilings import Ceilings
from recsys_opt.bench.tt_candidates import FROZEN
from recsys_opt.report.figure import figure
from recsys_opt.report.svg import Series, chart

Row = Mapping[str, Any]
_DRAWN = ("dense", "fbgemm", "torch", "tt", "tt-fused", "tt-prefix")
_NAMES = {
    "dense": "nn.EmbeddingBag",
    "fbgemm": "FBGEMM",
    "torch": "TT in torch",
    "tt": "TTEmbeddingBag",
    "tt-fused": "TTEmbeddingBag, fused SGD",
    "tt-prefix": "frozen to prefixes",
}
_TABLE = ("device", "num_embeddings", "embedding_dim", "shapes")
_CASE = (*_TABLE, "rank", "threads", "ids", "bag_size", "batch_size", "work")


def text(rows: Sequence[Row], ceilings: Sequence[Ceilings]) -> str:
    """A line per case and work, at most 100 columns: nn.EmbeddingBag's time, the others' as multiples of it.

    Tensor trains that train also have the 20 % and 80 % quantiles of the rounds' ratios.
    """
    names = list(dict.fromkeys(str(row["candidate"]) for row in rows if row["candidate"] != "dense"))
    cases: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        cases.setdefault(tuple(row[key] for key in _CASE), {})[row["candidate"]] = row
    lines = [_ceiling(c) for c in ceilings]
    table: Any = None
    for found in cases.values():
        row = next(iter(found.values()))
        if (head := tuple(row[key] for key in _TABLE)) != table:
            table = head
            lines += [
                "",
                f"{row['num_embeddings']:,} x {row['embedding_dim']}, TT {row['shapes']}, on {row['device']}",
            ]
            heads = [f"{name:>{_width(name)}}" for name in names]
            lines.append(f"{'R  ids       bag x B  thr work':32}{'dense us':>9}{''.join(heads)}{'roof':>6}")
        dense = found.get("dense")
        first = f"{dense['median_us']:>9,.0f}" if dense else f"{'':9}"
        bag = f"{row['bag_size']} x {row['batch_size']}"
        case = f"{row['rank']:<3}{row['ids']:8}{bag:>10}{row['threads']:>4} {row['work']}"
        ours = [
            found[name] for name in names if name in found and name.startswith("tt") and name not in FROZEN
        ]
        roof = max((row["share_of_roof"] for row in ours), default=None)
        share = "" if roof is None else f"{100 * roof:.0f} %"
        lines.append(f"{case:32}{first}{''.join(_cell(found.get(n), n) for n in names)}{share:>6}".rstrip())
    return "\n".join(lines)


def _width(name: str) -> int:
    return 10 if name in FROZEN else 16 if name.startswith("tt") else 7


def _cell(row: Row | None, name: str) -> str:
    width = _width(name)
    if row is None or "ratio" not in row:
        return " " * width if row is None else f"{row['median_us']:>{width - 3},.0f} us"
    if width < 16:
        return f"{row['ratio']:>{width}.{0 if row['ratio'] >= 100 else 2}f}"
    return f"{row['ratio']:.2f} ({row['ratio_p20']:.1f}-{row['ratio_p80']:.1f})".rjust(width)


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
    keys = ("num_embeddings", "embedding_dim", "shapes", "rank", "threads", "bag_size")
    shown = [row for row in rows if all(row[key] == first[key] for key in keys)]
    names = [name for name in _DRAWN if any(row["candidate"] == name for row in shown)]
    plots = []
    for work in ("forward", "step"):
        for ids in dict.fromkeys(row["ids"] for row in shown):
            series = []
            for name in names:
                own = [r for r in shown if (r["work"], r["ids"], r["candidate"]) == (work, ids, name)]
                own.sort(key=lambda r: int(r["batch_size"]))
                x = [float(r["batch_size"]) for r in own]
                y = [1e3 * r["median_us"] / (r["batch_size"] * r["bag_size"]) for r in own]
                series.append(Series(_NAMES[name], x, y, _DRAWN.index(name), markers=True))
            drawn = chart(series, x_label="batch size", y_label="ns per id", log_x=True, log_y=True)
            if drawn:
                plots.append((f"{work}, {ids} ids: ns per id", drawn))
    where = first["device"] if first["device"] != "cpu" else f"{first['threads']} thread(s)"
    table = f"{first['num_embeddings']:,} x {first['embedding_dim']}"
    return figure(
        f"{table}: tensor train of rank {first['rank']} beside dense tables",
        f"TT {first['shapes']}; {first['bag_size']} id(s) a bag; {where}; medians; less is better",
        plots,
        [(_NAMES[name], _DRAWN.index(name)) for name in names],
    )
