"""The report of one training run: curves, calibration, bytes per table, settings."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from recsys_opt.report.history import History, flat
from recsys_opt.report.page import Page, megabytes, number
from recsys_opt.report.svg import Series, chart, legend
from recsys_opt.run_folder import RunFolder

METRICS = (
    ("AUC", "auc", 5),
    ("logloss", "logloss", 5),
    ("normalised entropy", "normalised_entropy", 5),
    ("accuracy", "accuracy", 4),
    ("calibration", "calibration", 4),
    ("click rate", "click_rate", 4),
)
ROWS_LABEL = "training rows seen"


def write_run_report(run: Path) -> Path:
    """Writes report.html into a run folder, from its config.json and metrics.jsonl."""
    history = History.read(run)
    dataset, config = history.description["dataset"], history.description["config"]
    lines = history.train()
    rows = lines[-1]["rows"] if lines else 0
    page = Page(
        f"DLRM on {dataset['name']}: {history.name}",
        f"{rows:,} training rows seen, batch size {config['batch_size']:,}, "
        f"{config['optimizer']['algorithm']}, {config['precision']}, seed {config['seed']}",
    )
    page.tiles(_tiles(history))
    page.heading("Learning curves")
    page.plots(
        [
            ("AUC", _curves(history, "auc")),
            ("Logloss", _curves(history, "logloss")),
            ("Calibration: click rate of rows with similar predictions", _calibration(history)),
            ("Speed, samples per second", _single(history, "samples_per_s", "samples per second")),
        ]
    )
    page.heading("Quality")
    _quality(page, history)
    page.heading("Bytes per table")
    _table_bytes(page, history)
    page.heading("Settings")
    page.settings(
        {
            "Training": flat(config),
            "Dataset": {k: v for k, v in dataset.items() if k not in ("num_embeddings", "bayes")},
            "Made on": history.description["environment"],
        }
    )
    return page.write(RunFolder(run).report_path)


def _tiles(history: History) -> list[tuple[str, str]]:
    tiles = []
    split = "test" if history.final("test") else "validation"
    final = history.final(split)
    if final:
        tiles += [
            (number(final["auc"], 4), f"{split} AUC"),
            (number(final["logloss"], 4), f"{split} logloss"),
            (number(final["calibration"], 3), f"{split} calibration (1 is right)"),
        ]
    stored, dense = history.storage_bytes(), history.dense_bytes()
    tiles.append((megabytes(stored), "embedding tables"))
    if dense > stored:
        tiles.append((f"{dense / stored:.1f}x", f"smaller than dense ({megabytes(dense)})"))
    speed = history.samples_per_s()
    if speed:
        tiles.append((f"{speed:,.0f}", "samples per second"))
    return tiles


def _curves(history: History, field: str) -> str:
    series = [history.curve(field, 0, name="training, last 65,536 rows before they are learnt")]
    series += [history.curve(field, 1, split="validation"), history.curve(field, 2, split="test")]
    series = [s for s in series if s.points()]
    body = chart(series, x_label=ROWS_LABEL, y_label=field, levels=history.bayes(field))
    return legend([(s.name, s.colour) for s in series]) + body if body else ""


def _single(history: History, field: str, label: str) -> str:
    return chart([history.curve(field, 0)], x_label=ROWS_LABEL, y_label=label)


def _calibration(history: History) -> str:
    series = []
    for colour, split in ((1, "validation"), (2, "test")):
        final = history.final(split)
        if final:
            bins = final["reliability"]
            x, y = [b["mean_prediction"] for b in bins], [b["click_rate"] for b in bins]
            series.append(Series(split, x, y, colour, markers=True))
    body = chart(series, x_label="mean prediction", y_label="click rate", square=True, diagonal=True)
    return legend([(s.name, s.colour) for s in series]) + body if body else ""


def _quality(page: Page, history: History) -> None:
    rows = []
    for split in ("validation", "test"):
        final = history.final(split)
        if final:
            rows.append([split, f"{final['rows']:,}", *(number(final[f], d) for _, f, d in METRICS)])
        best = (history.description["dataset"].get("bayes") or {}).get(split)
        if best:
            rows.append([f"{split}, best possible", "", *(number(best.get(f), d) for _, f, d in METRICS)])
    page.table(["rows of", "count", *(m[0] for m in METRICS)], rows, numbers=range(1, 2 + len(METRICS)))


def _table_bytes(page: Page, history: History) -> None:
    tables = sorted(history.tables(), key=lambda t: -t["dense_bytes"])
    largest = max(t["dense_bytes"] for t in tables)
    rows = [
        [
            t["name"],
            f"{t['num_embeddings']:,}",
            _representation(t),
            megabytes(t["dense_bytes"]),
            megabytes(t["storage_bytes"]),
            _ratio(t["dense_bytes"], t["storage_bytes"]),
            _bars(t, largest),
        ]
        for t in tables
    ]
    dense, stored = history.dense_bytes(), history.storage_bytes()
    page.table(
        ["table", "rows", "representation", "dense", "stored", "smaller", "dense and stored, log scale"],
        rows,
        numbers=(1, 3, 4, 5),
        raw=(6,),
        total=[
            "all",
            f"{sum(t['num_embeddings'] for t in tables):,}",
            "",
            megabytes(dense),
            megabytes(stored),
            _ratio(dense, stored),
            "",
        ],
    )


def _representation(table: dict[str, Any]) -> str:
    name: str = table["representation"]
    options = ", ".join(f"{k} {v}" for k, v in table["options"].items())
    return f"{name} ({options})" if options else name


def _ratio(dense: int, stored: int) -> str:
    return f"{dense / stored:,.1f}x" if stored != dense else "–"


def _bars(table: dict[str, Any], largest: int) -> str:
    def width(size: int) -> float:
        return 100 * math.log10(max(size, 10)) / math.log10(max(largest, 100))

    bars = [f'<i class="b0" style="width:{width(table["dense_bytes"]):.0f}%"></i>']
    if table["storage_bytes"] != table["dense_bytes"]:
        bars.append(f'<i class="b1" style="width:{width(table["storage_bytes"]):.0f}%"></i>')
    return f'<div class="bar">{"".join(bars)}</div>'
