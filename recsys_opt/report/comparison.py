"""Several runs side by side: quality, bytes, speed, and the settings in which they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from recsys_opt.errors import InputError
from recsys_opt.report.history import History, flat
from recsys_opt.report.page import Page, megabytes, number, readable
from recsys_opt.report.run import METRICS, ROWS_LABEL
from recsys_opt.report.svg import Series, chart, legend

_COLOURS = 6


def comparison(runs: Sequence[Path] | Mapping[str, Path], out: Path, *, title: str = "Runs compared") -> Path:
    """Writes one page that compares runs; the first is what the others are compared with.

    runs  run folders, or names for them and the folders
    out   the HTML file
    """
    named = runs if isinstance(runs, Mapping) else {run.resolve().name: run for run in runs}
    if not named:
        raise InputError("there are no runs to compare")
    histories = [History.read(Path(path), name) for name, path in named.items()]
    first = histories[0]
    split = "test" if all(h.final("test") for h in histories) else "validation"
    dataset = first.description["dataset"]
    page = Page(title, f"{len(histories)} runs on {dataset['name']}, compared on the {split} rows")
    page.tiles(_tiles(histories, split))
    page.heading("Side by side")
    _figures(page, histories, split)
    page.heading("Learning curves")
    page.plots(
        [
            ("Validation AUC", _overlay(histories, "auc", "validation")),
            ("Validation logloss", _overlay(histories, "logloss", "validation")),
            ("Training logloss, last 65,536 rows", _overlay(histories, "logloss", None)),
            (f"AUC on {split} rows against bytes of the tables", _trade_off(histories, split)),
        ]
    )
    page.heading("Settings that differ")
    _settings(page, histories)
    page.heading("The same for all, and where they were made")
    common = {
        k: v
        for k, v in flat(first.description["config"]).items()
        if all(flat(h.description["config"]).get(k) == v for h in histories)
    }
    page.settings({"Training": common, "Made on": first.description["environment"]})
    return page.write(Path(out))


def _tiles(histories: Sequence[History], split: str) -> list[tuple[str, str]]:
    tiles = []
    first = histories[0]
    for history in histories:
        final = history.final(split)
        if final:
            tiles.append((number(final["auc"], 4), f"{split} AUC, {history.name}"))
    for history in histories[1:]:
        smaller = first.storage_bytes() / history.storage_bytes()
        if smaller > 1.01:
            sizes = f"{megabytes(first.storage_bytes())} to {megabytes(history.storage_bytes())}"
            tiles.append((f"{smaller:.1f}x smaller", f"tables of {history.name}: {sizes}"))
    return tiles


def _figures(page: Page, histories: Sequence[History], split: str) -> None:
    base = histories[0].final(split)
    rows = []
    for history in histories:
        final = history.final(split) or {}
        auc, reference = final.get("auc"), (base or {}).get("auc")
        difference = "–" if auc is None or reference is None else f"{auc - reference:+.5f}"
        speed = history.samples_per_s()
        rows.append(
            [
                history.name,
                number(auc, 5),
                difference,
                *(number(final.get(f), d) for _, f, d in METRICS[1:]),
                megabytes(history.storage_bytes()),
                f"{history.dense_bytes() / history.storage_bytes():.1f}x",
                f"{speed:,.0f}" if speed else "–",
            ]
        )
    best = (histories[0].description["dataset"].get("bayes") or {}).get(split)
    if best:
        gap = f"{best['auc'] - base['auc']:+.5f}" if base and base["auc"] is not None else "–"
        found = [number(best.get(f), d) for _, f, d in METRICS[1:]]
        rows.append(["best possible", number(best["auc"], 5), gap, *found, "", "", ""])
    columns = ["run", "AUC", "difference", *(m[0] for m in METRICS[1:]), "tables", "smaller", "samples/s"]
    page.table(columns, rows, numbers=range(1, len(columns)))


def _overlay(histories: Sequence[History], field: str, split: str | None) -> str:
    series = [h.curve(field, i % _COLOURS, split=split, name=h.name) for i, h in enumerate(histories)]
    levels = histories[0].bayes(field) if split else []
    body = chart(series, x_label=ROWS_LABEL, y_label=field, levels=levels)
    return legend([(s.name, s.colour) for s in series]) + body if body else ""


def _trade_off(histories: Sequence[History], split: str) -> str:
    series = []
    for i, history in enumerate(histories):
        final = history.final(split)
        if final:
            x = [history.storage_bytes() / 1e6]
            series.append(Series(history.name, x, [final["auc"]], i % _COLOURS, markers=True))
    body = chart(series, x_label="embedding tables, MB", y_label="AUC", log_x=True)
    return legend([(s.name, s.colour) for s in series]) + body if body else ""


def _settings(page: Page, histories: Sequence[History]) -> None:
    settings = [flat(h.description["config"]) for h in histories]
    names = [n for n in settings[0] if any(s.get(n) != settings[0][n] for s in settings)]
    rows = [[n, *(readable(s.get(n)) for s in settings)] for n in names]
    page.table(["setting", *(h.name for h in histories)], rows)
