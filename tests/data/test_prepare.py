import gzip
import json
import os
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from recsys_opt import _criteo
from recsys_opt.bench.criteo_text import make_lines, write_rows
from recsys_opt.data import prepare_parts
from recsys_opt.data.criteo import HashedIds, VocabularyIds
from recsys_opt.data.dataset import Dataset
from recsys_opt.data.descriptor import load_descriptor
from recsys_opt.data.prepare import Prepared, PrepareOptions, prepare
from recsys_opt.data.splits import Split
from recsys_opt.errors import InputError, RecsysOptError
from recsys_opt.files import FolderLock

ROWS = 600
HASHED = HashedIds(load_descriptor("criteo_kaggle").cardinalities["kaggle"])


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a dataset folder but the lock, which names the process."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != ".lock"
    }


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many chunks in a small file: some 40 of them."""
    monkeypatch.setattr(prepare_parts, "CHUNK_BYTES", 5000)


@pytest.fixture
def train(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "train.txt", ROWS, seed=1)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("ids", [VocabularyIds(2), HASHED], ids=["vocabulary", "hash"])
def test_compressed_text_gives_the_same_arrays(
    train: Path, tmp_path: Path, suffix: str, ids: VocabularyIds | HashedIds
) -> None:
    if suffix == ".zst":
        pytest.importorskip("zstandard")
    packed = write_rows(tmp_path / f"train.txt{suffix}", ROWS, seed=1)
    plain = prepare([train], tmp_path / "plain", PrepareOptions(ids=ids, threads=4))
    other = prepare([packed], tmp_path / "packed", PrepareOptions(ids=ids, threads=1))
    assert plain.info.input_hash == other.info.input_hash
    one, two = tree(tmp_path / "plain"), tree(tmp_path / "packed")
    assert {k: v for k, v in one.items() if k.endswith(".npy")} == {
        k: v for k, v in two.items() if k.endswith(".npy")
    }


def test_threads_and_chunks_change_nothing(
    train: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare([train], tmp_path / "a", PrepareOptions(threads=1))
    monkeypatch.setattr(prepare_parts, "CHUNK_BYTES", 700)
    prepare([train], tmp_path / "b", PrepareOptions(threads=7))
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_kaggle_with_an_unlabelled_part(train: Path, tmp_path: Path) -> None:
    test = write_rows(tmp_path / "test.txt", 50, seed=2, labelled=False)
    alone = prepare([train], tmp_path / "alone")
    done = prepare([test, train], tmp_path / "out")
    dataset = Dataset(tmp_path / "out")
    assert [(p.name, p.rows, p.labelled) for p in dataset.info.parts] == [
        ("train", ROWS, True),
        ("test", 50, False),
    ]
    assert dataset.arrays("test").labels is None
    # Unlabelled rows do not shape the vocabulary.
    assert done.info.sparse_columns == alone.info.sparse_columns
    np.testing.assert_array_equal(
        dataset.arrays("train").sparse, Dataset(tmp_path / "alone").arrays("train").sparse
    )
    assert dataset.info.splits == {"train": (0, 480), "validation": (480, 540), "test": (540, 600)}


def test_terabyte_folder_in_the_order_of_days(tmp_path: Path) -> None:
    folder = tmp_path / "days"
    folder.mkdir()
    for day, rows in ((0, 30), (2, 20), (10, 41)):
        write_rows(folder / (f"day_{day}" + (".gz" if day == 2 else "")), rows, seed=day)
    prepare([folder], tmp_path / "out", PrepareOptions(threads=3))
    info = Dataset(tmp_path / "out").info
    assert info.name == "criteo_terabyte"
    assert [p.name for p in info.parts] == ["day_0", "day_2", "day_10"]
    # torchrec: the first half of the last day, the larger one, validates.
    assert info.splits == {"train": (0, 50), "validation": (50, 71), "test": (71, 91)}


def test_a_second_run_has_nothing_to_do(train: Path, tmp_path: Path) -> None:
    prepare([train], tmp_path / "out")
    before = tree(tmp_path / "out")
    assert prepare([train], tmp_path / "out").decision == "unchanged"
    os.utime(train, ns=(1, 1))  # touched, but the text is the same
    assert prepare([train], tmp_path / "out").decision == "unchanged"
    assert tree(tmp_path / "out") == before


def test_other_options_or_input_need_overwrite(train: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare([train], out)
    before = tree(out)
    with pytest.raises(
        InputError, match=r"its ids is .*'min_count': 2.*now asked for: .*'min_count': 3.*--overwrite"
    ):
        prepare([train], out, PrepareOptions(ids=VocabularyIds(3)))
    write_rows(train, ROWS, seed=9)
    with pytest.raises(InputError, match=r"holds another text than the train.txt it was made from"):
        prepare([train], out)
    assert tree(out) == before
    done = prepare([train], out, PrepareOptions(overwrite=True))
    assert done.decision == "fresh"
    assert prepare([train], tmp_path / "new").info == done.info
    assert tree(out) == tree(tmp_path / "new")


def test_a_dataset_that_lost_a_file_is_not_taken_for_whole(train: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare([train], out)
    before = tree(out)
    (out / "train_sparse.npy").unlink()
    with pytest.raises(
        InputError, match=r"holds a dataset already, and it does not open: .*train_sparse\.npy"
    ):
        prepare([train], out)
    assert prepare([train], out, PrepareOptions(overwrite=True)).decision == "fresh"
    assert tree(out) == before


def test_another_split_leaves_the_arrays(train: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare([train], out)
    before = tree(out)
    with pytest.raises(InputError, match=r"its splits are"):
        prepare([train], out, PrepareOptions(split=Split.parse("50/0/50")))
    done = prepare([train], out, PrepareOptions(split=Split.parse("50/0/50"), overwrite=True))
    assert done.decision == "split"
    assert Dataset(out).info.splits == {"train": (0, 300), "validation": (300, 300), "test": (300, 600)}
    assert {**tree(out), "dataset.json": b""} == {**before, "dataset.json": b""}


def test_overwrite_removes_nothing_of_others(train: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    (out / "train_dense.npy").write_bytes(b"of something else")
    with pytest.raises(InputError, match=r"holds train_dense.npy of something else"):
        prepare([train], out)
    prepare([train], out, PrepareOptions(overwrite=True))
    assert (out / "notes.txt").read_text() == "mine"
    assert Dataset(out).info.labelled_rows == ROWS


def test_a_second_writer_is_refused(train: Path, tmp_path: Path) -> None:
    with (
        FolderLock(tmp_path / "out"),
        pytest.raises(InputError, match=r"is being written by another process"),
    ):
        prepare([train], tmp_path / "out")


@pytest.mark.parametrize("content", [b"", b"\x05" + bytes(7), bytes(8), b"\x01"])
def test_damaged_intermediate_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: Path, content: bytes
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, "map_part", 1)
        with pytest.raises(InterruptedForTestError):
            prepare([train], tmp_path / "out")
    (tmp_path / "out" / ".prepare" / "train.values").write_bytes(content)
    with pytest.raises(
        RecsysOptError, match=r"(is damaged after row 0|holds 0 rows, not 600); start over with"
    ):
        prepare([train], tmp_path / "out")
    assert prepare([train], tmp_path / "out", PrepareOptions(overwrite=True)).decision == "fresh"


class InterruptedForTestError(Exception):
    pass


def interrupt_at(monkeypatch: pytest.MonkeyPatch, where: str, call: int) -> None:
    """Makes the `call`-th call of a function of prepare_parts' fail."""
    import recsys_opt.data.prepare as module

    original: Callable[..., object] = getattr(module, where)
    calls = 0

    def fail(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls == call:
            raise InterruptedForTestError
        return original(*args, **kwargs)

    monkeypatch.setattr(module, where, fail)


@pytest.mark.parametrize(
    ("where", "call"), [("read_part", 2), ("write_vocabulary", 1), ("map_part", 1), ("map_part", 2)]
)
def test_what_is_done_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, call: int
) -> None:
    days = [write_rows(tmp_path / f"day_{d}", 100, seed=d) for d in range(3)]
    options = PrepareOptions(threads=1)
    prepare(days, tmp_path / "whole", options)
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        interrupt_at(patch, where, call)
        with pytest.raises(InterruptedForTestError):
            prepare(days, out, options)
    with pytest.raises(InputError, match=r"run the same command again"):
        Dataset(out)
    with pytest.raises(
        InputError, match=r"holds an unfinished run of data prepare, and its dense_transform is dlrm"
    ):
        prepare(days, out, PrepareOptions(threads=1, dense_transform="torchrec"))
    with pytest.raises(InputError, match=r"its parts are day_0, day_1, day_2, now given: day_0, day_1"):
        prepare(days[:2], out, options)
    stamps = {p.name: p.stat().st_mtime_ns for p in out.glob("*_dense.npy")}
    assert len(stamps) == (1 if where == "read_part" else 3)
    (out / ".prepare" / "day_9.values").write_bytes(b"left by something")
    assert prepare(days, out, options).decision == "resumed"
    assert tree(out) == tree(tmp_path / "whole")
    assert all((out / name).stat().st_mtime_ns == stamp for name, stamp in stamps.items())


