"""Lines and files that are not as they must be: the error names file, line and what was found."""

import gzip
import os
import re
from pathlib import Path

import pytest

from recsys_opt.bench.criteo_text import make_lines, write_rows
from recsys_opt.data import prepare_parts
from recsys_opt.data.dataset import Dataset
from recsys_opt.data.prepare import PrepareOptions, prepare
from recsys_opt.data.prepare_journal import FOLDER
from recsys_opt.errors import InputError

ROWS = 500
BAD_LINE = 377

# what is done to the fields of a good line: (index, new text), and what the error says
FIELDS = [
    (0, "2", "the label is '2', not 0 or 1"),
    (0, "", "the label is '', not 0 or 1"),
    (0, "1.0", "the label is '1.0', not 0 or 1"),
    (3, "9223372036854775808", "column I3 is '9223372036854775808', beyond 64 bits"),
    (3, "-9223372036854775809", "column I3 is '-9223372036854775809', beyond 64 bits"),
    (13, "12x", "column I13 is '12x', not an integer"),
    (1, "-", "column I1 is '-', not an integer"),
    (1, "+1", "column I1 is '+1', not an integer"),
    (1, "1\x00", "column I1 is '1\\x00', not an integer"),
    (14, "deadbee", "column C1 is 'deadbee', not 8 hexadecimal digits"),
    (14, "deadbeef0", "column C1 is 'deadbeef0', not 8 hexadecimal digits"),
    (39, "deadbeeg", "column C26 is 'deadbeeg', not 8 hexadecimal digits"),
    (39, "-eadbeef", "column C26 is '-eadbeef', not 8 hexadecimal digits"),
    (20, "00\x0000000", "column C7 is '00\\x0000000', not 8 hexadecimal digits"),
    (20, "dead\rbee", "column C7 is 'dead\\x0dbee', not 8 hexadecimal digits"),
    (20, "x" * 100, f"column C7 is '{'x' * 40}'... (100 bytes), not 8 hexadecimal digits"),
    (5, "1\t2", "it has 41 columns, not 40"),
    (38, None, "it has 39 columns, not 40"),
]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_parts, "CHUNK_BYTES", 3000)


def write(path: Path, lines: list[str]) -> Path:
    data = ("\n".join(lines) + "\n").encode("latin-1")
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["train.txt", "train.txt.gz"])
@pytest.mark.parametrize(("index", "text", "found"), FIELDS)
def test_bad_field(tmp_path: Path, index: int, text: str | None, found: str, name: str) -> None:
    lines = make_lines(ROWS, seed=3)
    fields = lines[BAD_LINE - 1].split("\t")
    fields[index : index + 1] = [] if text is None else [text]
    lines[BAD_LINE - 1] = "\t".join(fields)
    path = write(tmp_path / name, lines)
    with pytest.raises(InputError, match=re.escape(f"{path}, line {BAD_LINE}: {found}")) as caught:
        prepare([path], tmp_path / "out", PrepareOptions(threads=4))
    assert "--bad-lines skip" in str(caught.value)
    with pytest.raises(InputError, match=r"not a whole dataset"):
        Dataset(tmp_path / "out")
    done = prepare([path], tmp_path / "skip", PrepareOptions(threads=4, bad_lines="skip"))
    assert (done.rows, done.bad_lines) == (ROWS - 1, 1)
    assert done.files[0].bad_examples == (f"{path}, line {BAD_LINE}: {found}",)


def test_skipping_gives_what_the_good_lines_alone_give(tmp_path: Path) -> None:
    lines = make_lines(ROWS, seed=3)
    bad = sorted({0, 7, 8, 250, ROWS - 1})
    broken = [line if i not in bad else "bad" for i, line in enumerate(lines)]
    path = write(tmp_path / "train.txt", broken)
    done = prepare([path], tmp_path / "a", PrepareOptions(bad_lines="skip", threads=3))
    good = write(tmp_path / "good.txt", [line for i, line in enumerate(lines) if i not in bad])
    prepare([good], tmp_path / "b", PrepareOptions(bad_lines="skip"))
    assert done.bad_lines == len(bad)
    assert [e.rsplit(" line ")[1] for e in done.files[0].bad_examples] == [
        f"{i + 1}: it has 1 column, not 40: 'bad'" for i in bad
    ]
    for name in ("dense", "sparse", "labels"):
        file = f"train_{name}.npy"
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_first_bad_line_is_the_one_reported(tmp_path: Path) -> None:
    lines = make_lines(ROWS, seed=3)
    for i in range(100, ROWS, 2):
        lines[i] = "bad"
    path = write(tmp_path / "train.txt", lines)
    for _ in range(5):
        with pytest.raises(InputError, match=r"line 101: it has 1 column"):
            prepare([path], tmp_path / "out", PrepareOptions(threads=8))


