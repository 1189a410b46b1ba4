"""The table that shows what a memory budget came to."""

from __future__ import annotations

from recsys_opt.embeddings.tt_budget import BudgetChoice, TableChoice


def budget_table(choice: BudgetChoice) -> str:
    """One line a table and the totals; at most 100 columns wide."""
    width = max(5, *(len(_short(t.config.name)) for t in choice.tables))
    lines = [
        f"{'table':<{width}} {'rows':>11} {'seen ids':>11}  {'as':<6} {'ranks':<7} {'shape':<12}"
        f"{'bytes':>14}{'smaller':>10}{'cost':>7}"
    ]
    lines += [_line(t, width) for t in choice.tables]
    rows = sum(t.config.num_embeddings for t in choice.tables)
    seen = sum(t.seen for t in choice.tables)
    lines.append(
        f"{'total':<{width}} {rows:>11,} {seen:>11,}  {'':<6} {'':<7} {'':<12}"
        f"{choice.bytes:>14,}{choice.dense_bytes / choice.bytes:>9.1f}x{1e3 * choice.loss:>7.2f}"
    )
    lines.append(
        f"budget {choice.budget_bytes:,} bytes, {choice.budget_bytes - choice.bytes:,} left; optimizer state "
        f"{choice.optimizer_bytes:,} bytes besides"
    )
    lines.append(
        "cost: expected loss against a dense table, 1e-3 nats of logloss, as if the column stood alone"
    )
    if choice.binds is None:
        lines.append("a larger budget would gain nothing")
    else:
        lines.append(
            f"a larger budget would help table {_short(choice.binds)} first: about "
            f"{1e3 * choice.loss_per_mb:.3f} less cost per MB"
        )
    return "\n".join(lines)


def _line(table: TableChoice, width: int) -> str:
    config = table.config
    ranks = ",".join(map(str, config.options.get("tt_ranks", ()))) or "-"
    shape = "x".join(map(str, config.options.get("tt_p_shapes", ()))) or "-"
    return (
        f"{_short(config.name):<{width}} {config.num_embeddings:>11,} {table.seen:>11,}  "
        f"{config.representation:<6} {ranks:<7} {shape:<12}{table.bytes:>14,}{table.smaller:>9.1f}x"
        f"{1e3 * table.loss:>7.2f}"
    )


def _short(name: str) -> str:
    return name if len(name) <= 14 else name[:13] + "…"
