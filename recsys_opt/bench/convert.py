"""What a trained model loses when its tables are fitted by, or cut to, tensor trains of less rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recsys_opt.data.dataset import Dataset
from recsys_opt.errors import InputError
from recsys_opt.models.convert import TableFit, convert_model
from recsys_opt.models.saved import load_model
from recsys_opt.progress import Progress
from recsys_opt.tables import TableConfig
from recsys_opt.training.evaluate import evaluate


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    least_rows: int = 100_000
    """Dense tables of at least so many rows are fitted; tensor trains are rounded, whatever their size."""
    ranks: tuple[int, ...] = ()
    tolerances: tuple[float, ...] = (0.01, 0.05, 0.1, 0.2, 0.4, 0.8)
    split: str = "test"

    def __post_init__(self) -> None:
        if any(rank < 1 for rank in self.ranks):
            raise InputError(f"ranks {list(self.ranks)}; every one must be at least 1")


def run(
    run_folder: Path | str, dataset: Dataset, settings: Settings, progress: Progress
) -> list[dict[str, Any]]:
    """The trained model, then the same with each rank and each tolerance; nothing is trained."""
    model = load_model(run_folder)
    configs = model.embeddings.configs
    asked: list[tuple[int | None, float | None]] = [(None, None)]
    asked += [(rank, None) for rank in settings.ranks]
    asked += [(None, tolerance) for tolerance in settings.tolerances]
    progress.start("models", len(asked), "model")
    rows = []
    for rank, tolerance in asked:
        if rank is None and tolerance is None:
            made, fits = model, list[TableFit]()
        else:
            tables = [_asked(config, rank or 1, settings.least_rows) for config in configs]
            made, fits = convert_model(model, tables, tolerance=tolerance)
        metrics = evaluate(made, dataset, settings.split)
        rows.append(
            {
                "rank": rank,
                "tolerance": tolerance,
                "tables": [fit.to_json() for fit in fits],
                "fitted_bytes": sum(fit.bytes_after for fit in fits),
                "largest_error": max((fit.fit_error for fit in fits), default=0.0),
                "embedding_bytes": sum(made.embeddings.storage_bytes().values()),
                "auc": metrics.auc,
                "logloss": metrics.logloss,
                "split": settings.split,
            }
        )
        progress.advance(1)
    progress.finish()
    if len(rows) > 1 and not rows[1]["tables"]:
        raise InputError(
            f"no table of {run_folder} is a tensor train or has {settings.least_rows} rows; lower "
            "--least-rows"
        )
    return rows


def _asked(config: TableConfig, rank: int, least_rows: int) -> TableConfig:
    if config.representation == "tt":
        options = {**config.options, "tt_ranks": rank}
    elif config.representation == "dense" and config.num_embeddings >= least_rows:
        options = {"tt_ranks": rank}
    else:
        return config
    return TableConfig(
        config.name,
        config.num_embeddings,
        config.embedding_dim,
        config.feature_names,
        config.pooling,
        "tt",
        options,
    )


def text(rows: Sequence[dict[str, Any]]) -> str:
    """A table for a person."""
    first = rows[0]
    lines = [f"{'':<16}{'ranks':>12}{'error':>8}{'tables MB':>11}{'AUC':>10}{'change':>10}{'logloss':>10}"]
    for row in rows:
        name = f"rank {row['rank']}" if row["rank"] else f"tolerance {row['tolerance']}"
        ranks = [r for table in row["tables"] for r in table["tt_ranks"]]
        span = f"{min(ranks)}-{max(ranks)}" if ranks else "-"
        changed = row["auc"] is not None and first["auc"] is not None
        auc = f"{row['auc']:.5f}" if changed else "-"
        change = f"{row['auc'] - first['auc']:+.5f}" if changed else "-"
        lines.append(
            f"{name if ranks else 'as trained':<16}{span:>12}{row['largest_error']:>8.3f}"
            f"{row['embedding_bytes'] / 1e6:>11.2f}{auc:>10}{change:>10}{row['logloss']:>10.5f}"
        )
    return "\n".join(lines)
