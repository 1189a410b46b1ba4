import json
import multiprocessing
import os
from pathlib import Path

import pytest

from recsys_opt.errors import InputError, RecsysOptError
from recsys_opt.files import FolderLock, atomic_path, check_target, read_json, write_json, write_text


def test_json_round_trip_and_refusals(tmp_path: Path):
    path = tmp_path / "a.json"
    write_json(path, "thing", 3, {"x": [1, 2]})
    assert read_json(path, "thing", 3)["x"] == [1, 2]
    with pytest.raises(InputError, match="version 3 of thing; this recsys_opt reads version 2"):
        read_json(path, "thing", 2)
    with pytest.raises(InputError, match=r"a\.json is of the format 'thing', not a other file"):
        read_json(path, "other", 3)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "does not exist"),
        (b"", "(it is empty)"),
        (b'{"format": "recsys_opt.plan", "ver', "not whole, readable JSON (Unterminated string"),
        (b"\xff\xfe", "not whole, readable JSON"),
        (b"[" * 100_000, "not whole, readable JSON"),
        (b'{"format": "recsys_opt.plan", "version": 1, "x": NaN}', "it holds NaN, which is no number"),
        (b"PK\x03\x04", "holds numpy arrays, such as access statistics, not a plan"),
        (b"[1]", "is JSON of another program, not a plan (format recsys_opt.plan)"),
        (b'{"format": "recsys_opt.dataset", "version": 1}', "is a dataset, not a plan"),
        (
            b'{"format": "recsys_opt.plan", "version": 2}',
            "use the recsys_opt that wrote it, or make it again",
        ),
    ],
)
def test_what_is_no_plan_is_told_with_what_makes_one(tmp_path: Path, content: bytes | None, told: str):
    path = tmp_path / "plan.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_json(path, "recsys_opt.plan", 1)
    assert str(path) in str(error.value)
    assert told in str(error.value)
    assert "recsys-opt plan STATS --out plan.json" in str(error.value)


def test_a_folder_and_a_file_without_permission_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InputError, match="is a folder; name the file in it that holds a plan"):
        read_json(tmp_path, "recsys_opt.plan", 1)

    def refused(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refused)  # root may read everything
    with pytest.raises(InputError, match=r"x\.json cannot be read: Permission denied; mend that"):
        read_json(tmp_path / "x.json", "recsys_opt.plan", 1)


def test_json_refuses_nan(tmp_path: Path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", "thing", 1, {"x": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_atomic_path_leaves_the_old_file_on_failure(tmp_path: Path):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_full_disk_is_one_clear_error(tmp_path: Path):
    with (
        pytest.raises(RecsysOptError, match=r"cannot write .*: No space left on device"),
        atomic_path(tmp_path / "a"),
        open("/dev/full", "w") as f,
    ):
        f.write("x")
    assert list(tmp_path.iterdir()) == []


def _try_lock(folder: str) -> str:
    try:
        with FolderLock(Path(folder)):
            return "locked"
    except InputError as error:
        return str(error)


def test_second_writer_is_refused(tmp_path: Path):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        with FolderLock(tmp_path):
            assert "is being written by another process" in pool.apply(_try_lock, (str(tmp_path),))
        assert pool.apply(_try_lock, (str(tmp_path),)) == "locked"


def test_a_file_in_the_folder_s_place_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write to the folder .*file: .*; choose another folder"):
        FolderLock(tmp_path / "file").__enter__()


def test_json_is_plain(tmp_path: Path):
    write_json(tmp_path / "a.json", "thing", 1, {"x": 1})
    assert json.loads((tmp_path / "a.json").read_text()) == {"format": "thing", "version": 1, "x": 1}


def test_only_ordinary_files_are_replaced(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for path, told in (
        (tmp_path / "pipe", "is no ordinary file; give the name of one"),
        (tmp_path, "is a folder; give the name of a file in it"),
        (tmp_path / "pipe" / "x", "pipe is no folder; choose another place"),
    ):
        with pytest.raises(InputError, match=told), atomic_path(path):
            pass
    assert [p.name for p in tmp_path.iterdir()] == ["pipe"]
    write_text(tmp_path / "a" / "b" / "c", "text")
    assert (tmp_path / "a" / "b" / "c").read_text() == "text"


def test_a_folder_without_permission_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "access", lambda *arguments: False)  # root may write everywhere
    with pytest.raises(InputError, match=r"no permission to write in .*; choose another place"):
        check_target(tmp_path / "x")
