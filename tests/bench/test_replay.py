"""The replay's benchmark; it compares both candidates' counts before it times them."""

import json
from pathlib import Path

import pytest

from recsys_opt.bench.replay import measure
from recsys_opt.cli.main import main
from recsys_opt.errors import InputError


def test_native_and_numpy_count_the_same_and_are_recorded(tmp_path: Path) -> None:
    record = tmp_path / "r.json"
    sizes = ["--rows", "2", "1k", "--lookups", "500", "--rounds", "1"]
    assert main(["bench", "replay", *sizes, "--record", str(record)]) == 0
    rows = json.loads(record.read_text())["rows"]
    cases = {(r["rows"], r["ids"], r["candidate"]) for r in rows}
    assert len(cases) == 8
    assert all(r["lookups_per_s"] > 0 for r in rows)
    with pytest.raises(InputError, match=r"rows = \[1\]"):
        measure([1])