def test_carriage_returns_before_line_feeds_are_accepted(tmp_path: Path) -> None:
    lines = make_lines(ROWS, seed=3)
    lf = write(tmp_path / "lf.txt", lines)
    crlf = write(tmp_path / "crlf.txt", [line + "\r" for line in lines])
    prepare([lf], tmp_path / "a")
    prepare([crlf], tmp_path / "b")
    for name in ("train_dense.npy", "train_sparse.npy", "train_labels.npy", "vocabulary.npy"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_last_line_without_an_end_and_upper_case_digits(tmp_path: Path) -> None:
    lines = make_lines(ROWS, seed=3)
    lf = write(tmp_path / "lf.txt", lines)
    other = tmp_path / "other.txt"
    other.write_bytes("\n".join(lines).upper().encode())
    prepare([lf], tmp_path / "a")
    prepare([other], tmp_path / "b")
    assert (tmp_path / "a" / "train_sparse.npy").read_bytes() == (
        tmp_path / "b" / "train_sparse.npy"
    ).read_bytes()


def test_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_bytes(b"\xef\xbb\xbf" + "\n".join(make_lines(10, seed=3)).encode())
    with pytest.raises(InputError, match=r"line 1: the line begins with a UTF-8 byte order mark"):
        prepare([path], tmp_path / "out")


def test_blank_line_and_nul_line(tmp_path: Path) -> None:
    lines = make_lines(10, seed=3)
    path = write(tmp_path / "train.txt", [*lines, ""])
    with pytest.raises(InputError, match=r"line 11: it has 1 column, not 40: ''"):
        prepare([path], tmp_path / "out")
    path = write(tmp_path / "train.txt", [*lines, "\0" * 50])
    with pytest.raises(InputError, match=r"line 11: it has 1 column, not 40: '(\\x00){40}'... \(50 bytes\)"):
        prepare([path], tmp_path / "out2")


def test_only_bad_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "train.txt", ["bad", "worse"])
    with pytest.raises(
        InputError, match=r"has no rows: all its 2 lines are bad, the first one being .* line 1"
    ):
        prepare([path], tmp_path / "out", PrepareOptions(bad_lines="skip"))


def test_integers_beyond_32_bits_under_the_torchrec_transform(tmp_path: Path) -> None:
    lines = make_lines(10, seed=3)
    fields = lines[4].split("\t")
    fields[2] = "3000000000"
    lines[4] = "\t".join(fields)
    path = write(tmp_path / "train.txt", lines)
    assert prepare([path], tmp_path / "a").rows == 10
    with pytest.raises(
        InputError, match=r"line 5: column I2 is 3000000000, beyond the 32 bits of the torchrec"
    ):
        prepare([path], tmp_path / "b", PrepareOptions(dense_transform="torchrec"))


def test_a_line_of_100_mb_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    lines = "\n".join(make_lines(400, seed=3)) + "\n"  # more bytes than the longest line may have
    path = tmp_path / "train.txt"
    with open(path, "w") as f:
        f.write(lines)
        for _ in range(100):
            f.write("7" * 2**20)
        f.write("\n" + lines)
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:  # a process of its own, to see its memory

        def kib(key: str) -> int:
            return int(re.search(rf"{key}:\s*(\d+)", Path("/proc/self/status").read_text())[1])  # type: ignore[index]

        try:
            before = kib("VmRSS")
            done = prepare([path], tmp_path / "out", PrepareOptions(bad_lines="skip", threads=2))
            grown = kib("VmHWM") - before
            os.write(write_end, f"{grown} {done.rows} {done.files[0].bad_examples[0]}".encode())
        finally:
            os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        grown, rows, example = pipe.read().decode().split(" ", 2)
    os.waitpid(pid, 0)
    assert int(rows) == 800
    assert example == f"{path}, line 401: the line is longer than 65536 bytes"
    assert int(grown) < 40_000  # KiB
    with pytest.raises(InputError, match=r"line 401: the line is longer than 65536 bytes"):
        prepare([path], tmp_path / "stop")


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.999])
def test_truncated_file(tmp_path: Path, suffix: str, share: float) -> None:
    if suffix == ".zst":
        pytest.importorskip("zstandard")
    path = write_rows(tmp_path / f"train.txt{suffix}", ROWS, seed=3)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=f"{re.escape(str(path))} is truncated: .*fetch the file again"):
        prepare([path], tmp_path / "out")
    # A file too short to hold any text is refused before the folder is touched.
    assert not (tmp_path / "out" / "dataset.json").exists()
    path.write_bytes(data)
    assert prepare([path], tmp_path / "out").rows == ROWS
    assert not (tmp_path / "out" / FOLDER).exists()


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_damaged_file(tmp_path: Path, suffix: str) -> None:
    if suffix == ".zst":
        pytest.importorskip("zstandard")
    path = write_rows(tmp_path / f"train.txt{suffix}", ROWS, seed=3)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 40] = b"\xff" * 40
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"(is damaged: its \w+ stream cannot be read|line \d+: )"):
        prepare([path], tmp_path / "out")
