"""Access statistics as a table of at most 100 columns."""

from __future__ import annotations

import textwrap

from recsys_opt.cli.progress import short_count
from recsys_opt.data.access_statistics import AccessStatistics
from recsys_opt.data.access_table import TableStatistics, expected_dead_rows, values_before_hashing

_NAME_WIDTH = 20


def statistics_table(found: AccessStatistics, top: int) -> list[str]:
    """A line for each of the `top` largest tables, one for the sum, and what is worth knowing besides."""
    tables = sorted(found.tables.values(), key=lambda t: -t.num_embeddings)
    shown = tables[:top]
    width = min(max((len(t.name) for t in shown), default=5), _NAME_WIDTH)
    width = max(width, 10)
    lines = [
        f"{'':<{width}}{'':>9}{'':>9}{'':>9}{'never':>7}{'cover-':>8}{'pool-':>7}"
        f"{'to the hottest':>19}{'':>8}",
        f"{'table':<{width}}{'rows':>9}{'lookups':>9}{'seen':>9}{'seen':>7}{'age':>8}{'ing':>7}"
        f"{'1 %':>7}{'10 %':>7}{'30 %':>6}{'drift':>8}",
    ]
    lines += [_line(t, width) for t in shown]
    if len(tables) > len(shown):
        lines.append(f"... and {len(tables) - len(shown):,} smaller tables (--top {len(tables)} prints all)")
    if len(tables) > 1:
        rows, seen = sum(t.num_embeddings for t in tables), sum(t.distinct for t in tables)
        lookups = sum(t.lookups for t in tables)
        lines.append(
            f"{f'all {len(tables):,}':<{width}}{short_count(rows):>9}{short_count(lookups):>9}"
            f"{short_count(seen):>9}{_percent((rows - seen) / rows):>7}"
        )
    return lines + _notes(found, shown)


def table_details(table: TableStatistics) -> list[str]:
    """One table: how many rows are looked up how often, and what the hottest take."""
    m = table.num_embeddings
    lines = [
        f"{table.name[:60]}: {m:,} rows; {table.lookups:,} lookups of {table.distinct:,} rows in "
        f"{table.samples:,} samples",
        "",
        f"{'looked up':>23}{'rows':>14}{'of all':>8}{'lookups':>16}{'of all':>8}",
        f"{'never':>23}{table.dead_rows:>14,}{_percent(table.dead_rows / m):>8}",
    ]
    for low, high, rows, lookups in table.histogram():
        times = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        part = _percent(lookups / max(table.lookups, 1))
        lines.append(f"{times:>23}{rows:>14,}{_percent(rows / m):>8}{lookups:>16,}{part:>8}")
    lines += ["", f"{'hottest rows':>23}{'of all':>14}{'to come':>12}{'seen':>8}   (share of the lookups)"]
    shares = (0.0001, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.5)
    for rows in dict.fromkeys(round(share * m) for share in shares if share * m >= 1):
        lines.append(
            f"{rows:>23,}{f'{100 * rows / m:.2f}%':>14}{_percent(table.curve.share_of(rows)):>12}"
            f"{_percent(table.curve_in_sample.share_of(rows)):>8}"
        )
    return lines


def _line(table: TableStatistics, width: int) -> str:
    name = table.name if len(table.name) <= width else table.name[: width - 3] + "..."
    m = table.num_embeddings
    shares = [_percent(table.curve.share_of(share * m)) for share in (0.01, 0.1, 0.3)]
    return (
        f"{name:<{width}}{short_count(m):>9}{short_count(table.lookups):>9}"
        f"{short_count(table.distinct):>9}{_percent(table.dead_rows / m):>7}"
        f"{_percent(table.coverage):>8}{table.pooling_factor:>7.2f}"
        f"{shares[0]:>7}{shares[1]:>7}{shares[2]:>6}{table.drift:>8.3f}"
    )


def _points(share: float) -> str:
    return f"{100 * share:.2f}"


def _percent(share: float) -> str:
    text = f"{100 * share:.1f}"
    return f"{'100' if text == '100.0' else text}%"


def _notes(found: AccessStatistics, shown: list[TableStatistics]) -> list[str]:
    notes = [
        "",
        *_wrapped(
            "Shares are of lookups to come (cross-fitted); drift is the share of the later "
            "half's lookups that the earlier half's ranking misses beyond what a random half's would."
        ),
    ]
    derived = found.source.get("derived_sizes", ())
    if derived:
        some = ", ".join(derived[:6]) + (", ..." if len(derived) > 6 else "")
        notes += _wrapped(f"Rows are the largest id + 1, for want of --rows: {some}.")
    for t in shown:
        if t.sampling is not None:
            notes += _wrapped(
                f"{t.name}: 1 in {1 << t.sampling.level} rows counted: standard error of a share at "
                f"most {_points(t.sampling.share_error.max())}, at 1/10/30 % of rows "
                + "/".join(
                    _points(t.sampling.share_error_of(f * t.num_embeddings, t.num_embeddings))
                    for f in (0.01, 0.1, 0.3)
                )
                + f" points of a percent; {short_count(t.sampling.head_rows)} hottest rows ranked, counts "
                f"at most {t.sampling.head_error:,} too high."
            )
    hashed = [t for t in shown if t.name in found.source.get("hashed", ()) and t.distinct]
    if hashed:
        some = ", ".join(f"{t.name} {_percent(_shared(t))}" for t in hashed[:5])
        notes += _wrapped(
            "Ids are hashed: as many distinct values as rows leave "
            f"{_percent(expected_dead_rows(1e9, 10**9) / 1e9)} of the rows dead (the birthday paradox). "
            f"Of the values seen so far, this share has a row with another one: {some}"
            f"{', ...' if len(hashed) > 5 else ''}."
        )
    return notes


def _shared(table: TableStatistics) -> float:
    """Share of the distinct values that collide: those beyond one a row."""
    values = values_before_hashing(table.distinct, table.num_embeddings)
    return 1 - table.distinct / values if values != float("inf") else 1.0


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 100)
