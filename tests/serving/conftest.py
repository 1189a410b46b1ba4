"""Runs that several tests of serving use."""

from pathlib import Path

import pytest

from tests.serving.runs import make_run


@pytest.fixture(scope="session")
def table_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of dense tables, with its dataset beside it."""
    return make_run(tmp_path_factory.getbasetemp() / "serving", "table")


@pytest.fixture(scope="session")
def tt_run(table_run: Path) -> Path:
    """One of the same features whose two largest tables are tensor trains."""
    return make_run(table_run.parent, "tt", {"compression.tt_threshold": 500, "compression.tt_rank": 4})
