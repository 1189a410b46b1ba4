import json
from pathlib import Path

import pytest

from recsys_opt.errors import InputError
from recsys_opt.run_folder import MetricsLog, RunFolder


def entries(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_a_log_goes_on_where_the_checkpoint_was(tmp_path):
    run = RunFolder(tmp_path)
    log = MetricsLog(run)
    log.append({"step": 1})
    kept = log.sync()
    log.append({"step": 2222})
    log.close()
    again = MetricsLog(run, kept)
    assert again.sync() == kept  # before anything is appended, too
    again.append({"step": 3})
    assert again.sync() == kept + len('{"step": 3}\n') == run.metrics_path.stat().st_size
    again.close()
    assert entries(tmp_path) == [1, 3]


def test_a_log_shorter_than_the_checkpoint_says_is_refused(tmp_path):
    run = RunFolder(tmp_path)
    run.metrics_path.write_text('{"step": 1}\n')
    with pytest.raises(InputError, match="has 12 bytes, but the checkpoint was made when it had 13"):
        MetricsLog(run, 13)


def test_half_a_line_at_the_end_is_left_out_but_not_in_the_middle(tmp_path):
    run = RunFolder(tmp_path)
    assert run.metrics() == []
    run.metrics_path.write_text('{"step": 1}\n{"step"')
    assert run.metrics() == [{"step": 1}]
    run.metrics_path.write_text('{"step": 1}\n{"step"\n{"step": 3}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl, line 2: not JSON"):
        run.metrics()


def test_the_last_whole_checkpoint_is_found_without_its_link(tmp_path):
    run = RunFolder(tmp_path)
    assert run.checkpoint_folder() is None
    for step, whole in ((5, True), (7, True), (9, False)):
        folder = tmp_path / f".checkpoint-{step:09d}"
        folder.mkdir()
        if whole:
            (folder / "checkpoint.json").write_text("{}")
    assert run.checkpoint_folder() == tmp_path / ".checkpoint-000000007"
    run.checkpoint_link.symlink_to(".checkpoint-000000005")
    assert run.checkpoint_folder() == tmp_path / ".checkpoint-000000005"
    run.checkpoint_link.unlink()
    run.checkpoint_link.symlink_to(".checkpoint-000000011")  # gone
    assert run.checkpoint_folder() == tmp_path / ".checkpoint-000000007"