def test_a_file_that_changed_since_the_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = write_rows(tmp_path / "train.txt", 100, seed=1)
    with monkeypatch.context() as patch:
        interrupt_at(patch, "write_vocabulary", 1)
        with pytest.raises(InterruptedForTestError):
            prepare([train], tmp_path / "out")
    write_rows(train, 100, seed=2)
    with pytest.raises(InputError, match=r"train.txt holds another text"):
        prepare([train], tmp_path / "out")
    write_rows(train, 100, seed=1)
    os.utime(train, ns=(5, 5))
    assert prepare([train], tmp_path / "out").decision == "resumed"
    files = json.loads((tmp_path / "out" / "dataset.json").read_text())["source"]["files"]
    assert files[0]["mtime_ns"] == 5


def in_child(work: Callable[[], None]) -> int:
    """Runs `work` in a forked process; 0 if it returned."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("limit", [3_000, 30_000, 60_000])
def test_files_that_cannot_grow(train: Path, tmp_path: Path, limit: int) -> None:
    prepare([train], tmp_path / "whole")
    out = tmp_path / "out"

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with pytest.raises(RecsysOptError, match=r"cannot write .*: File too large"):
            prepare([train], out)

    assert in_child(limited) == 0
    with pytest.raises(InputError, match=r"is not a whole dataset"):
        Dataset(out)
    prepare([train], out)
    assert tree(out) == tree(tmp_path / "whole")


def test_full_disk(train: Path, tmp_path: Path) -> None:
    out = tmp_path / "disk"
    out.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(out)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip(
            "mounting a small file system needs root; test_files_that_cannot_grow covers the same code"
        )
    try:
        with pytest.raises(RecsysOptError, match=r"cannot write .*: No space left on device") as caught:
            prepare([train], out)
        assert "repeat the command" in str(caught.value)
        with pytest.raises(InputError, match=r"is not a whole dataset"):
            Dataset(out)
    finally:
        subprocess.run(["umount", "--lazy", str(out)], check=True)  # the error's traceback holds open files


def test_xxh64_is_xxh64() -> None:
    # The algorithm's published values; the last one in uneven pieces.
    for text, digest in ((b"", 0xEF46DB3751D8E999), (b"a", 0xD24EC4F1A98C6E5B), (b"abc", 0x44BC2CF5AD770999)):
        hasher = _criteo.Xxh64()
        hasher.update(text)
        assert hasher.digest() == digest
    text = bytes(range(256)) * 9
    whole, pieces = _criteo.Xxh64(), _criteo.Xxh64()
    whole.update(text)
    for start in range(0, len(text), 37):
        pieces.update(text[start : start + 37])
    assert whole.digest() == pieces.digest()


def test_progress_tells_bytes_and_rows(tmp_path: Path) -> None:
    stages: list[tuple[str, float | None, str]] = []
    done: list[float] = []

    class Watch:
        def start(self, description: str, total: float | None, unit: str) -> None:
            stages.append((description, total, unit))
            done.append(0)

        def advance(self, amount: float, **fields: str) -> None:
            done[-1] += amount

        def finish(self) -> None:
            stages.append(("finish", None, ""))

    packed = write_rows(tmp_path / "train.txt.gz", 200, seed=1)
    result: Prepared = prepare([packed], tmp_path / "out", progress=Watch())
    size = packed.stat().st_size
    assert stages[0] == ("reading", size, "B")
    assert done[0] == size
    assert stages[2] == ("writing ids", 200, "rows")
    assert done[2] == 200
    assert stages[-1][0] == "finish"
    assert result.rows == 200


def test_an_interrupt_from_the_keyboard_stops_the_threads(tmp_path: Path) -> None:
    lines = "\n".join(make_lines(200, seed=1)) + "\n"
    (tmp_path / "train.txt").write_text(lines * 20)

    class Impatient:
        def start(self, description: str, total: float | None, unit: str) -> None: ...

        def advance(self, amount: float, **fields: str) -> None:
            raise KeyboardInterrupt

        def finish(self) -> None: ...

    with pytest.raises(KeyboardInterrupt):
        prepare([tmp_path / "train.txt"], tmp_path / "out", progress=Impatient())
    assert prepare([tmp_path / "train.txt"], tmp_path / "out").rows == 4000


@pytest.mark.parametrize("packed", [False, True])
def test_empty_file(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / ("train.txt.gz" if packed else "train.txt")
    path.write_bytes(gzip.compress(b"") if packed else b"")
    with pytest.raises(InputError, match=r"train\.txt(\.gz)? is empty: it has no rows"):
        prepare([path], tmp_path / "out")
