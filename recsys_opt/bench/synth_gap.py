"""How near a small DLRM comes to the best possible AUC and logloss of generated rows, by number of rows."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recsys_opt.data.synth import SyntheticCriteo, write_dataset
from recsys_opt.errors import InputError
from recsys_opt.progress import Progress
from recsys_opt.training.config import recipe, replaced
from recsys_opt.training.trainer import train

MIN_ROWS = 1000


def measure(
    row_counts: Sequence[int],
    *,
    seed: int = 0,
    max_cardinality: int | None = None,
    batch_size: int = 128,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Trains the Kaggle recipe for one epoch on each number of rows, split 80/10/10 in time order."""
    for rows in row_counts:
        if rows < MIN_ROWS:
            raise InputError(f"{rows} rows; at least {MIN_ROWS} are needed for an AUC to mean something")
    config = replaced(recipe("criteo_kaggle"), {"batch_size": batch_size, "evals_per_epoch": 0})
    results = []
    for rows in row_counts:
        with tempfile.TemporaryDirectory(prefix="recsys_opt_gap_") as name:
            folder = Path(name)
            source = SyntheticCriteo(rows, seed=seed, max_cardinality=max_cardinality)
            info = write_dataset(source, folder / "data", progress=progress)
            result = train(config, folder / "data", folder / "run", progress=progress)
        assert info.bayes is not None
        assert result.test is not None
        best, test = info.bayes["test"], result.test
        if test.auc is None:
            raise InputError(f"the test split of {rows} rows has one class only; use more rows")
        results.append(
            {
                "rows": rows,
                "test_rows": test.rows,
                "auc": test.auc,
                "bayes_auc": best["auc"],
                "auc_gap": best["auc"] - test.auc,
                "logloss": test.logloss,
                "bayes_logloss": best["logloss"],
                "logloss_gap": test.logloss - best["logloss"],
                "click_rate": test.click_rate,
                "embedding_bytes": result.embedding_bytes,
                "samples_per_s": result.samples_per_s,
            }
        )
    return results
